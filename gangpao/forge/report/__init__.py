"""The page of a line: words.py sentences in two languages, blocks.py what stands on it; evaluate/report/page writes it."""
