"""Conversations that another model marks: MT-Bench's two turns, and sets of prompts against a baseline's answers.

questions.py    questions, references and answers of others, as FastChat and Arena-Hard publish them; sample/ is our own small set
talk.py         the model under test answers, turn by turn; everything asked goes through the journal (asked.py)
prompts.py      what a judge is told, from prompts.toml or a file of the user's
verdict.py      the mark in what a judge wrote
marking.py      judges asked: each answer by itself, or beside a baseline's in both orders
scores.py       marks and verdicts as scores, with agreement.py between two judges and radar.py as a picture
run.py          all of it into a folder; command.py is `gangpao eval judge`
"""
