"""The types of a file of so many bytes, or bits a weight, that lose least. Start reading here.

    1  gradients say what every tensor costs at every type (sensitivity.py), on most of the ids
    2  running the model with one kind of tensor rounded corrects them (measured.py), on the other ids
    3  the best mixture is solved for (solver.py), and so is the one whose tensors are never worse than those of a smaller budget
    4  both are run, and of all mixtures that were ever run in this folder and fit, the one of least divergence is taken

So a larger budget, solved for in the same folder, is never worse on the held-out ids: whatever was run for a smaller one fits it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gangpao.compress.budget import solver
from gangpao.compress.budget.layout import Layout, layout_of
from gangpao.compress.budget.measured import (
    Ratios,
    Scores,
    key_of_mixture,
    kind_of,
    mean,
    probes,
    ratios_of,
    store,
)
from gangpao.compress.budget.probe import Probe
from gangpao.compress.budget.sensitivity import Errors, Measurement, watch
from gangpao.evaluate.statistics import mean_error
from gangpao.formats.imatrix import Importance
from gangpao.progress import Progress, Silent
from gangpao.units import show_bytes, show_count

Ids = npt.NDArray[np.int64]
_TIME = 256  # ids of a sequence: longer ones give fewer samples of the gradient for the same work
_GRADIENT_IDS, _CHECK_IDS = 2048, 1024
_VERSION = 1  # of what is measured; a folder of another is not gone on with


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor: what it takes and why. loss: nats a token that its type costs; next: the type a step up, what that would save,
    and its further bytes; "" where nothing is better."""

    tensor: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    loss: float
    next: str = ""
    next_bytes: int = 0
    next_saves: float = 0.0


@dataclass(frozen=True, slots=True)
class Budget:
    """types: of every matrix by its name in the file. nbytes: of the whole file; bits: a weight, over all tensors. foretold: the
    sum of the rows' losses; divergence, error: mean KL of the model with these types from the one without, nats a token, on the
    held-out ids, and its standard error. least, most: bytes of the smallest file and of the one that no bytes make better."""

    types: dict[str, str]
    rows: tuple[Row, ...]
    nbytes: int
    bits: float
    foretold: float
    divergence: float
    error: float | None
    least: int
    most: int
    notes: tuple[str, ...] = field(default=())


def solve(
    source: Path,
    *,
    nbytes: int | None = None,
    bits: float | None = None,
    importance: Importance | None = None,
    ids: Ids,
    progress: Progress | None = None,
    folder: Path | None = None,
    allowed: Sequence[str] | None = None,
    fields: Mapping[str, object] | None = None,
) -> Budget:
    """The mixture for a folder of weights or a .gguf file. nbytes: of the whole file; bits: a weight; one of the two.

    ids [N, T]: text; two thirds of the sequences are for gradients, one for running. folder: keeps what was measured, and a killed
    run goes on from it; another budget of the same folder measures nothing again but its mixture. allowed: only these types.
    fields: keys of the header besides the source's, as compress/quantize will write them; they count as bytes of the file.
    Raises ValueError for a budget that no mixture fits, naming the least and the most.
    """
    from gangpao.tune.base.load import load_base

    layout, candidates = fitting(source, nbytes=nbytes, bits=bits, allowed=allowed, fields=fields)
    base = load_base(source, storage="fp32", dtype=torch.float32)
    learn, check = _split(ids)
    identity = {
        "version": _VERSION, "model": base.sha256, "ids": hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest(),
        "importance": importance.digest(candidates) if importance else "",
        "types": sorted({k for c in candidates.values() for k in c}),
    }  # fmt: skip
    progress = progress or Silent()
    with store(folder, identity) as kept:
        watch(base.model)
        errors = Errors(candidates, layout.stored, importance)
        counter = _Counter(layout, progress)
        counter.start("sensitivity", layout.matrices)
        scores = Measurement(base.model, learn, errors, folder).run(kept.get, kept.put, counter)
        runner = _Runner(Probe(base.model, check, layout.stored, importance), kept)
        asked = probes(layout, candidates)
        counter.start("kinds of tensors", [name for _, types in asked for name in types])
        ratios = ratios_of(layout, scores, asked, lambda types: counter.after(runner(types), types))
        return _solved(layout, candidates, scores, ratios, runner, nbytes, bits)


