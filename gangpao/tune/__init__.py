"""Tuning: adapters and full tuning of a model that exists, on top of train/."""
