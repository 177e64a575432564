"""The experiments: each asks for trials and ends in an outcome with a table, a plot and verdicts."""
