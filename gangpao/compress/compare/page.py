"""A comparison as blocks: the same tables for the terminal and for the page, which has pictures and answers besides."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gangpao
from gangpao.compress.compare import judged, pictures
from gangpao.compress.compare.answers import Said, Summary
from gangpao.compress.compare.prompts import Messages
from gangpao.compress.compare.quality import Quality, Value
from gangpao.compress.compare.run import Comparison, Model
from gangpao.compress.compare.words import WORDS
from gangpao.evaluate.report.page import document
from gangpao.evaluate.report.page.document import Block, Fold, Heading, Paragraph, Table, Verbatim, line
from gangpao.evaluate.statistics import Z95
from gangpao.page import Language
from gangpao.units import show_bytes

_MOST_SHOWN = 3  # answers that did not end, of each model


class Teller:
    """Words in a language."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def __call__(self, name: str, /, **values: Any) -> str:
        return WORDS[self.language][name].format(**values)

    def value(self, value: Value | None, scale: float = 1.0, form: str = ".4g") -> str:
        """With its 95 % interval."""
        if value is None:
            return self("none")
        error = "" if value.error is None else f" ± {Z95 * scale * value.error:.2g}"
        return f"{value.value * scale:{form}}{error}"

    def count(self, count: int, asked: int) -> str:
        return self("of", count=count, asked=asked)


def tables(comparison: Comparison, language: Language) -> list[Block]:
    """What the terminal shows."""
    say = Teller(language)
    found: list[Block] = [Heading(2, say("short")), _short(comparison, say), *_warnings(comparison, say)]
    found += [Heading(2, say("texts")), _texts(comparison, say), Paragraph(say("said.texts"))]
    found.append(Paragraph(say("said.own" if comparison.own_texts else "said.given")))
    found += [
        Paragraph(say("no_divergence", model=line(m.facts.name), why=m.no_divergence))
        for m in comparison.models
        if m.no_divergence
    ]
    if any(model.answers for model in comparison.models):
        found += [Heading(2, say("answers")), _answers(comparison, say), Paragraph(_how(comparison, say))]
    if any(model.speed for model in comparison.models):
        cpu = comparison.provenance["hardware"]["cpu"]
        found += [Heading(2, say("speed")), _speed(comparison, say)]
        found.append(Paragraph(say("said.speed", machine=cpu, profile=comparison.cost_profile)))
    return found + [Paragraph(line(note, 1000)) for note in comparison.notes]


def blocks(comparison: Comparison, language: Language, prompts: Sequence[Messages]) -> list[Block]:
    """The whole page. prompts: what was asked, in its order."""
    say = Teller(language)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    head = say("made", when=now, version=gangpao.__version__, cpu=comparison.provenance["hardware"]["cpu"])
    first, *rest = tables(comparison, language)
    at = next(i for i, block in enumerate(rest) if isinstance(block, Heading))
    return [
        Heading(1, say("title")), Paragraph(head), first, *rest[:at], *pictures.drawn(comparison, language), *rest[at:],
        *_not_ended(comparison, say, prompts), Heading(2, say("who")), _files(comparison, say),
    ]  # fmt: skip


def write(comparison: Comparison, language: Language, prompts: Sequence[Messages], folder: Path) -> list[Path]:
    """compare.<language>.html, which needs nothing else, and compare.<language>.md with its pictures beside it."""
    found = blocks(comparison, language, prompts)
    return [*document.write(folder, "compare", language, Teller(language)("title"), found)]


def _name(comparison: Comparison, model: Model, say: Teller) -> str:
    more = f" ({say('reference')})" if model is comparison.models[0] else ""
    return line(model.facts.name, 60) + more


def _last(model: Model) -> Quality:
    return model.quality[-1]


def _short(comparison: Comparison, say: Teller) -> Table:
    columns = [
        "model",
        "size",
        "bits",
        "growth",
        "divergence",
        "same_top",
        "ended",
        "at_limit",
        "length",
        "decode",
        "yuan",
    ]
    rows = [[say(name) for name in columns]]
    for model in comparison.models:
        q, said = _last(model), model.said
        rows.append(
            [
                _name(comparison, model, say), show_bytes(model.facts.bytes), f"{model.bits:.2f}", _growth(q, say),
                say.value(q.divergence), say.value(q.same_top, 100, ".1f") + (" %" if q.same_top else ""),
                say.count(sum(s.ended for s in said), len(said)) if said else say("none"),
                say.count(sum(s.at_limit for s in said), len(said)) if said else say("none"),
                f"{sum(s.tokens for s in said) / len(said):.0f}" if said else say("none"),
                f"{model.speed.decode_tps:.1f}" if model.speed else say("none"),
                f"{model.speed.yuan_per_million:.2f}" if model.speed else say("none"),
            ]
        )  # fmt: skip
    return Table(rows)


