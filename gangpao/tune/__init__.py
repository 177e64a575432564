"""Tuning of a trained model: what is added to a base, what it is taught, and by which loss."""
