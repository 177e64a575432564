"""The output head: logits of whole vocabularies, and the search for the tokens that can be chosen without reading all of it.

output.py      the last norm and the head, all of it or as far as a choice needs it (`Sampler.need`)
two_pass.py    the search: when it pays, and what it learns
"""
