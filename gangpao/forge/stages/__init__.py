"""The stages of a line: stage.py what one is, training.py and finishing.py one each, checks.py what they refuse, table.py all."""
