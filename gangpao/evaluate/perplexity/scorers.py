"""Who computes: windows of ids to log-probabilities of their tokens, or to whole rows of logits.

The engine takes many windows in one step (engine/score.py), and every number has the same bits whatever runs beside it. The
checkpoint in torch takes one window at a time, because a product of several rows at once may round differently; its weights are
computed with in float32. Both take logarithms with the engine's own functions, which give the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine import exact, score
from gangpao.engine.generate import Engine
from gangpao.engine.head.output import LOGIT_ROWS
from gangpao.engine.memory import EngineOptions
from gangpao.engine.transformer import CHUNK, Segment
from gangpao.evaluate.models.load import is_url, load_engine, used_adapters
from gangpao.evaluate.perplexity.windows import Window
from gangpao.evaluate.results import ModelFacts, sha256_of
from gangpao.text.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_ROW_BYTES = 64 << 20  # of logits that are in memory at once
_BESIDE = 1024  # positions for windows beside the longest one, so that steps are full
DEFAULT = EngineOptions()


class Scorer(Protocol):
    """A model that gives probabilities. vocab_size: logits of a row. limit: the longest window it takes.

    settings: what of the set-up changes scores.
    """

    facts: ModelFacts
    settings: dict[str, Any]
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
    rows = kernels.Array(min(LOGIT_ROWS, len(logits)), logits.shape[1])
    view, found = rows.numpy(), list[float]()
    for begin in range(0, len(logits), LOGIT_ROWS):
        part = logits[begin : begin + LOGIT_ROWS]
        view[: len(part)] = part
        found += exact.log_sum_exps(rows, len(part))
    if not np.isfinite(found).all():
        raise ValueError(
            "the model's logits are not finite: the model file is damaged or not supported correctly; check it with `gangpao show`"
        )
    return np.array(found)


class EngineScorer:
    """Our engine, with the adapters that it uses; adapters: what is to be told of them. Its pages of keys and values are made for
    the longest window, and so are the angles of positions (longrope)."""

    def __init__(
        self, engine: Engine, facts: ModelFacts, *, float32: bool = False, adapters: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer, self.facts = engine.tokenizer, facts
        self.vocab_size, self.limit = engine.model.config.vocab_size, engine.context
        self.settings: dict[str, Any] = {
            "kv": engine.kv_dtype, "computed_in": "float32" if float32 else "int8 where weights are of few bits"
        }  # fmt: skip
        self.settings |= {"adapters": dict(adapters)} if adapters else {}
        self._engine = engine
        self.prepare(engine.context)

    def prepare(self, context: int) -> None:
        self._scores = score.Scorer(replace(self._engine, context=context), context + _BESIDE)
        self._pool = self._engine.model.new_pool(context, self._engine.kv_dtype)

    def log_probs(self, windows: Iterable[Window]) -> Iterator[Doubles]:
        items = ((w.ids[: w.first].tolist(), [w.ids[w.first :].tolist()]) for w in windows)
        early: dict[int, Doubles] = {}
        following = 0
        for number, (scored,) in self._scores.score(items):
            early[number] = np.array(scored.logprobs)
            while following in early:
                yield early.pop(following)
                following += 1

    def rows(self, window: Window) -> Iterator[Floats]:
        cache, step = self._pool.new(), self._engine.model.step
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

    def __init__(self, folder: Path) -> None:
        import torch

        from gangpao.model import weights

        self.tokenizer = Tokenizer.from_dir(folder)
        self._model = weights.load(folder, dtype=torch.float32).eval()
        config = self._model.config
        self.vocab_size, self.limit = config.vocab_size, config.max_position_embeddings
        self.settings: dict[str, Any] = {"computed_in": "float32"}
        files = weights.weight_files(folder)
        self.facts = ModelFacts(
            name=folder.parent.name if folder.name == "export" else folder.name, kind="checkpoint", sha256=sha256_of(files),
            bytes=sum(file.stat().st_size for file in files), architecture=config.model_type, context=self.limit,
            parameters=sum(p.numel() for p in self._model.parameters()),
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


def open_scorer(
    model: str,
    options: EngineOptions = DEFAULT,
    *,
    float32: bool = False,
    adapters: Mapping[str, tuple[Path, float]] | None = None,
) -> Scorer:
    """A scorer of a name of the catalog or a .gguf file by our engine, or of a checkpoint folder or a training run by torch.

    float32: the engine computes with such weights and activations (torch always does). adapters: of the engine, name -> file and
    scale.

    Raises ValueError for what is no model, for a server, and for adapters on a folder.
    """
    if is_url(model):
        raise ValueError(
            f"{model:.80}: perplexity takes no server, which gives no probabilities of a whole vocabulary: give a model's name, a "
            ".gguf file or a folder of weights"
        )
    folder = Path(model).expanduser()
    if (folder / "run.json").is_file():
        folder = folder / "export"
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder}: a folder without config.json; give a .gguf file or a Hugging Face folder")
        if adapters:
            raise ValueError(
                f"--adapter: {folder} is computed by torch, which takes none here; merge it (gangpao merge)"
            )
        return TorchScorer(folder)
    engine, facts = load_engine(model, options, float32=float32, adapters=adapters)
    return EngineScorer(engine, facts, float32=float32, adapters=used_adapters(adapters))


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
