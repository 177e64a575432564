"""Which channels of an MLP go together: groups of equal size, so that for each token few groups carry much.

Two things are maximised, one after the other. First the cosine between a channel's pattern over the tokens and the mean of its
group (k-means on the sphere, from a seeded start). Then directly what experts are for: the share of a token's energy that its k
largest groups hold, summed over tokens. With the groups given, the best k of a token are its largest; with those given, a channel
earns in a group its energy on the tokens that have chosen it. Each half step can only raise the sum, so it ends.

Groups stay equal because channels only change places in pairs. What it gives up: the best exchange between two groups at a time
is not the best among all assignments.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Owners = npt.NDArray[np.int64]  # of every channel [F] the number of its group

_ROUNDS = 30  # at most, of either part
_STARTS = 3
_LEAST = 1e-6  # a gain that is smaller than this share of everything ends it


def coactivated(energy_NF: Floats, groups: int, chosen: int, seed: int) -> Owners:
    """Groups of the channels of energy [tokens, F], whose rows are the channels' shares of a token: the best of a few starts.

    F must be whole groups."""
    amplitudes = np.sqrt(energy_NF)
    patterns = np.ascontiguousarray((amplitudes - amplitudes.mean(axis=0)).T)
    patterns /= np.maximum(np.linalg.norm(patterns, axis=1, keepdims=True), 1e-20)
    rng = np.random.default_rng(seed)
    found = [by_pattern(patterns, groups, rng) for _ in range(_STARTS)]
    best = max(found, key=lambda owners: captured(energy_NF, owners, groups, chosen))
    return concentrated(energy_NF, best, groups, chosen)


def by_pattern(patterns: Floats, groups: int, rng: np.random.Generator) -> Owners:
    """Groups of patterns [F, tokens] of length 1 that point the same way: k-means with equal sizes."""
    centres = _apart(patterns, groups, rng)
    owners = in_order(len(patterns), groups)
    for _ in range(_ROUNDS):
        before = owners
        owners = exchanged(patterns @ centres.T, owners)
        if np.array_equal(before, owners):
            break
        centres = _members(owners, groups) @ patterns
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-20)
    return owners


def _apart(patterns: Floats, groups: int, rng: np.random.Generator) -> Floats:
    """Patterns to start from [G, tokens], each drawn by how far it is from those before (k-means++)."""
    chosen = [int(rng.integers(len(patterns)))]
    far = np.ones(len(patterns))
    while len(chosen) < groups:
        far = np.minimum(far, np.clip(1.0 - patterns @ patterns[chosen[-1]], 0.0, None))
        far[chosen] = 0.0
        at = int(np.searchsorted(np.cumsum(far), rng.random() * far.sum()))
        chosen.append(min(at, len(patterns) - 1))
    return np.ascontiguousarray(patterns[chosen])


def concentrated(energy_NF: Floats, owners: Owners, groups: int, chosen: int) -> Owners:
    """Channels exchanged so that the `chosen` largest groups of each token hold more of its energy."""
    before = -1.0
    total = float(energy_NF.sum(dtype=np.float64))
    for _ in range(_ROUNDS):
        mass = energy_NF @ _members(owners, groups).T
        largest = top_mask(mass, chosen)
        held = float((mass * largest).sum(dtype=np.float64))
        if held - before <= _LEAST * total:
            break
        before = held
        owners = exchanged(energy_NF.T @ largest, owners)
    return owners


def captured(energy_NF: Floats, owners: Owners, groups: int, chosen: int) -> float:
    """The share of all energy that the `chosen` largest groups of every token hold."""
    mass = energy_NF @ _members(owners, groups).T
    return float((mass * top_mask(mass, chosen)).sum() / max(float(mass.sum()), 1e-30))


def exchanged(worth_FG: Floats, owners: Owners) -> Owners:
    """Owners of the same group sizes with a total worth that no exchange between two groups can raise.

    worth: of each channel in each group.
    """
    owners = owners.copy()
    groups = worth_FG.shape[1]
    least = _LEAST * float(np.abs(worth_FG).mean())
    moved = True
    while moved:
        moved = False
        for a in range(groups):
            for b in range(a + 1, groups):
                moved |= _exchange(worth_FG, owners, a, b, least)
    return owners


def _exchange(worth_FG: Floats, owners: Owners, a: int, b: int, least: float) -> bool:
    """Swap the pairs of channels between two groups that gain, the best ones first. Whether there were any."""
    there, back = np.flatnonzero(owners == a), np.flatnonzero(owners == b)
    out = worth_FG[there, b] - worth_FG[there, a]
    home = worth_FG[back, a] - worth_FG[back, b]
    first, second = np.argsort(-out, kind="stable"), np.argsort(-home, kind="stable")
    count = min(len(first), len(second))
    pairs = int((out[first[:count]] + home[second[:count]] > least).sum())  # falling, so these are the first ones
    owners[there[first[:pairs]]], owners[back[second[:pairs]]] = b, a
    return pairs > 0


def in_order(channels: int, groups: int) -> Owners:
    """Neighbours together."""
    return np.arange(channels) // (channels // groups)


def at_random(channels: int, groups: int, seed: int) -> Owners:
    """Groups of equal size by chance."""
    return np.random.default_rng(seed).permutation(in_order(channels, groups))


def top_mask(values_NG: Floats, k: int) -> Floats:
    """1 at the k largest of each row, of equal ones the first, and 0 elsewhere."""
    out = np.zeros_like(values_NG)
    np.put_along_axis(out, np.argsort(-values_NG, axis=1, kind="stable")[:, :k], 1, axis=1)
    return out


def _members(owners: Owners, groups: int) -> Floats:
    """[G, F]: 1 where a channel belongs to a group."""
    members: Floats = (owners[None] == np.arange(groups)[:, None]).astype(np.float32)
    return members
