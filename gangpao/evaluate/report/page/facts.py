"""Who answered, on what, and how it was asked; what it cost; what was left out; what thinking did; what else is to be known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gangpao import cost
from gangpao.evaluate.report import compare
from gangpao.evaluate.report.page.document import Block, Fold, Heading, Listing, Paragraph, Table, line
from gangpao.evaluate.report.page.given import LOUD_SHARE, Given, is_limited, machine, number
from gangpao.evaluate.report.page.scores import count
from gangpao.evaluate.report.runs import Run
from gangpao.evaluate.results import TaskResult
from gangpao.units import show_bytes, show_seconds

# --- what nobody may miss


def warnings(given: Given) -> list[Block]:
    """Loud paragraphs for the top of the page: parts of tests, empty answers, many items left out."""
    found = []
    for run in given.runs:
        name = line(run.label)
        part = [f"{given.title(s.task)} ({count(given, s)})" for s in compare.shown(run) if is_limited(s)]
        if part:
            found.append(given.say("limited_loud", run=name, list=given.listed(list(dict.fromkeys(part)))))
        for score in compare.shown(run):
            empty = empty_share(run, score)
            if empty is not None and empty >= LOUD_SHARE:
                found.append(given.say("empty_loud", run=name, task=given.title(score.task), share=f"{empty:.0%}"))
            out = sum(score.left_out.values())
            if out and out >= LOUD_SHARE * score.items:
                reasons = given.listed([f"{given.reason(line(code))} {n:,}" for code, n in score.left_out.items()])
                values = {"run": name, "task": given.title(score.task), "n": f"{out:,}", "items": f"{score.items:,}"}
                found.append(given.say("left_out_loud", **values, reasons=reasons))
    return [Paragraph(text, loud=True) for text in found]


def empty_share(run: Run, score: TaskResult) -> float | None:
    """The share of answers with nothing in them, by what the run says of thinking, else by its items; None where neither tells."""
    if score.thinking is not None:
        return score.thinking.empty
    found = run.found(score) if score.mode not in ("loglikelihood", "perplexity") else {}
    return sum("empty_answer" in one.flags for one in found.values()) / len(found) if found else None


# --- who


def who(given: Given) -> list[Block]:
    """A column for each run: model, file, machine, program, settings."""
    rows = [["", *(line(run.label) for run in given.runs)]]
    facts = [_facts(given, run) for run in given.runs]
    for name in facts[0]:
        values = [one[name] for one in facts]
        if any(values):
            rows.append([given.say(name), *(line(value, 600) or given.say("unknown") for value in values)])
    return [Heading(2, given.say("who")), Table(rows, "words")]


def _facts(given: Given, run: Run) -> dict[str, str]:
    result, model = run.result, run.result.model
    return {
        "model": model.name,
        "kind": model.kind,
        "sha256": model.sha256,
        "bytes": show_bytes(model.bytes) if model.bytes else "",
        "weights": model.quantization,
        "parameters": f"{model.parameters:,}" if model.parameters else "",
        "architecture": model.architecture,
        "context": f"{model.context:,}" if model.context else "",
        "url": model.url,
        "hardware": _pairs(machine(result.hardware)),
        "gangpao": result.gangpao,
        "harness": result.harness,
        "created": result.created,
        "suite": result.suite,
        "limit": f"{result.limit:,}" if result.limit is not None else "",
        "settings": _pairs(result.settings),
        "seconds": f"{result.seconds:,.0f} ({show_seconds(result.seconds)})" if result.seconds else "",
        "tokens_used": _pairs({key: f"{value:,}" for key, value in result.tokens.items()}),
    }


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


# --- how it was asked


def asked(given: Given) -> list[Block]:
    """A line for each score of each run, and for each published score beside them, folded."""
    words = ("task", "run", "metric", "mode", "shots", "count", "prompt", "grader", "stop", "data")
    rows = [[given.say(w) if w != "shots" else given.say("shots", n="n") for w in words]]
    seen = set()
    for run in given.runs:
        for s in run.result.tasks:
            seen.add(given.published.task_of(s.task))
            cells = [
                given.title(s.task),
                run.label,
                s.metric,
                given.say(f"mode.{s.mode}"),
                str(s.shots),
                count(given, s),
            ]
            rows.append([line(c) for c in [*cells, s.prompt_version, s.grader, " ".join(map(repr, s.stop)), s.data]])
    for key in given.keys:
        row = given.published.rows[key]
        for task in row.scores:
            cell = given.published.cell(key, task)
            if cell is not None and task in seen:
                mode = given.say(f"mode.{cell.mode}") if cell.mode else "?"
                items = given.published.sources[row.source].asked
                n = items[task].items if task in items else 0
                shots = "?" if cell.shots is None else str(cell.shots)
                cells = [given.title(task), f"{row.model} ({given.say('published')})", cell.metric or "?", mode, shots]
                rows.append([line(c) for c in [*cells, f"{n:,}" if n else "?", "", "", "", row.source]])
    return [Fold(given.say("asked"), [Table(rows, "words")])]


# --- speed and price


def profile_of(given: Given, run: Run) -> tuple[str, cost.CostProfile]:
    """The machine that a run is priced by: what it says itself, else what was asked for, else the default."""
    said = run.result.settings.get("cost_profile") or run.result.settings.get("cost")
    known = cost.load_profiles()
    return cost.get_profile(said if isinstance(said, str) and said in known else given.profile)


def per_million(given: Given, run: Run, tokens_per_second: float | None) -> float | None:
    """Yuan for a million tokens at this speed; None without one."""
    if not tokens_per_second:
        return None
    return cost.yuan_per_second(profile_of(given, run)[1]) * 1e6 / tokens_per_second


def prices(given: Given) -> list[Block]:
    """Speed and price of every run."""
    words = (
        "run",
        "file",
        "weights",
        "prefill",
        "decode",
        "batch",
        "memory",
        "per_million",
        "per_million_batch",
        "per_yuan",
    )
    rows = [[given.say(word) for word in (*words, "took", "run_yuan")]]
    for run in given.runs:
        rows.append(_price(given, run))
    blocks: list[Block] = [Heading(2, given.say("cost")), Table(rows)]
    if not any(run.result.speed for run in given.runs):
        return [*blocks, Paragraph(given.say("no_speed"))]
    used: dict[str, list[str]] = {}
    for run in given.runs:
        used.setdefault(profile_of(given, run)[0], []).append(line(run.label))
    known = cost.load_profiles()
    said = [
        given.say("profile", name=name, title=known[name].title, runs=given.listed(runs)) for name, runs in used.items()
    ]
    return [*blocks, Paragraph(given.say("cost_said", list=given.listed(said)))]


def _price(given: Given, run: Run) -> list[str]:
    result, speed, none = run.result, run.result.speed, given.say("nothing")

    def tps(value: float | None) -> str:
        return f"{value:,.1f}" if value else none

    def yuan(value: float | None) -> str:
        return f"{value:.3g}" if value is not None else none

    decode, batch = (speed.decode_tps, speed.batch_tps) if speed else (None, None)
    tokens = cost.tokens_per_yuan(profile_of(given, run)[1], decode) if decode else math.nan
    together = given.say("batch_at", tps=tps(batch), n=speed.batch or "?") if speed and batch else none
    return [
        line(run.label),
        show_bytes(result.model.bytes) if result.model.bytes else none,
        line(result.model.quantization) or none,
        tps(speed.prefill_tps if speed else None),
        tps(decode),
        together,
        show_bytes(1e6 * speed.rss_mb) if speed and speed.rss_mb else none,
        yuan(per_million(given, run, decode)),
        yuan(per_million(given, run, batch)),
        f"{tokens:,.0f}" if math.isfinite(tokens) else none,
        show_seconds(result.seconds) if result.seconds else none,
        given.say("yuan", amount=f"{result.yuan:.3g}") if result.yuan is not None else none,
    ]


# --- what was left out, thinking, contamination


def left_out(given: Given) -> list[Block]:
    """A line for each reason."""
    rows = [[given.say(word) for word in ("run", "task", "reason", "count")]]
    for run in given.runs:
        for s in run.result.tasks:
            rows += [
                [line(run.label), line(given.title(s.task)), given.reason(line(code)), f"{n:,}"]
                for code, n in s.left_out.items()
                if n
            ]
    rows = [list(row) for row in dict.fromkeys(map(tuple, rows))]  # two metrics of a task leave out the same items
    body: Block = Table(rows, "words") if len(rows) > 1 else Paragraph(given.say("left_out_none"))
    return [Heading(2, given.say("left_out")), body]


def thinking(given: Given) -> list[Block]:
    """What thinking models did with their tokens; nothing where none thought."""
    rows = [[given.say(word) for word in ("run", "task", "thoughts", "mean_tokens", "at_limit", "empty")]]
    for run in given.runs:
        for s in compare.shown(run):
            if (t := s.thinking) is not None:
                shares = [f"{t.at_limit:.1%}", f"{t.empty:.1%}"]
                rows.append(
                    [line(run.label), line(given.title(s.task)), f"{t.answers:,}", f"{t.mean_tokens:,.0f}", *shares]
                )
    return [Heading(2, given.say("thinking")), Table(rows)] if len(rows) > 1 else []


def contamination(given: Given) -> list[Block]:
    """What a check against a training corpus found: how many items, and the score without them."""
    points = []
    for run in given.runs:
        for s in compare.shown(run):
            if s.contaminated is not None:
                unclean = s.contaminated + (s.not_searched or 0)
                clean = s.clean_value if unclean else s.value
                value = given.say("nothing") if clean is None else number(clean, s)
                values = {"run": line(run.label), "task": given.title(s.task), "n": f"{s.contaminated:,}"}
                points.append(
                    given.say("contaminated", **values, items=f"{s.items:,}", clean=value, all=number(s.value, s))
                )
                if s.not_searched:
                    points[-1] += given.say("not_searched", n=f"{s.not_searched:,}")
    body: Block = Listing(points) if points else Paragraph(given.say("contamination_none"))
    return [Heading(2, given.say("contamination")), body]


def notes(given: Given) -> list[Block]:
    """What runs say beside their numbers."""
    points = [given.say("note", run=line(run.label), text=line(t, 600)) for run in given.runs for t in run.result.notes]
    return [Heading(2, given.say("notes")), Listing(points)] if points else []


# --- parts and sources


def parts(given: Given) -> list[Block]:
    """The scores of each task by subject, category or language, folded."""
    folds: list[Block] = []
    scores: dict[tuple[str, str, str], list[tuple[Run, TaskResult]]] = {}
    for run in given.runs:
        for s in compare.shown(run):
            if s.parts:
                scores.setdefault((given.published.task_of(s.task), s.metric, s.mode), []).append((run, s))
    for (task, metric, mode), mine in scores.items():
        title = f"{given.title(task)}: {given.listed([line(metric), given.say(f'mode.{mode}')])}"
        rows = [[given.say("part"), *(line(run.label) for run, _ in mine)]]
        for part in dict.fromkeys(part for _, s in mine for part in s.parts):
            cells = [number(s.parts[part], s) if part in s.parts else given.say("nothing") for _, s in mine]
            rows.append([line(part), *cells])
        over = [said for run, score in mine for said in _over_subjects(given, run, score)]
        folds.append(Fold(line(title), [Table(rows), *over]))
    return [Heading(2, given.say("parts")), *folds] if folds else []


def _over_subjects(given: Given, run: Run, score: TaskResult) -> list[Block]:
    """The error of a score if subjects are what is sampled, where there are some."""
    found, plain = compare.clustered(run, score), compare.stderr_of(run, score)
    if found is None or plain is None:
        return []
    values = {"run": line(run.label), "n": found[1], "error": number(found[0], score), "plain": number(plain, score)}
    return [Paragraph(given.say("over_subjects", **values))]


def sources(given: Given) -> list[Block]:
    """Where the published rows are from."""
    rows = [[given.say(word) for word in ("rows", "source", "date", "harness", "notes")]]
    used: dict[str, list[str]] = {}
    for key in given.keys:
        used.setdefault(given.published.rows[key].source, []).append(given.published.rows[key].model)
    for name, models in used.items():
        source = given.published.sources[name]
        rows.append(
            [given.listed(models), source.title, source.date or given.say("unknown"), source.harness, source.note]
        )
    return [Heading(2, given.say("sources")), Table(rows, "words")] if used else []
