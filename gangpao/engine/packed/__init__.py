"""Packed weights on disk, so that a model that was loaded once starts at once.

store.py   which file belongs to which weights, within a budget; written whole or not at all, checked before it is used
"""
