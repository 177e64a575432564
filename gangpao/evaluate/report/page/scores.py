"""The scores of all runs and published rows side by side, their averages, and their differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from gangpao.evaluate.report import compare
from gangpao.evaluate.report.compare import Against, Compared
from gangpao.evaluate.report.page.document import Block, Fold, Heading, Paragraph, Table, line
from gangpao.evaluate.report.page.given import Given, is_limited, machine, number, signed, with_error
from gangpao.evaluate.report.published import GROUPS, Cell
from gangpao.evaluate.report.runs import Run
from gangpao.evaluate.results import Mode, TaskResult
from gangpao.evaluate.statistics import Difference, normal_p

MOST_PAIRS = 3  # runs that are all compared with one another; of more, each with the first
_Key = tuple[str, Mode, str]


@dataclass(slots=True)
class ScoreRow:
    """A line of the main table: a task in a mode by a metric. cells: a score of each run. published: a cell of each key.

    larger: the row holds the larger score of both modes."""

    task: str
    cells: list[TaskResult | None]
    published: list[Cell | None] = field(default_factory=list)
    larger: bool = False

    @property
    def score(self) -> TaskResult:
        """One that says how the row's scores are written."""
        return next(cell for cell in self.cells if cell is not None)


def rows(given: Given) -> list[ScoreRow]:
    """The main table: published tasks in the order of their file, then others in that of the runs."""
    keys: dict[_Key, None] = {}
    for run in given.runs:
        keys |= dict.fromkeys(_key(given, score) for score in compare.shown(run))
    places = [_places(given, column, keys) for column in given.keys]
    found = []
    for key in sorted(keys, key=lambda k: _order(given, k[0])):
        cells = [_cell(given, run, key) for run in given.runs]
        found.append(ScoreRow(key[0], cells, [place.get(key) for place in places]))
    return [row for task in dict.fromkeys(r.task for r in found) for row in _with_larger(task, found)]


def _key(given: Given, score: TaskResult) -> _Key:
    return given.published.task_of(score.task), score.mode, score.metric


def _order(given: Given, task: str) -> int:
    known = list(given.published.tasks)
    return known.index(task) if task in known else len(known)


def _places(given: Given, column: str, keys: dict[_Key, None]) -> dict[_Key, Cell]:
    """In which row each score of a published row stands: beside the score that was measured most like it. A metric that no run
    shows otherwise gets a row of its own."""
    places = {}
    for task in given.published.rows[column].scores:
        cell = given.published.cell(column, task)
        assert cell is not None
        for run in given.runs:
            score = compare.closest(run.result.tasks, cell, given.published)
            if score is not None:
                places[_key(given, score)] = cell
                keys.setdefault(_key(given, score))
                break
    return places


def _cell(given: Given, run: Run, key: _Key) -> TaskResult | None:
    return next((score for score in run.result.tasks if _key(given, score) == key), None)


def _with_larger(task: str, found: Sequence[ScoreRow]) -> Iterator[ScoreRow]:
    """The rows of a task, and one with the larger score where a run has both modes."""
    mine = [row for row in found if row.task == task]
    yield from mine
    modes = [row for row in mine if row.score.mode in compare.TWO_MODES]
    count = len(mine[0].cells)
    both = [[row.cells[i] for row in modes if row.cells[i] is not None] for i in range(count)]
    if any(len({score.mode for score in scores if score}) == 2 for scores in both):
        largest = [max((s for s in scores if s), key=lambda s: s.value, default=None) for scores in both]
        cells = [
            next((row.published[i] for row in mine if row.published[i]), None) for i in range(len(mine[0].published))
        ]
        yield ScoreRow(task, largest, cells, larger=True)


# --- the main table


def main_table(given: Given) -> list[Block]:
    """Scores of all with their errors, counts and marks, and what the marks mean."""
    marks: set[str] = set()
    head = [given.say("task"), *(line(run.label) for run in given.runs)]
    head += [f"{given.published.rows[key].model}\n{given.say('published')}" for key in given.keys]
    table = [head]
    for row in rows(given):
        cells = [_ours(given, run, score, row, marks) for run, score in zip(given.runs, row.cells, strict=True)]
        cells += [_theirs(given, cell, row, marks) for cell in row.published]
        table.append([_name(given, row), *cells])
    legend = [
        Paragraph(given.say(f"mark.{mark}"))
        for mark in ("limited", "other", "metric", "star", "own", "unknown")
        if mark in marks
    ]
    return [Paragraph(given.say("scores_said")), Table(table), *legend]