class _Counter:
    """Progress in bytes of the tensors as the source stores them, which is about as the work is."""

    def __init__(self, layout: Layout, progress: Progress) -> None:
        self._layout, self._progress, self._done = layout, progress, 0

    def _bytes(self, names: Iterable[str]) -> int:
        return sum(self._layout.nbytes(name, self._layout.stored[name]) for name in names)

    def start(self, label: str, names: Iterable[str]) -> None:
        """Begin a task over these tensors."""
        self._done = 0
        self._progress.start(label, self._bytes(names))

    def __call__(self, names: Iterable[str]) -> None:
        """So many more are done."""
        self._done += self._bytes(names)
        self._progress.update(self._done)

    def after(self, found: list[float], names: Iterable[str]) -> list[float]:
        """The same, with a result passed on."""
        self(names)
        return found


class _Runner:
    """Runs mixtures that were not run before."""

    def __init__(self, probe: Probe, kept: Any) -> None:
        self._probe, self._kept = probe, kept

    def __call__(self, types: Mapping[str, str]) -> list[float]:
        key = key_of_mixture(types)
        known = self._kept.get(key)
        if known is None:
            known = {"types": dict(types), "divergence": self._probe.divergence(types)}
            self._kept.put(key, known)
            listed = [*(self._kept.get("mixtures") or []), key]
            self._kept.put("mixtures", listed)
        found: list[float] = known["divergence"]
        return found

    def whole(self, names: Sequence[str]) -> list[dict[str, str]]:
        """All mixtures of these tensors that were ever run."""
        found = [self._kept.get(key)["types"] for key in self._kept.get("mixtures") or []]
        return [types for types in found if types.keys() == set(names)]


def fitting(
    source: Path,
    *,
    nbytes: int | None = None,
    bits: float | None = None,
    allowed: Sequence[str] | None = None,
    fields: Mapping[str, object] | None = None,
) -> tuple[Layout, dict[str, list[str]]]:
    """The file of a budget and the types that each matrix may take; only the source's header is read.

    Raises ValueError where a tensor has no type, and where the budget is below the smallest mixture.
    """
    if (nbytes is None) == (bits is None):
        raise ValueError("give a budget in bytes or in bits a weight, one of the two")
    layout = layout_of(source, fields)
    candidates = {name: layout.candidates(name, allowed) for name in layout.matrices}
    if empty := [name for name, kinds in candidates.items() if not kinds]:
        raise ValueError(f"{empty[0]}: none of the types that are allowed has blocks that fit its rows; allow F16 too")
    small, large = ({name: kinds[at] for name, kinds in candidates.items()} for at in (0, -1))
    limits = f"the least is {_said(layout, small)}, the most {_said(layout, large)}"
    if nbytes is not None and nbytes < layout.file_bytes(small):
        raise ValueError(f"no file of this model has {nbytes:,} bytes: {limits}")
    if bits is not None and not (math.isfinite(bits) and bits >= layout.bits(small)):
        raise ValueError(f"no file of this model has {bits:g} bits a weight: {limits}")
    return layout, candidates


def _said(layout: Layout, types: Mapping[str, str]) -> str:
    size = layout.file_bytes(types)
    return f"{size:,} bytes ({show_bytes(size)}, {math.ceil(1000 * layout.bits(types)) / 1000:.3f} bits a weight)"


