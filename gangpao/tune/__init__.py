"""Adapters and full tuning on top of train."""
