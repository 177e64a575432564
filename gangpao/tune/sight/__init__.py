"""A model that sees, tuned.

begin.py     what a run makes first: its pictures, and the model that it begins with
new.py       a folder that sees, from parts or from nothing; encoders.py: parts that packages carry
model.py     the language model with its tower as one module
parts.py     which parts learn
output.py    what comes out: a whole folder
ask.py       what a folder answers, word for word
"""
