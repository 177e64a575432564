"""How fast a model is: one sample (sample.py), a suite of them over models, contexts and batch sizes (suite.py), what a suite has
measured so far (samples.py), and its table (table.py)."""
