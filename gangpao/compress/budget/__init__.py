"""A budget, not a type: which type each tensor takes, so that a file of so many bytes loses least.

`amount.py` bytes as people write them -> `layout.py` what a file holds and how large it is to the byte -> `sensitivity.py`
what each tensor at each type costs, by the model's own gradients -> `probe.py` the same by running the model, kind by kind,
and whole mixtures -> `solver.py` the best mixture for a budget -> `solve.py` all of it, resumable; start reading there.
`table.py` says what went where and why.
"""
