"""Ids that nobody wrote, for what needs a batch and no text: the coordinate check, and the time of a step.

What it gives up: what they teach is not language; only sizes and times are looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """A batch as the objective wants it: no borders between documents."""

    ids: np.ndarray
    labels: np.ndarray
    documents: np.ndarray


def made_up(count: int, vocab_size: int, seed: int) -> np.ndarray:
    """Ids that can be learned: each is mostly followed by one of a few of its own, and some are frequent."""
    rng = np.random.default_rng([seed, count])
    followers = rng.integers(0, vocab_size, (vocab_size, 4))
    frequent = 1.0 / np.arange(1, vocab_size + 1)
    rare = rng.choice(vocab_size, count, p=frequent / frequent.sum())
    picks, jumps = rng.integers(0, 4, count), rng.random(count) < 0.2
    ids = np.empty(count, dtype=np.int64)
    now = 0
    for i in range(count):
        now = int(rare[i] if jumps[i] else followers[now, picks[i]])
        ids[i] = now
    return ids


def rows_of(ids: np.ndarray | None, vocab_size: int, seed: int, rows: int, seq_len: int) -> Rows:
    """A batch of rows of these ids, or of made-up ones. Raises ValueError for too few ids, or some beyond the vocabulary."""
    count = rows * seq_len + 1
    if ids is None:
        ids = made_up(count, vocab_size, seed)
    ids = np.asarray(ids, dtype=np.int64).reshape(-1)[:count]
    if len(ids) < count:
        raise ValueError(f"{len(ids)} ids are too few: {rows} rows of {seq_len} and the id after them are {count}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"ids reach from {ids.min()} to {ids.max()}: they must lie below vocab_size {vocab_size}")
    inputs, labels = ids[:-1].reshape(rows, seq_len), ids[1:].reshape(rows, seq_len)
    return Rows(inputs, labels, np.zeros_like(inputs))
