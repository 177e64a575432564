"""What stays is learned: gates with an L0 penalty towards a target (l0.py), trained in the one training loop (train.py)."""
