"""What a model that sees says about pictures: answers that are right, and texts that it finds by their pictures.

rows.py      files of conversations about pictures -> questions, each on its own
choose.py    which of several texts a picture makes likely, and which picture a text
run.py       asks, marks, writes what a run leaves
command.py   `gangpao eval pictures`
"""
