"""What the blocks of a GGUF file hold: integers, scales and minima (`layout.py`), and how they are found for given weights."""
