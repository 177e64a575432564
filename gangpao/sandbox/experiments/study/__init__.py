"""Of a scaling study: its trials and the laws that are fitted to them, and what was predicted of larger runs."""
