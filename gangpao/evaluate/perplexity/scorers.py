"""Who computes: windows of ids to log-probabilities of their tokens, or to whole rows of logits.

The engine takes many windows in one step, and every number has the same bits whatever runs beside it. The checkpoint in torch
takes one window at a time, because a product of several rows at once may round differently; its weights are computed with in
float32. Both take logarithms with the engine's own functions, which give the same bits on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gangpao import catalog
from gangpao.engine import exact
from gangpao.engine.cache import PAGE, KVCache
from gangpao.engine.generate import Engine
from gangpao.engine.transformer import CHUNK, Segment
from gangpao.evaluate.perplexity.windows import Window
from gangpao.evaluate.results import ModelFacts
from gangpao.text.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_ROW_BYTES = 64 << 20  # of logits that are in memory at once
_MOST_SEGMENTS = 16  # windows in a step


class Scorer(Protocol):
    """A model that gives probabilities. vocab_size: logits of a row. limit: the longest window it takes. `prepare` comes first."""

    facts: ModelFacts
    tokenizer: Tokenizer
    vocab_size: int
    limit: int

    def prepare(self, context: int) -> None:
        """Make ready for windows of at most so many ids."""
        ...

    def log_probs(self, windows: Iterable[Window]) -> Iterator[Doubles]:
        """For each window the log-probabilities of its counted tokens, in order."""
        ...

    def rows(self, window: Window) -> Iterator[Floats]:
        """Logits [R, V] that predict a window's counted tokens, in the blocks of `blocks`."""
        ...


