"""Limits of a model's thought, and its forced close.

options.py   what a user or a program says about thinking, on the command line and in every API
rule.py      that, a model's marks and a prompt -> the rule of one answer
tracker.py   the rule's state while the answer grows: which token is forced, and what is a thought
"""
