"""What stands on the page of a line: headings, sentences, tables and pictures, from what its stages left; no figure is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangpao import cost
from gangpao.evaluate.fonts import chinese_font
from gangpao.evaluate.report.page import drawing
from gangpao.evaluate.report.page.document import Block, Heading, Paragraph, Picture, Table, Verbatim
from gangpao.forge.quality import quality, score
from gangpao.forge.record import Line, read_line
from gangpao.forge.report.words import Words
from gangpao.page import Language
from gangpao.units import show_bytes, show_seconds, utc_now

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["blocks", "read_line"]


def blocks(line: Line, language: Language) -> list[Block]:
    """The whole page."""
    word = Words(language)
    parts = (_head, _stages, _predicted, _curves, _data, _tuned, _scores, _smaller, _speed, _repeat)
    return [block for part in parts for block in part(line, word)]


def _head(line: Line, word: Words) -> Iterator[Block]:
    yield Heading(1, word("title", name=line.config.name))
    yield Paragraph(word("made", when=utc_now(), profile=cost.get_profile(line.config.cost_profile)[0]))
    makers: dict[str, list[str]] = {}
    for name, record in line.records.items():
        if record.done and record.made_by:
            commit = record.made_by["commit"]
            told = {**record.made_by, "commit": f", {commit[:10]}" if commit else ""}
            makers.setdefault(word("made_by", **told), []).append(name)
    for maker, names in makers.items():
        yield Paragraph(maker if len(makers) == 1 else word("made_of", maker=maker, stages=", ".join(names)))


def _stages(line: Line, word: Words) -> Iterator[Block]:
    meter = cost.Meter(line.config.cost_profile)
    rows = [[word("stage"), word("took"), word("yuan"), word("came")]]
    whole = 0.0
    for name in line.config.stages():
        record = line.records.get(name)
        seconds = 0.0 if record is None else record.spent(line.out)
        whole += seconds
        came = quality(record.facts, word.language) if record is not None and record.done else word("undone")
        rows.append(
            [name, show_seconds(seconds), f"{meter.yuan(seconds):.3g}", came] if record else [name, "", "", came]
        )
    rows.append([word("all"), show_seconds(whole), f"{meter.yuan(whole):.3g}", ""])
    yield Heading(2, word("stages"))
    yield Table(rows, "words")


def _predicted(line: Line, word: Words) -> Iterator[Block]:
    rows = [[word(name) for name in ("size", "tokens", "forecast", "interval", "actual", "error", "inside", "before")]]
    for _, found in line.facts("predicted"):
        for one in found:
            rows.append(
                [
                    one["size"], f"{one['D']:,}", f"{one['predicted']:.4f}", f"{one['low']:.4f} .. {one['high']:.4f}",
                    f"{one['bpb']:.4f}", f"{one['error']:+.2f} %", word.yes(one["inside"]), word.yes(one["before"]),
                ]
            )  # fmt: skip
    if len(rows) > 1:
        yield Heading(2, f"{word('predicted')} ({word('predicted_head')})")
        yield Table(rows)


def _curves(line: Line, word: Words) -> Iterator[Block]:
    from gangpao.train.plot import picture

    runs = [line.out / name for name in ("train", *(n for n in line.records if n.startswith("tune-")))]
    runs = [run for run in runs if (run / "metrics.jsonl").is_file()]
    if runs:
        yield Heading(2, word("curves"))
        yield Paragraph(word("curves_said"))
        yield Picture(f"curves.{word.language}", word("curves"), png=picture(runs))


def _data(line: Line, word: Words) -> Iterator[Block]:
    for _, built in line.facts("built"):
        stages = built["stages"]
        rows = [[word("source"), word("documents"), word("tokens"), *(word("share", stage=stage) for stage in stages)]]
        for name, found in built["sources"].items():
            train = found["train"]
            shares = [
                f"{100 * stages[stage][name]['share']:.1f} %" if name in stages[stage] else "" for stage in stages
            ]
            rows.append([name, f"{train['documents']:,}", f"{train['tokens']:,}", *shares])
        yield Heading(2, word("data"))
        yield Paragraph(word("vocabulary", vocab=built["vocab_size"], fingerprint=built["fingerprint"][:16]))
        yield Table(rows)


def _tuned(line: Line, word: Words) -> Iterator[Block]:
    rows = [
        [word("stage"), word("method"), word("objective"), word("tokens"), word("heldout_first"), word("heldout_last")]
    ]
    for name, one in line.facts("tuned"):
        first, last = one["heldout_first"].get("heldout"), one["heldout"].get("heldout")
        told = [f"{value:.4f}" if value is not None else "" for value in (first, last)]
        rows.append([name, one["method"], one["objective"], f"{one['tokens']:,}", *told])
    if len(rows) > 1:
        yield Heading(2, word("tuned"))
        yield Table(rows)


def _scores(line: Line, word: Words) -> Iterator[Block]:
    rows = [[word("task"), word("metric"), word("value"), word("items")]]
    for _, results in line.facts("results"):
        for result in results:
            for one in result["tasks"]:
                rows.append([one["task"], one["metric"], score(one), f"{one['items']:,}"])
    if len(rows) > 1:
        yield Heading(2, word("scores"))
        yield Table(rows)


def _smaller(line: Line, word: Words) -> Iterator[Block]:
    for _, found in line.facts("compressed"):
        rows = [[word("step"), word("bytes"), word("bits"), word("kl"), word("same_top"), word("perplexity")]]
        for one in found:
            kl, top, bits = one["kl_divergence"], one["same_top"], one["bits_per_weight"]
            perplexity = ", ".join(f"{name} {value:.4g}" for name, value in one["perplexity"].items())
            rows.append(
                [
                    one["step"], show_bytes(one["bytes"]), "" if bits is None else f"{bits:.2f}",
                    "" if kl is None else f"{kl:.4f} ± {one['kl_stderr'] or 0:.2g}", "" if top is None else f"{100 * top:.1f} %",
                    perplexity,
                ]
            )  # fmt: skip
        yield Heading(2, word("smaller"))
        yield Table(rows)
        if len(found) > 1 and any(one["kl_divergence"] is not None for one in found[1:]):
            signs = word if chinese_font() else Words("en")
            yield drawing.picture(word.language, "bytes", word("smaller"), partial(_against_bytes, found, signs))


def _against_bytes(found: Sequence[Mapping[str, Any]], word: Words, figure: Figure) -> None:
    axes = figure.add_subplot()
    first, *others = found
    measured = [(first, 0.0), *((one, one["kl_divergence"]) for one in others if one["kl_divergence"] is not None)]
    for (one, kl), colour, marker in zip(measured, drawing.COLOURS, drawing.MARKERS, strict=False):
        axes.plot(one["bytes"] / 1e6, kl, marker, color=colour, label=drawing.known(one["step"]))
    axes.set_xlabel("MB")
    axes.set_ylabel(word("kl"))
    axes.grid(alpha=0.35)
    drawing.legend(figure, axes)


def _speed(line: Line, word: Words) -> Iterator[Block]:
    for _, one in line.facts("checked"):
        price = one["yuan_per_million"]
        yield Heading(2, word("speed"))
        yield Paragraph(
            word(
                "speed_said", file=Path(one["file"]).name, decode=one["decode_tps"], prefill=one["prefill_tps"],
                price="?" if price is None else f"{price:.3g}", asked=one["asked"], differing=len(one["differing"]),
            )
        )  # fmt: skip
        yield Heading(2, word("answers"))
        yield Table([[word("asked"), word("said")], *([name, text] for name, text in one["texts"].items())], "words")


def _repeat(line: Line, word: Words) -> Iterator[Block]:
    yield Heading(2, word("repeat"))
    yield Paragraph(word("repeat_said"))
    yield Verbatim("\n".join(text for record in line.records.values() for text in record.commands))
