"""Models one after the other beside the first, the reference: texts, answers, speed. Start reading here.

With a folder everything is written down as it is measured, and a comparison that was killed goes on. In memory are the
reference and the model that is compared with it.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gangpao import atomic, catalog, cost, machine
from gangpao.compress.compare import answers as answers_
from gangpao.compress.compare import quality as quality_
from gangpao.compress.compare.answers import Asking, Said, Summary, summaries
from gangpao.compress.compare.prompts import read_prompts
from gangpao.compress.compare.quality import Quality
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate import results
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.models.load import load_engine
from gangpao.evaluate.perplexity.scorers import EngineScorer
from gangpao.evaluate.pricing.workload import Workload, yuan_per_million
from gangpao.evaluate.results import ModelFacts
from gangpao.options import option
from gangpao.progress import Progress, Silent

# Engine, tokens of prompt, tokens to decode, repetitions -> tok/s of prefill and of decode, of each repetition.
MeasureSpeed = Callable[[Engine, int, int, int], tuple[list[float], list[float]]]
_PROMPT_TOKENS, _DECODE_TOKENS, _REPEAT = 256, 32, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is compared."""

    text: tuple[str, ...] = option(
        (), "Text, .jsonl or folder to compare on, NAME=PATH names a part; repeatable. Ours if not given."
    )
    prompts: Path | None = option(
        None, "Prompts to answer: a line each, or .jsonl. Ours (10 English, 10 Chinese) if not given."
    )
    max_tokens: int = option(512, "End answers after so many tokens.", 1, 1_000_000)
    drawn: int = option(1, "Answers to each prompt at the reference's own sampling, besides the greedy one.", 0, 100)
    think: bool | None = option(
        None, "Switch a model's thinking, where its template can.", flag="--think/--no-think", unset="the model's own"
    )
    limit: int | None = option(None, "Windows of each part of the texts, and prompts, at most.", 1)
    batch: int = option(8, "Answers at a time.", 1, 256)
    answers: bool = option(True, "Ask for answers.", flag="--answers/--no-answers")
    speed: bool = option(True, "Measure tok/s.", flag="--speed/--no-speed")


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of one conversation, medians, and yuan for a million tokens of answers on this machine. times: decode over
    the reference's, measured in the same minute; busy: what others did with the machine meanwhile."""

    prefill_tps: float
    decode_tps: float
    yuan_per_million: float
    times: float
    busy: str


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of one model. no_divergence: why there is none from the reference."""

    facts: ModelFacts
    quality: Sequence[Quality]
    answers: Sequence[Summary]
    said: Sequence[Said]
    speed: Speed | None
    no_divergence: str = ""

    @property
    def bits(self) -> float:
        """Bits of the file a weight."""
        return 8 * self.facts.bytes / self.facts.parameters if self.facts.parameters else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """All models, the reference first; how it was asked. own_texts: whether they are ours."""

    models: Sequence[Model]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    own_texts: bool
    cost_profile: str
    notes: Sequence[str] = field(default=())


def run(
    names: Sequence[str],
    settings: Settings,
    options: EngineOptions,
    *,
    measure_speed: MeasureSpeed | None,
    out: Path | None = None,
    profile: str | None = None,
    progress: tuple[Progress, Progress] | None = None,
    labels: Sequence[str] = (),
) -> Comparison:
    """Compare models by name, path or folder with the first of them. progress: in bytes, and in answers. labels: what they are
    called in tables, in place of their own names.

    Raises ValueError saying what to do.
    """
    if len(names) < 2:
        raise ValueError("name two models at least: gangpao compare REFERENCE SMALLER.gguf; the first is the reference")
    asked = read_prompts(settings.prompts)[: settings.limit] if settings.answers else []
    chosen, prices = cost.get_profile(profile)
    with ExitStack() as stack:
        texts = (out or Path(stack.enter_context(tempfile.TemporaryDirectory()))) / "texts"
        work = _Work(
            settings,
            options,
            quality_.parts_of(settings.text, texts),
            asked,
            measure_speed,
            prices,
            progress or (Silent(), Silent()),
            out,
        )
        models = [work.model(i, name, labels[i] if labels else None) for i, name in enumerate(names)]
    comparison = Comparison(
        models, _told(settings, work), results.provenance(), not settings.text, chosen, tuple(work.notes)
    )
    if out is not None:
        atomic.write_json(out / "compare.json", as_json(comparison))
    return comparison


def _told(settings: Settings, work: _Work) -> dict[str, Any]:
    return {
        "max_tokens": settings.max_tokens, "drawn": settings.drawn, "sampling": dict(work.sampling), "prompts": len(work.asked),
        "think": settings.think, "limit": settings.limit, "kv": work.options.kv, "texts": list(work.parts),
    }  # fmt: skip


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it but the answers themselves, which lie in the journals."""
    found = asdict(comparison)
    for one, model in zip(found["models"], comparison.models, strict=True):
        one["facts"] = model.facts.model_dump()
        one["bits_per_weight"] = model.bits
        for said in one["said"]:
            del said["text"], said["thinking"]
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


