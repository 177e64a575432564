"""A model trained with the weights that its file will hold, so that rounding is part of what it learns.

arithmetic.py  a matrix as its file will hold it: every block type, ternary by the mean, activations in int8
layers.py      layers that compute with that, and whose gradients go straight through to the floats behind it
scales.py      the cheap way: integers stay, their scales are trained
rotate.py      the same function in a basis without outliers
types.py       which tensor gets which type
run.py         the step of a compression; start reading here
"""
