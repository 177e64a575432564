"""Tuning: a small model taught with somebody's own rows, on one small card or on none."""
