"""Weights rounded with the data in view, into the same types and bytes: no decode cost, and any reader of GGUF runs the result.

config.py      how it is done
grids.py       what a type can say; search for scales
feedback.py    one matrix: error feedback by column, then descent over values and scales
layers.py      one layer: what goes into its matrices, in the float model and in the rounded one
sweep.py       all layers in order, resumable
together.py    all matrices at once: scales, norms and biases trained towards the float model's predictions
run.py         `rounded`: types and calibration ids -> the bytes of every matrix
replace.py     a quantized file of anybody with better numbers in it
"""
