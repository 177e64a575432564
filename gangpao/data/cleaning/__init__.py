"""Which rows stay: cleaning, languages, near-duplicates, evaluation sets, selection."""
