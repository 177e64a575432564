"""How fast a model is: one sample (sample.py), a suite of them over models, contexts and batch sizes (suite.py),
and its table (table.py)."""