def blocks(window: Window, vocab_size: int) -> Iterator[range]:
    """Places of the counted ids, as many at once as fit 64 MB of logits. The same for every model of a vocabulary."""
    at_once = max(16, min(CHUNK, _ROW_BYTES // (4 * vocab_size)))
    for begin in range(window.first, len(window.ids), at_once):
        yield range(begin, min(begin + at_once, len(window.ids)))


def norms(logits: Floats) -> Doubles:
    """log(sum(e^logit)) of every row [R]. Raises ValueError where a row has no finite largest logit."""
    if not np.isfinite(logits.max(axis=1)).all():
        raise ValueError(
            "the model's logits are not finite: the model file is damaged or not supported correctly; check it with `gangpao show`"
        )
    return np.array([exact.log_sum_exp(row) for row in logits])


@dataclass(slots=True)
class _Running:
    """A window on its way through the engine."""

    window: Window
    cache: KVCache
    done: int = 0
    found: list[float] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Ids that are computed: nothing is predicted from the last."""
        return len(self.window.ids) - 1


class EngineScorer:
    """Our engine. Its pages of keys and values are made for the longest window, and so are the angles of positions (longrope)."""

    def __init__(self, engine: Engine, facts: ModelFacts | None = None) -> None:
        config = engine.model.config
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.vocab_size, self.limit = config.vocab_size, engine.context
        self.facts = facts or ModelFacts(
            name=engine.name, kind="gguf", architecture=config.architecture, context=engine.context
        )
        self.prepare(engine.context)

    def prepare(self, context: int) -> None:
        tokens = context + CHUNK + (_MOST_SEGMENTS + 1) * PAGE
        self._pool = self.engine.model.new_pool(context, self.engine.kv_dtype, tokens)

    def log_probs(self, windows: Iterable[Window]) -> Iterator[Doubles]:
        running: list[_Running] = []
        waiting = iter(windows)
        try:
            while True:
                segments = self._fill(running, waiting)
                if not segments:
                    return
                self.engine.model.step([segment for _, segment in segments])
                for one, segment in segments:
                    one.done += len(segment.ids)
                    one.found += [score.logprob for score in segment.scores]
                while running and running[0].done == running[0].end:
                    finished = running.pop(0)
                    self._pool.release(finished.cache)
                    yield np.array(finished.found)
        finally:
            for one in running:
                self._pool.release(one.cache)

    def _fill(self, running: list[_Running], waiting: Iterator[Window]) -> list[tuple[_Running, Segment]]:
        """The next step: what is left of the running windows, then new ones as long as there is room."""
        step: list[tuple[_Running, Segment]] = []
        room = CHUNK
        for one in running:
            step.append((one, self._segment(one, room)))
            room -= len(step[-1][1].ids)
        while room and len(step) < _MOST_SEGMENTS:
            window = next(waiting, None)
            if window is None:
                break
            running.append(_Running(window, self._pool.new()))
            step.append((running[-1], self._segment(running[-1], room)))
            room -= len(step[-1][1].ids)
        return step

    def _segment(self, one: _Running, room: int) -> Segment:
        ids = one.window.ids
        begin, end = one.done, min(one.done + room, one.end)
        reserved = one.cache.reserve(end - begin)
        assert reserved, "the pool is made for what a step can hold"
        places = range(max(begin, one.window.first - 1), end)
        return Segment(one.cache, ids[begin:end], scored=[(at - begin, int(ids[at + 1])) for at in places])

    def rows(self, window: Window) -> Iterator[Floats]:
        cache, step = self._pool.new(), self.engine.model.step
        try:
            for begin in range(0, window.first - 1, CHUNK):
                ids = window.ids[begin : min(begin + CHUNK, window.first - 1)]
                assert cache.reserve(len(ids))
                step([Segment(cache, ids)])
            for block in blocks(window, self.vocab_size):
                ids = window.ids[block.start - 1 : block.stop - 1]
                assert cache.reserve(len(ids))
                yield step([Segment(cache, ids, len(ids))])[0]
        finally:
            self._pool.release(cache)


class TorchScorer:
    """A checkpoint folder of Hugging Face's form, computed in float32 by the lab's own model. Needs the extra `lab`."""

    def __init__(self, folder: Path, facts: ModelFacts | None = None) -> None:
        import torch

        from gangpao.model import weights

        self.tokenizer = Tokenizer.from_dir(folder)
        self._model = weights.load(folder, dtype=torch.float32).eval()
        config = self._model.config
        self.vocab_size, self.limit = config.vocab_size, config.max_position_embeddings
        self.facts = facts or ModelFacts(
            name=folder.name, kind="checkpoint", architecture=config.model_type, context=self.limit,
            **_of_files(weights.weight_files(folder)),
        )  # fmt: skip

    def prepare(self, context: int) -> None:
        assert context <= self.limit

    def log_probs(self, windows: Iterable[Window]) -> Iterator[Doubles]:
        for window in windows:
            found = []
            for block, logits in zip(blocks(window, self.vocab_size), self.rows(window), strict=True):
                targets = window.ids[block.start : block.stop]
                found.append(logits[np.arange(len(targets)), targets] - norms(logits))
            yield np.concatenate(found)

    def rows(self, window: Window) -> Iterator[Floats]:
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(window.ids[:-1])[None]
            hidden = self._model(ids).hidden[0]
            for block in blocks(window, self.vocab_size):
                logits: Any = self._model.logits(hidden[block.start - 1 : block.stop - 1])
                yield logits.numpy()


def open_scorer(model: Scorer | Engine | str | Path, context: int | None = None, threads: int | None = None) -> Scorer:
    """A scorer of an engine, of a name of the catalog or a .gguf file, or of a checkpoint folder (a training run's is its export).

    context: the longest window that is wanted; what the engine takes by itself if not given. Raises ValueError for no model.
    """
    if isinstance(model, Engine):
        return EngineScorer(model)
    if not isinstance(model, str | Path):
        return model
    folder = Path(model).expanduser()
    if (folder / "run.json").is_file():
        folder = folder / "export"
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder}: a folder without config.json; give a .gguf file or a Hugging Face folder")
        return TorchScorer(folder)
    path = catalog.resolve(str(model))
    engine = Engine.load(path, context=context, num_threads=threads)
    facts = ModelFacts(
        name=engine.name, kind="gguf", architecture=engine.model.config.architecture,
        context=engine.model.config.max_position_embeddings, **_of_files([path]),
    )  # fmt: skip
    return EngineScorer(engine, facts)


def _of_files(paths: Sequence[Path]) -> dict[str, Any]:
    """sha256 and bytes of files one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return {"sha256": digest.hexdigest(), "bytes": sum(path.stat().st_size for path in paths)}


def check_same_vocabulary(base: Scorer, model: Scorer) -> None:
    """Raises ValueError saying where the vocabularies differ: probabilities of different tokens cannot be compared."""
    names = f"{base.facts.name} and {model.facts.name}"
    if base.vocab_size != model.vocab_size:
        raise ValueError(
            f"{names} have vocabularies of {base.vocab_size} and {model.vocab_size} tokens: there is no divergence between "
            "them. Compare bits per byte instead"
        )
    one, other = base.tokenizer.vocabulary.pieces, model.tokenizer.vocabulary.pieces
    differing = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    if differing:
        at = differing[0]
        raise ValueError(
            f"{names} have different vocabularies: {len(differing)} of {len(one)} ids mean different pieces, the first is {at}, "
            f"{one[at]!r:.40} and {other[at]!r:.40}. Compare bits per byte instead"
        )


def perplexity_of(nll: float, tokens: float) -> float:
    """e^(nll / tokens); infinity beyond what a float holds, NaN over nothing."""
    if not tokens:
        return math.nan
    return math.exp(nll / tokens) if nll / tokens < 709 else math.inf