def _name(given: Given, row: ScoreRow) -> str:
    score, shots = row.score, {cell.shots for cell in row.cells if cell is not None}
    if row.larger:
        return f"{given.title(row.task)}\n{given.say('max')}"
    facts = [line(score.metric), given.say(f"mode.{score.mode}")]
    facts += [given.say("shots", n=n) for n in sorted(shots)] if score.mode not in ("perplexity", "judge") else []
    facts += [] if score.scale == 1 else [given.say("marks", scale=score.scale)]
    facts += [] if score.higher_is_better else [given.say("lower")]
    return f"{line(given.title(row.task))}\n{given.listed(facts)}"


def count(given: Given, score: TaskResult) -> str:
    """How many items a score is over."""
    if is_limited(score):
        return given.say("of", items=f"{score.items:,}", of=f"{score.of:,}")
    return given.say("items", items=f"{score.items:,}")


def _ours(given: Given, run: Run, score: TaskResult | None, row: ScoreRow, marks: set[str]) -> str:
    if score is None:
        return given.say("nothing")
    signs = ""
    if is_limited(score):
        marks.add("limited")
        signs += " ‡"
    if row.larger and score.mode == "loglikelihood":
        marks.add("star")
        signs += " *"
    value = with_error(number(score.value, score), compare.stderr_of(run, score), score)
    return f"{value}{signs}\n{count(given, score)}"


def _theirs(given: Given, cell: Cell | None, row: ScoreRow, marks: set[str]) -> str:
    if cell is None:
        return given.say("nothing")
    differ = {name for score in row.cells if score is not None for name in compare.unlike(score, cell)}
    signs = {
        "star": ("*", cell.starred),
        "own": ("§", cell.own_report),
        "other": ("†", bool(differ & {"shots", "mode"}) and not row.larger),
        "metric": ("¶", "metric" in differ),
        "unknown": ("?", "unknown" in differ),
    }
    marks |= {name for name, (_, holds) in signs.items() if holds}
    value = with_error(
        number(cell.value * row.score.scale, row.score), cell.stderr and cell.stderr * row.score.scale, row.score
    )
    return " ".join([value, *(sign for sign, holds in signs.values() if holds)])


# --- averages


@dataclass(frozen=True, slots=True)
class Average:
    """Means of two sides over the tasks that both have, as shares. error: of their difference; None where one is unknown."""

    tasks: tuple[str, ...]
    ours: float
    theirs: float
    error: float | None
    limited: bool

    @property
    def difference(self) -> Difference:
        """ours - theirs, by itself: no correction for the other averages."""
        value = self.ours - self.theirs
        return Difference(value, self.error, None if self.error is None else normal_p(value, self.error), "unpaired")


def averages(given: Given, pairs: Iterable[tuple[str, float, float, float | None, bool]]) -> dict[str, Average]:
    """By group. pairs: task, our share, theirs, the error of their difference, whether ours is of a part of the items."""
    found = list(pairs)
    out = {}
    for group in GROUPS:
        known = given.published.tasks
        mine = [p for p in found if group == "all" or (p[0] in known and known[p[0]].language == group)]
        if not mine:
            continue
        n, errors = len(mine), [p[3] for p in mine]
        error = None if None in errors else math.sqrt(sum(e * e for e in errors if e is not None)) / n
        out[group] = Average(
            tuple(p[0] for p in mine),
            sum(p[1] for p in mine) / n,
            sum(p[2] for p in mine) / n,
            error,
            any(p[4] for p in mine),
        )
    return out


def against_average(given: Given, run: Run, key: str) -> dict[str, Average]:
    """A run's and a published row's means over the shares that both have."""
    return averages(
        given,
        (
            (a.task, a.score.value, a.cell.value, a.difference.error, is_limited(a.score))
            for a in compare.against(run, key, given.published)
            if compare.is_share(a.score)
        ),
    )


