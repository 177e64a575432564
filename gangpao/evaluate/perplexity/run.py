"""A measurement from texts to a result: survey, compute what no earlier run did, add up, write.

With a folder every window's answer is in its journal before the next one is asked for, and a run that was killed goes on behind
the last one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gangpao import machine
from gangpao.cost import Meter
from gangpao.evaluate import results
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.perplexity import base_logits, divergence, tally, texts
from gangpao.evaluate.perplexity.base_logits import BaseLogits, BaseLogitsWriter
from gangpao.evaluate.perplexity.material import Material, Piece
from gangpao.evaluate.perplexity.scorers import Scorer, blocks, check_same_vocabulary, norms
from gangpao.evaluate.perplexity.statistics import perplexity_of
from gangpao.evaluate.perplexity.windows import Window, Windowing
from gangpao.progress import Progress, Silent

_BATCH = 256  # windows that the engine may take together


class _Computation:
    """Answers to windows: by one model, beside another or its saved rows, written to a file or not."""

    def __init__(self, scorer: Scorer, base: Scorer | BaseLogits | None, writer: BaseLogitsWriter | None) -> None:
        self.scorer, self.base, self.writer = scorer, base, writer
        self._last = time.perf_counter()

    def _seconds(self) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed

    def answers(self, pieces: Sequence[tuple[int, Piece]]) -> Iterator[tuple[int, tally.Answer]]:
        """For each numbered window its answer, in order."""
        if self.base is None and self.writer is None:
            found = self.scorer.log_probs(piece.window for _, piece in pieces)
            for (number, _), log_probs in zip(pieces, found, strict=True):
                yield number, tally.answer_of(log_probs, None, self._seconds())
            return
        for number, piece in pieces:
            yield number, self._by_rows(number, piece)

    def _by_rows(self, number: int, piece: Piece) -> tally.Answer:
        window, done = piece.window, 0
        found, compared, saved = [], [], []
        ours = self.scorer.rows(window)
        theirs = self._base_rows(number, window)
        for block, logits, base in zip(blocks(window, self.scorer.vocab_size), ours, theirs, strict=True):
            targets = window.ids[block.start : block.stop]
            levels = norms(logits)
            found.append(logits[np.arange(len(targets)), targets] - levels)
            if base is not None:
                cut = isinstance(self.base, BaseLogits)
                compared.append(divergence.compare(base, logits, levels, targets, cut))
            if self.writer is not None:
                saved.append(base_logits.packed(logits, levels))
            done += len(targets)
        assert done == window.counted
        joined = divergence.Compared.joined(compared) if compared else None
        answer = tally.answer_of(np.concatenate(found), joined, self._seconds())
        if self.writer is not None:
            ids = window.ids.copy()
            ids[0] = window.original
            answer["crc"] = self.writer.write(number, ids, np.concatenate(saved))
        return answer

    def _base_rows(self, number: int, window: Window) -> Iterator[Any]:
        """Log-probabilities [R, V] of the base in the same blocks; None where there is no base."""
        each = blocks(window, self.scorer.vocab_size)
        if self.base is None:
            yield from (None for _ in each)
        elif isinstance(self.base, BaseLogits):
            rows, vocabulary = self.base.rows(number), self.base.shape.vocabulary
            for block in each:
                part = rows[block.start - window.first : block.stop - window.first]
                yield np.stack([base_logits.unpacked(row, vocabulary) for row in part])
        else:
            for logits in self.base.rows(window):
                yield logits.astype(np.float64) - norms(logits)[:, None]

    def still_there(self, number: int, answer: Mapping[str, Any]) -> bool:
        """Whether what an earlier run wrote for a window is still there."""
        return self.writer is None or self.writer.holds(number, answer.get("crc", -1))


def run_perplexity(
    scorer: Scorer,
    given: Sequence[str | Path],
    *,
    windowing: Windowing | None = None,
    against: Scorer | Path | None = None,
    save: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    profile: str | None = None,
) -> results.RunResult:
    """Perplexity and bits per byte of texts by a model; beside another model or its saved log-probabilities also divergence.

    given: see texts.text_files; may be empty where `against` is a file, whose own ids are then taken. windowing: strided with
    1024 and 512 if not given (a file's own against a file). limit: windows of each part. save: write llama.cpp's file. out: a
    folder for results.json, items and the journal that a killed run goes on from. Raises ValueError saying what to do.
    """
    base = BaseLogits(against) if isinstance(against, Path) else against
    if save is not None and isinstance(against, Path) and save.resolve() == against.resolve():
        raise ValueError(
            f"{save}: the file that is compared with cannot be written at the same time; give --save another name"
        )
    windowing = _windowing(windowing, base, scorer, save)
    material = Material(
        scorer.tokenizer, texts.text_files(given), windowing, base if isinstance(base, BaseLogits) else None, limit
    )
    survey = material.survey
    settings = _settings(scorer, windowing, base)
    meter = Meter(profile)
    identity = {
        "model": scorer.facts.model_dump(), "texts": survey.digest, "limit": limit, "settings": settings, "save": str(save),
    }  # fmt: skip
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(out, identity)) if out is not None else None
        writer = None
        if save is not None:
            shape = base_logits.Shape(windowing.context, scorer.vocab_size, survey.windows)
            writer = BaseLogitsWriter(save, shape)
            stack.callback(writer.close if journal is not None else writer.discard)
        computation = _Computation(scorer, base, writer)
        total = _computed(material, computation, journal, progress or Silent())
        if writer is not None:
            writer.finish()
        result = _result(scorer, material, total, settings | {"cost_profile": meter.name}, meter)
        if out is not None and journal is not None:
            result = result.model_copy(update={"notes": [*result.notes, *journal.warnings]})
            results.write_items(out, material.name, _items(material, journal, scorer))
            results.write_run(out, result)
    return result


def _windowing(
    given: Windowing | None, base: Scorer | BaseLogits | None, scorer: Scorer, save: Path | None
) -> Windowing:
    """How to cut, checked against model, file and what is to be saved."""
    if isinstance(base, BaseLogits):
        own = Windowing(base.shape.context)
        if given is not None and given != own:
            raise ValueError(
                f"{base.path}: its windows are llama.cpp's, of {own.context} ids; leave out --context and --stride"
            )
        given = own
        if base.shape.vocabulary != scorer.vocab_size:
            raise ValueError(
                f"{base.path}: its vocabulary has {base.shape.vocabulary} tokens and that of {scorer.facts.name} "
                f"{scorer.vocab_size}: there is no divergence between them. Compare bits per byte instead"
            )
    elif base is not None:
        check_same_vocabulary(base, scorer)
    if given is None:
        context = min(1024, scorer.limit)
        given = Windowing(context, context // 2)
    if save is not None and given.stride is not None:
        raise ValueError(f"{save}: llama.cpp's file holds llama.cpp's windows only: add --llama-cpp")
    for one in (scorer, base):
        if one is None or isinstance(one, BaseLogits):
            continue
        if given.context > one.limit:
            raise ValueError(
                f"windows of {given.context} ids, and {one.facts.name} takes {one.limit}: give a smaller --context"
            )
        one.prepare(given.context)
    return given


def _settings(scorer: Scorer, windowing: Windowing, base: Scorer | BaseLogits | None) -> dict[str, Any]:
    bos = "every window" if windowing.stride is None else "every document"
    settings: dict[str, Any] = {
        "windowing": windowing.name, "context": windowing.context, "stride": windowing.stride,
        "bos": bos if scorer.tokenizer.adds_bos else "none", **scorer.settings,
    }  # fmt: skip
    if isinstance(base, BaseLogits):
        settings["against"] = {"file": base.path.name, "digest": base.digest()}
    elif base is not None:
        settings["against"] = base.facts.model_dump()
    return settings


def _computed(
    material: Material, computation: _Computation, journal: Journal | None, progress: Progress
) -> tally.Tally:
    """Every window's answer, from the journal or computed now, added up."""
    total, done = tally.Tally(), 0
    numbered = enumerate(material.pieces())
    progress.start(material.name, material.survey.bytes)
    while batch := list(itertools.islice(numbered, _BATCH)):
        known: dict[int, tally.Answer] = {}
        for number, _ in batch if journal is not None else ():
            answer = journal.take(str(number), tally.stored) if journal is not None else None
            if answer is not None and computation.still_there(number, answer):
                known[number] = answer
        missing = [(number, piece) for number, piece in batch if number not in known]
        sizes = {number: piece.window.bytes for number, piece in batch}
        done += sum(sizes[number] for number in known)
        for number, answer in computation.answers(missing):
            known[number] = answer
            if journal is not None:
                journal.put(str(number), answer)
            done += sizes[number]
            progress.update(done)
        for number, piece in batch:
            window = piece.window
            total.add((piece.document, piece.part, piece.language), known[number], window.counted, window.bytes)
            total.computed += len(window.ids) - 1
    total.finish()
    return total


def _result(
    scorer: Scorer, material: Material, total: tally.Tally, settings: dict[str, Any], meter: Meter
) -> results.RunResult:
    survey = material.survey
    common = {
        "task": material.name,
        "of": survey.of,
        "data": f"sha256 {survey.digest}",
        "left_out": dict(survey.left_out),
    }
    scope = total.total
    notes = [
        "Bits per byte are those of the raw UTF-8 text that the counted tokens stand for.",
        f"Standard errors are over {'documents' if scope.clusters is scope.documents else 'windows'}.",
    ]
    if scope.naive_stderr is not None:
        notes.append(
            f"llama-perplexity, which takes tokens for independent, would say +/- {scope.naive_stderr:.5f} for the perplexity."
        )
    if isinstance(settings.get("against"), dict) and "file" in settings["against"]:
        notes.append(
            "The saved base has what is rarer than e^-16 of its likeliest token as that: perplexity_base is a little too low."
        )
    return results.RunResult(
        **results.provenance(),
        model=scorer.facts,
        suite="perplexity",
        limit=material.limit,
        settings=settings,
        tasks=tally.task_results(total, common, bits_first=material.windowing.stride is not None),
        speed=results.Speed(prefill_tps=total.computed / total.seconds if total.seconds else None, rss_mb=machine.rss_mb()),
        seconds=total.seconds,
        tokens={"prompt": total.computed, "counted": int(scope.windows.over_tokens["nll"].n)},
        yuan=meter.yuan(total.seconds),
        notes=notes,
    )  # fmt: skip


def _items(material: Material, journal: Journal, scorer: Scorer) -> Iterable[results.Item]:
    """A line for every window: its text and ids, what counted, and its scores."""
    decode = scorer.tokenizer.decode
    for number, piece in enumerate(material.pieces()):
        window, answer = piece.window, journal.get(str(number))
        nll, counted = answer["nll"], window.counted
        scores = {"nll": nll, "perplexity": perplexity_of(nll, counted)}
        if window.bytes:
            scores["bits_per_byte"] = nll / window.bytes / float(np.log(2))
        if "kld" in answer:
            scores |= {
                "kl_divergence": float(tally.values_of(answer, "kld").mean()),
                "same_top": answer["same"] / counted,
            }
        yield results.Item(
            item=f"{piece.name}@{window.start}",
            prompt=decode(window.ids[: window.first].tolist(), keep_special=True, start=window.start == 0),
            ids=window.ids.tolist(),
            answers=[
                results.Answer(
                    text=decode(window.ids[window.first :].tolist(), keep_special=True, start=False),
                    logprob=-nll,
                    tokens=counted,
                )
            ],
            scores=scores,
            extra={"part": piece.part, "language": piece.language, "first": window.first, "bytes": window.bytes},
        )
