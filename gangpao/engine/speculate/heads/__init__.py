"""Draft heads (DFlash, DSpark): a few layers that guess a block of tokens at once from the large model's hidden states.

config.py     what a file says of its head, checked against the large model
weights.py    its matrices, packed
head.py       the head beside its model: keys and values of every position that the model computes, and the forward pass of a block
drafter.py    guesses for one answer
"""