def _split(ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences for gradients and for running, spread over all of the ids, so that every language is in both."""
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"ids: {list(ids.shape)}; give sequences [N, T] of at least two ids")
    time = min(_TIME, ids.shape[1])
    pieces = ids[:, : ids.shape[1] // time * time].reshape(-1, time)
    if len(pieces) < 3:
        raise ValueError(
            f"ids: {len(pieces)} sequences of {time}; give three or more: two thirds to learn, one to check"
        )
    held = np.arange(len(pieces)) % 3 == 2
    return _some(pieces[~held], _GRADIENT_IDS), _some(pieces[held], _CHECK_IDS)


def _some(pieces: Ids, most: int) -> torch.Tensor:
    count = max(1, min(len(pieces), most // pieces.shape[1]))
    chosen = np.unique(np.linspace(0, len(pieces) - 1, count).round().astype(int))
    return torch.from_numpy(np.ascontiguousarray(pieces[chosen]))


def _solved(
    layout: Layout,
    candidates: Mapping[str, Sequence[str]],
    scores: Scores,
    ratios: Ratios,
    runner: _Runner,
    nbytes: int | None,
    bits: float | None,
) -> Budget:
    names = layout.matrices
    losses = {
        name: {kind: mean(scores[name][kind]) * ratios.at(name, kind) for kind in candidates[name]} for name in names
    }
    if nbytes is not None:
        size, limit = layout.padded, nbytes - layout.base()
    else:
        assert bits is not None
        fixed = sum(layout.nbytes(name, kind) for name, kind in layout.fixed.items())
        size, limit = layout.nbytes, math.floor(bits * layout.weights / 8 + 1e-6) - fixed
    groups = [[solver.Option(size(name, kind), losses[name][kind]) for kind in candidates[name]] for name in names]

    def fits(types: Mapping[str, str]) -> bool:
        return sum(size(name, types[name]) for name in names) <= limit

    for chosen in (solver.best(groups, limit), solver.nested(groups, limit)):
        runner({name: candidates[name][i] for name, i in zip(names, chosen, strict=True)})
    fitting = [types for types in runner.whole(names) if fits(types)]
    types = min(fitting, key=lambda types: (mean(runner(types)), layout.file_bytes(types)))
    least, most = solver.limits(
        [[solver.Option(layout.padded(n, k), losses[n][k]) for k in candidates[n]] for n in names]
    )
    came = runner(types)
    rows = tuple(_row(layout, name, types[name], candidates[name], losses[name]) for name in names)
    return Budget(
        dict(types), rows, layout.file_bytes(types), layout.bits(types), math.fsum(row.loss for row in rows), mean(came),
        mean_error(came), layout.base() + least, layout.base() + most, _notes(layout, limit, groups, ratios),
    )  # fmt: skip


def _row(layout: Layout, name: str, kind: str, candidates: Sequence[str], losses: Mapping[str, float]) -> Row:
    now = layout.nbytes(name, kind)
    better = [k for k in candidates if layout.nbytes(name, k) > now and losses[k] < losses[kind]]
    row = Row(name, layout.tensors[name], kind, now, losses[kind])
    if not better:
        return row
    step = max(better, key=lambda k: (losses[kind] - losses[k]) / (layout.nbytes(name, k) - now))
    more, saves = layout.nbytes(name, step) - now, losses[kind] - losses[step]
    return Row(name, row.shape, kind, now, row.loss, step, more, saves)


def _notes(layout: Layout, limit: int, groups: Sequence[solver.Options], ratios: Ratios) -> tuple[str, ...]:
    found = []
    most = solver.limits(groups)[1]
    if limit > most:
        found.append(f"{show_bytes(limit - most)} of the budget are left: no type makes this model better")
    factors = ", ".join(
        f"{kind} {'/'.join(f'{ratio:.2f}' for _, ratio in sorted(points))}" for kind, points in ratios.points.items()
    )
    found.append(f"running over gradients, by kind at few and at more bits: {factors}")
    return tuple(found)


def summary(budget: Budget) -> str:
    """What came of it, in two lines."""
    plus = "" if budget.error is None else f" ± {budget.error:.2g}"
    counted = show_count(len(budget.rows))
    kinds = len({kind_of(row.tensor) for row in budget.rows})
    return (
        f"{budget.nbytes:,} bytes ({show_bytes(budget.nbytes)}), {budget.bits:.3f} bits a weight, {counted} matrices of {kinds} "
        "kinds\n"
        f"KL divergence {budget.divergence:.5f}{plus} nats a token on held-out ids, {budget.foretold:.5f} foretold"
    )
