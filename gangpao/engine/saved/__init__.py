"""A conversation as a file: session.py the ids that a model has read, with its cache."""