class _Work:
    """What all models are asked, and the reference while the others are."""

    def __init__(
        self,
        settings: Settings,
        options: EngineOptions,
        parts: dict[str, list[str]],
        asked: Sequence[Any],
        measure_speed: MeasureSpeed | None,
        prices: cost.CostProfile,
        progress: tuple[Progress, Progress],
        out: Path | None,
    ) -> None:
        self.settings, self.options, self.parts, self.asked = settings, options, parts, asked
        self.sampling: dict[str, float] = {}
        self.notes: list[str] = []
        self._measure_speed, self._prices, self._progress, self._out = measure_speed, prices, progress, out
        self._reference: EngineScorer | None = None
        self._engine: Engine | None = None
        self._said: Sequence[Said] = ()

    def model(self, number: int, name: str, label: str | None) -> Model:
        """Everything of one model; the first becomes the reference."""
        engine, facts = load_engine(name, self.options)
        sampling: dict[str, Any] = {**catalog.sampling_of(facts.name)}
        if label is not None:
            facts = facts.model_copy(update={"name": label})
        short = re.sub(r"[^\w.-]+", "-", facts.name)
        folder = None if self._out is None else self._out / f"{number + 1}-{short}"
        first = self._engine is None
        if first:
            given: dict[str, Any] = dict(sampling)
            params = engine.recommended(**given)
            self.sampling = {
                key: getattr(params, key) for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            }
        scorer = quality_.scorer_of(engine, facts)
        why = "" if self._reference is None else quality_.comparable(self._reference, scorer)
        reference = None if why else self._reference
        found = quality_.measure(scorer, reference, self.parts, folder, self.settings.limit, self._progress[0])
        self._progress[0].close()
        if first:
            self._engine, self._reference = engine, scorer
        said = self._answers(engine, facts, folder, first) if self.settings.answers else []
        speed = self._speed(engine, facts, folder)
        return Model(facts, found, summaries(said), said, speed, why)

    def _answers(self, engine: Engine, facts: ModelFacts, folder: Path | None, first: bool) -> list[Said]:
        assert self._engine is not None
        settings = self.settings
        most = min(settings.max_tokens, engine.context - 1)
        if most < settings.max_tokens:
            self.notes.append(f"{facts.name} holds {engine.context} tokens of prompt and answer: its answers end there")
        asking = Asking(self.asked, most, settings.drawn, self.sampling, settings.think)
        model = EngineModel(engine, facts, batch=settings.batch)
        done = 0

        def on_answer(*_: object) -> None:
            nonlocal done
            done += 1
            self._progress[1].update(done)

        self._progress[1].start(f"answers of {facts.name}", len(self.asked) * (1 + settings.drawn))
        with ExitStack() as stack:
            stack.callback(model.close)
            where = folder / "answers" if folder is not None else None
            where = where or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            journal = stack.enter_context(Journal(where, {"model": facts.sha256, "settings": dict(model.settings)}))
            said = answers_.answer(
                model, asking, journal, self._engine.tokenizer, None if first else self._said, on_answer
            )
        self._progress[1].close()
        if first:
            self._said = said
        return said

    def _speed(self, engine: Engine, facts: ModelFacts, folder: Path | None) -> Speed | None:
        """Measured once: one that was killed behind it takes what is written."""
        if self._measure_speed is None or not self.settings.speed:
            return None
        tokens = min(_PROMPT_TOKENS, engine.context // 2)
        path = folder / "speed.json" if folder is not None else None
        if path is not None and path.is_file() and (known := atomic.read_json(path)).get("sha256") == facts.sha256:
            return Speed(**known["speed"])
        watch = machine.Watch()
        before = self._medians(self._engine, tokens) if self._engine is not engine and self._engine else None
        prefill, decode = self._medians(engine, tokens)
        price = yuan_per_million(self._prices, Workload(decode))
        speed = Speed(prefill, decode, price, decode / before[1] if before else 1.0, str(watch.read()))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, {"sha256": facts.sha256, "speed": asdict(speed)})
        return speed

    def _medians(self, engine: Engine, tokens: int) -> tuple[float, float]:
        assert self._measure_speed is not None
        tokens = min(tokens, engine.context // 2)
        prefill, decode = self._measure_speed(engine, tokens, min(_DECODE_TOKENS, engine.context - tokens), _REPEAT)
        return statistics.median(prefill), statistics.median(decode)
