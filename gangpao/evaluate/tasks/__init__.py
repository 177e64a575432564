"""What is asked: tasks as rows of a table, suites as lists of them, and the same tasks over data from a folder or a hub.

table.py        TASKS and SUITES
data.py         where rows are from: a folder, Hugging Face, ModelScope
docs.py         rows, as whoever published them wrote them -> docs of one form
prompts.py      docs -> the text that a model sees, examples in front
build.py        a task as lm-eval takes it
grade.py        answers that were written -> right or wrong
"""