def between_average(given: Given, first: Run, second: Run) -> dict[str, Average]:
    """The means of two runs over the shares that both have as their main score; of a task in two modes the first counts."""
    main = [c for c in compare.between(first, second, given.published) if c.first.main and c.first.higher_is_better]
    both = {given.published.task_of(c.first.task): c for c in reversed(main)}
    return averages(
        given,
        (
            (
                given.published.task_of(c.first.task),
                c.second.value,
                c.first.value,
                c.difference.error,
                is_limited(c.first) or is_limited(c.second),
            )
            for c in both.values()
            if compare.is_share(c.first) and compare.is_share(c.second)
        ),
    )


def average_table(given: Given) -> list[Block]:
    """Every run against every published row, and against the runs before it."""
    table = [[given.say(name) for name in ("run", "against", "all", "en", "zh")]]
    limited = False
    for place, run in enumerate(given.runs):
        sides = [(other.label, between_average(given, other, run)) for other in given.runs[:place]]
        sides += [
            (f"{given.published.rows[key].model} ({given.say('published')})", against_average(given, run, key))
            for key in given.keys
        ]
        for name, found in sides:
            if found:
                limited = limited or any(a.limited for a in found.values())
                cells = [_average(given, found[group]) if group in found else given.say("nothing") for group in GROUPS]
                table.append([line(run.label), line(name), *cells])
    if len(table) == 1:
        return []
    blocks: list[Block] = [Heading(2, given.say("average")), Paragraph(given.say("average_said")), Table(table)]
    if limited:
        blocks.append(Paragraph(given.say("mark.limited")))
    used = [
        odd
        for odd in given.published.odd_averages()
        if any(odd.startswith(given.published.rows[k].model) for k in given.keys)
    ]
    return [*blocks, *([Paragraph(given.say("printed", list="; ".join(used)))] if used else [])]


def _average(given: Given, a: Average) -> str:
    d = a.difference
    difference = f"{100 * d.value:+.2f}".replace("-", "−")
    error = "" if d.interval is None else f" ± {100 * d.interval:.2f}"
    tasks = given.say("one_task") if len(a.tasks) == 1 else given.say("tasks", n=len(a.tasks))
    last = given.listed([given.say(f"word.{d.word}"), tasks])
    mark = " ‡" if a.limited else ""
    return f"{100 * a.ours:.2f} / {100 * a.theirs:.2f}{mark}\n{difference}{error}\n{last}"


# --- differences


def pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Which runs are compared: all with one another, or with the first where there are many."""
    if len(runs) <= MOST_PAIRS:
        return list(combinations(runs, 2))
    return [(runs[0], run) for run in runs[1:]]


def differences(given: Given) -> list[Block]:
    """A table for each pair of runs."""
    blocks: list[Block] = []
    for first, second in pairs(given.runs):
        blocks += [Heading(3, given.say("differences_of", first=line(first.label), second=line(second.label)))]
        blocks += of_pair(given, first, second)
    return [Heading(2, given.say("differences")), *blocks] if blocks else []


def of_pair(given: Given, first: Run, second: Run) -> list[Block]:
    """Differences of two runs on each task, and the settings that differ."""
    found = compare.between(first, second, given.published)
    if not found:
        return [Paragraph(given.say("nothing_common"))]
    head = [
        given.say("task"),
        line(first.label),
        line(second.label),
        *(given.say(w) for w in ("difference", "verdict", "chance", "how")),
    ]
    table = [head, *(_compared(given, c) for c in found)]
    blocks: list[Block] = [Table(table), Paragraph(given.say("differences_said", n=len(found)))]
    mine, theirs = first.result.settings, second.result.settings
    differ = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    if any(is_limited(score) for c in found for score in (c.first, c.second)):
        blocks.append(Paragraph(given.say("mark.limited")))
    if differ:
        text = given.listed([line(f"{key} ({mine.get(key)} / {theirs.get(key)})") for key in differ])
        blocks.append(
            Paragraph(given.say("settings_differ", first=line(first.label), second=line(second.label), list=text))
        )
    return blocks


def _compared(given: Given, c: Compared) -> list[str]:
    d = c.difference
    name = (
        f"{line(given.title(c.first.task))}\n{given.listed([line(c.first.metric), given.say(f'mode.{c.first.mode}')])}"
    )
    how = given.say(f"how.{d.how}", n=f"{d.items:,}")
    if c.differ:
        how += "\n" + given.say("differ", list=given.listed([given.say(f"differ.{one}") for one in c.differ]))
    marks = ["" if not is_limited(s) else " ‡" for s in (c.first, c.second)]
    chance = given.say("nothing") if d.holm is None else _chance(d.holm)
    values = [number(s.value, s) + mark for s, mark in zip((c.first, c.second), marks, strict=True)]
    return [
        name,
        *values,
        with_error(signed(d.value, c.first), d.interval, c.first),
        given.say(f"word.{d.word}"),
        chance,
        how,
    ]


def _chance(p: float) -> str:
    return "≤ 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def to_published(given: Given) -> list[Block]:
    """For each run and published row a table: ours, theirs, the difference and its error. Rows of the run's own model are open."""
    blocks: list[Block] = []
    unsure = False
    for run in given.runs:
        mine: list[Block] = []
        own = set(given.published.of_model(run.result.model.name))
        for key in sorted(given.keys, key=lambda key: key not in own):
            found = compare.against(run, key, given.published)
            if found:
                unsure = unsure or any(a.difference.how == "one_sided_error" for a in found)
                found.sort(key=lambda a: _order(given, a.task))
                table = _against_table(given, run, key, found)
                title = _against_title(given, key, found)
                mine += [Heading(4, title), table] if key in own else [Fold(title, [table])]
        if mine:
            blocks += [Heading(3, line(run.label)), Paragraph(measured_by(given, run)), *mine]
    if not blocks:
        return []
    last = [Paragraph(given.say("mark.error"))] if unsure else []
    return [Heading(2, given.say("against_published")), Paragraph(given.say("against_said")), *blocks, *last]


def measured_by(given: Given, run: Run) -> str:
    """What a score is of no use without: file, commit, machine, harness."""
    r, unknown = run.result, given.say("unknown")
    hardware = ", ".join(f"{key} {value}" for key, value in machine(r.hardware).items())
    facts = [("sha256", r.model.sha256), ("gangpao", r.gangpao), ("harness", r.harness), ("hardware", hardware)]
    return "; ".join(f"{given.say(name)}: {line(value) or unknown}" for name, value in facts)


def _against_title(given: Given, key: str, found: Sequence[Against]) -> str:
    """How many of the differences are which word."""
    words = [a.difference.word for a in found]
    counts = [f"{words.count(w)} {given.say(f'word.{w}')}" for w in ("better", "worse", "cannot tell") if w in words]
    row = given.published.rows[key]
    return f"{row.model} ({given.published.sources[row.source].title}): {given.listed(counts)}"


def _against_table(given: Given, run: Run, key: str, found: Sequence[Against]) -> Table:
    words = ("task", "ours", "published", "difference", "standard_error", "verdict", "chance", "prompt", "differ_head")
    rows = [[given.say(word) for word in words]]
    for a in found:
        d, score, scale = a.difference, a.score, a.score.scale
        shots = [given.say("shots", n=score.shots)] if score.mode != "judge" else []
        name = f"{line(given.title(a.task))}\n{given.listed([line(score.metric), given.say(f'mode.{score.mode}'), *shots])}"
        ours = with_error(number(score.value, score), compare.stderr_of(run, score), score)
        theirs = with_error(number(a.cell.value * scale, score), a.cell.stderr and a.cell.stderr * scale, score)
        error = given.say("nothing") if d.error is None else number(d.error * scale, score)
        error += " °" if d.how == "one_sided_error" else ""
        interval = None if d.interval is None else d.interval * scale
        differ = given.listed([given.say(f"differ.{one}") for one in a.differ]) or given.say("nothing")
        chance = given.say("nothing") if d.holm is None else _chance(d.holm)
        value = with_error(signed(d.value * scale, score), interval, score)
        ours += f"\n{count(given, score)}"
        rows.append(
            [name, ours, theirs, value, error, given.say(f"word.{d.word}"), chance, line(score.prompt_version), differ]
        )
    return Table(rows)
