"""From a name, path or address to a file (find.py, checkpoint.py) and to an engine (loading.py)."""