def _growth(q: Quality, say: Teller) -> str:
    return say.value(q.growth, form=".3f")


def _warnings(comparison: Comparison, say: Teller) -> list[Block]:
    found = judged.warnings(comparison)
    if not comparison.models[0].said:
        return []
    if not found:
        return [Paragraph(say("no_warning", asked=len(comparison.models[0].said)))]
    return [
        Paragraph(
            say(f"warn.{w.what}", model=line(w.model), count=w.count, asked=w.asked, reference=w.reference), loud=True
        )
        for w in found
    ]


def _texts(comparison: Comparison, say: Teller) -> Table:
    columns = ["part", "model", "tokens", "perplexity", "growth", "bits_per_byte", "divergence", "high", "same_top"]
    rows = [[say(name) for name in columns]]
    for place, part in enumerate(comparison.models[0].quality):
        for model in comparison.models:
            q = model.quality[place]
            rows.append(
                [
                    part.part, _name(comparison, model, say), f"{q.tokens:,}", say.value(q.perplexity), _growth(q, say),
                    say.value(q.bits_per_byte), say.value(q.divergence),
                    say("none") if q.divergence_99 is None else f"{q.divergence_99:.3g}",
                    say.value(q.same_top, 100, ".1f") + (" %" if q.same_top else ""),
                ]
            )  # fmt: skip
    return Table(rows)


def _answers(comparison: Comparison, say: Teller) -> Table:
    columns = ["model", "how", "ended", "at_limit", "length", "repeated", "loops", "closed", "empty", "same"]
    rows = [[say(name) for name in columns]]
    for model in comparison.models:
        rows += [[_name(comparison, model, say), *_counted(one, say)] for one in model.answers]
    return Table(rows)


def _counted(one: Summary, say: Teller) -> list[str]:
    return [
        say(one.how), say.count(one.ended, one.asked), say.count(one.at_limit, one.asked), f"{one.tokens:.0f}",
        f"{100 * one.repeated:.1f} %", f"{one.loops}", say.count(one.closed, one.thoughts) if one.thoughts else say("none"),
        f"{one.empty}", say("none") if one.same is None else f"{one.same:.0f}",
    ]  # fmt: skip


def _how(comparison: Comparison, say: Teller) -> str:
    settings = comparison.settings
    sampling = ", ".join(f"{name} {value:g}" for name, value in settings["sampling"].items())
    return say(
        "said.answers", prompts=settings["prompts"], max_tokens=settings["max_tokens"], drawn=settings["drawn"],
        sampling=sampling,
    )  # fmt: skip


def _speed(comparison: Comparison, say: Teller) -> Table:
    rows = [[say(name) for name in ("model", "prefill", "decode", "times", "yuan", "busy")]]
    for model in comparison.models:
        if model.speed is not None:
            s = model.speed
            cells = [
                f"{s.prefill_tps:.1f}",
                f"{s.decode_tps:.1f}",
                f"{s.times:.2f}",
                f"{s.yuan_per_million:.2f}",
                s.busy,
            ]
            rows.append([_name(comparison, model, say), *cells])
    return Table(rows)


def _files(comparison: Comparison, say: Teller) -> Table:
    rows = [[say(name) for name in ("model", "size", "bits", "type", "sha256")]]
    for model in comparison.models:
        facts = model.facts
        rows.append([line(facts.name), f"{facts.bytes:,}", f"{model.bits:.3f}", facts.quantization, facts.sha256])
    return Table(rows, "words")


def _not_ended(comparison: Comparison, say: Teller, prompts: Sequence[Messages]) -> list[Block]:
    """A few of the answers that only the reference ended, side by side."""
    first, *others = comparison.models
    found: list[Block] = []
    for model in others:
        pairs = [(a, b) for a, b in zip(first.said, model.said, strict=False) if a.ended and b.at_limit][:_MOST_SHOWN]
        if not pairs:
            continue
        inner: list[Block] = []
        for ours, theirs in pairs:
            prompt = "\n".join(str(m.get("content", "")) for m in prompts[ours.number])
            inner += [Paragraph(say("prompt")), Verbatim(prompt), *_text(first, ours, say), *_text(model, theirs, say)]
        found.append(Fold(say("not_ended", model=line(model.facts.name)), inner))
    return found


def _text(model: Model, said: Said, say: Teller) -> list[Block]:
    whole = f"{said.thinking}\n---\n{said.text}" if said.thinking else said.text
    return [Paragraph(say("from", model=line(model.facts.name), tokens=said.tokens)), Verbatim(whole)]
