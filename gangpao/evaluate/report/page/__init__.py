"""The page of a report: what it says as blocks, and those as HTML or Markdown.

document.py    blocks -> HTML, Markdown
words.py       every word of the page in two languages
given.py       what a report is made of, and how its numbers are written
scores.py      the main table, averages, differences
facts.py       who answered, how it was asked, speed and price, what was left out, thinking, notes
items.py       single items: those that two runs decide differently, or the worst
pictures.py    radar, bars, quality against price
build.py       all of it in order, as files
"""
