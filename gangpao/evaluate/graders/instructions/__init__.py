"""Was the answer written as it was asked to be? Instructions that a program can check, in Chinese and English.

checks.py     each kind of instruction: a function of an answer and its parameters
table.py      how each kind is worded in both languages, which numbers and words it draws, and what it cannot stand beside
prompts.py    the set of prompts, made from the table by a seed
follow.py     strict and loose verdicts, and the four accuracies
"""
