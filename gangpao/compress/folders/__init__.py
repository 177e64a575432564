"""Models in Hugging Face folders with integer weights, for servers such as vLLM: compressed-tensors, 4 or 8 bits.

`grid.py` chooses scales and integers of a matrix, `write.py` makes the folder. Reading them is formats/integers/.
"""
