"""A model made smaller: rounded better, trained for its rounding, pruned, cut into experts; and what each of these loses.

`quantize/` writes the types of GGUF files, `importance/` says which columns matter, `rounding/` chooses numbers with the data in
view, `budget/` types for a size; `distil/` and `qat/` train towards a teacher, `prune/` and `experts/` change the shape, `compare/`
measures what was lost. step.py is what all of them give back.
"""
