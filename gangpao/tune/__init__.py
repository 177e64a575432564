"""Tuning a model on one small card, or on none: what a person has (a GGUF file, a folder) learns from rows that a person has.

base/ the frozen model, in its own blocks -> methods/ what is trained on top of it -> data/ rows as batches -> objectives/ what is
minimised; config.py says what a run is, run.py puts it together for the one training loop, output.py writes what comes out of it.
"""
