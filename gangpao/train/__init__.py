"""Training: one loop, its schedules and optimizers, checkpoints that survive a crash, and pretraining on top of them.

Read loop.py first; pretrain.py fills it in for a run from a TOML file, and tune/ and compress/ do the same with theirs.
"""
