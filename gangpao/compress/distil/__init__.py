"""A model trained towards another one: what is compared, who the teacher is, and the run.

divergence.py   the formulas: two distributions in, a loss and its gradient out
logits.py       the same under a head, some hundred tokens at a time
teacher.py      who says what the student should say: a model at work, or `store.py`, what it said before
inner.py        hidden states and attention of paired layers
objective.py    all of it as one objective of the training loop
training.py     data, schedule, loop: what distillation and quantization-aware training share
output.py       weights as a folder or file again
run.py          the step of a compression; start reading here
"""
