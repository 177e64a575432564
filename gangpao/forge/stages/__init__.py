"""The stages of a line: stage.py what one is, training.py and finishing.py one each, table.py all of them."""
