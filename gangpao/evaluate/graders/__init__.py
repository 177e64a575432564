"""Right or wrong: what decides whether an answer is correct, each with a name and a version that stand in every result.

grade.py         the form of a verdict
maths.py         numbers of GSM8K and formulas of MATH; latex.py and values.py read them
choice.py        the letter that an answer in Chinese or English settles on
bbh.py           the answer behind "So the answer is"
code.py          programs cut out of answers, run in the cage, pass@k
cage/            where programs run
instructions/    what was asked of the form of an answer, checked by programs
"""
