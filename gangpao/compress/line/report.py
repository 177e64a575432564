"""What became of a compression: every step a row, with what its model weighs, what it lost, what it took and cost.

Models are measured as `gangpao compare` does, beside the one that all began with; the pages lie in RUN/compare. A folder of weights
is measured as the Q8_0 file that the engine runs of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gangpao import cost
from gangpao.atomic import new_file, write_json
from gangpao.compress.compare import page
from gangpao.compress.compare.prompts import read_prompts
from gangpao.compress.compare.run import Comparison, MeasureSpeed, Model, Settings, run
from gangpao.compress.find import runnable
from gangpao.compress.line.config import CompressConfig
from gangpao.compress.line.run import Done, size_of
from gangpao.engine.memory import EngineOptions
from gangpao.page import Language, frame, html_table
from gangpao.progress import Progress
from gangpao.units import show_bytes, show_seconds, table

REPORT, PAGE, COMPARED = "report.json", "report.html", "compare"
_HEAD = ("step", "weights", "size", "bits", "KL", "same top", "perplexity", "ended", "tok/s", "took", "yuan")


def measured(
    config: CompressConfig,
    model: Path,
    done: Sequence[Done],
    out: Path,
    *,
    measure_speed: MeasureSpeed | None,
    progress: tuple[Progress, Progress],
    language: Language = "en",
) -> dict[str, Any]:
    """Measure what the steps made, write report.json, report.html and the comparison's pages, and return the report.

    measure_speed: as compare takes it; None leaves speed out. What was measured before is taken from the folder.
    """
    told = config.report
    prompts = Path(told.prompts) if told.prompts else None
    settings = Settings(
        text=told.text, prompts=prompts, max_tokens=told.max_tokens, drawn=0, limit=told.windows, answers=told.answers,
        speed=told.speed,
    )  # fmt: skip
    names = [str(runnable(path)) for path in (model, *(one.path for one in done))]
    labels = [model.stem, *(f"{number} {one.kind}" for number, one in enumerate(done, 1))]
    found = run(
        names, settings, EngineOptions(), measure_speed=measure_speed, out=out / COMPARED, profile=config.cost_profile,
        progress=progress, labels=labels,
    )  # fmt: skip
    page.write(found, language, read_prompts(prompts) if told.answers else [], out / COMPARED)
    report = report_of(config, model, done, found)
    write_json(out / REPORT, report)
    body = f"<h1>{model.name}</h1>{html_table(_cells(report))}<p><a href='{COMPARED}/compare.{language}.html'>compare</a></p>"
    with new_file(out / PAGE) as staging:
        staging.write_text(frame(f"gangpao compress: {model.name}", language, body), encoding="utf-8")
    return report


def report_of(config: CompressConfig, model: Path, done: Sequence[Done], found: Comparison) -> dict[str, Any]:
    """The report as JSON has it: a row for the model that all began with, one for each step."""
    profile_name, profile = cost.get_profile(config.cost_profile)
    first, *others = found.models
    rows: list[dict[str, Any]] = [{"step": "before", "path": str(model), **_scores(model, first)}]
    for number, (one, scores) in enumerate(zip(done, others, strict=True), 1):
        rows.append(
            {
                "step": f"{number} {one.kind}", "kind": one.kind, "told": dict(one.told), "path": str(one.path),
                "seconds": round(one.seconds, 1), "yuan": cost.yuan(profile, one.seconds), "facts": dict(one.facts),
                **_scores(one.path, scores),
            }
        )  # fmt: skip
    return {"model": str(model), "cost_profile": profile_name, "rows": rows, "own_texts": found.own_texts}


def _scores(path: Path, model: Model) -> dict[str, Any]:
    q, speed = model.quality[-1], model.speed
    nbytes = size_of(path)
    return {
        "parameters": model.facts.parameters,
        "bytes": nbytes,
        "bits_per_weight": 8 * nbytes / model.facts.parameters if model.facts.parameters else None,
        "perplexity": {part.part: part.perplexity.value for part in model.quality},
        "kl_divergence": None if q.divergence is None else q.divergence.value,
        "kl_stderr": None if q.divergence is None else q.divergence.error,
        "same_top": None if q.same_top is None else q.same_top.value,
        "answers": len(model.said),
        "ended": sum(said.ended for said in model.said),
        "decode_tps": None if speed is None else speed.decode_tps,
        "yuan_per_million": None if speed is None else speed.yuan_per_million,
    }


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal, and what comes next."""
    head, *rows = _cells(report)
    last = report["rows"][-1]["path"]
    return "\n".join(
        [
            table(head, rows),
            "KL: divergence from the model before all steps, nats a token; ended: answers that ended by themselves",
            f"the model: {last}",
            f"talk with it: gangpao chat -m {last}",
        ]
    )


def _cells(report: Mapping[str, Any]) -> list[list[str]]:
    return [list(_HEAD), *([_cell(row, name) for name in _HEAD] for row in report["rows"])]


def _cell(row: Mapping[str, Any], name: str) -> str:
    def number(key: str, form: str, factor: float = 1.0) -> str:
        value = row.get(key)
        return "-" if value is None else format(value * factor, form)

    said = row["answers"]
    return {
        "step": str(row["step"]), "weights": f"{row['parameters']:,}", "size": show_bytes(row["bytes"]),
        "bits": number("bits_per_weight", ".2f"), "KL": number("kl_divergence", ".4f"),
        "same top": number("same_top", ".1f", 100) + (" %" if row["same_top"] is not None else ""),
        "perplexity": f"{list(row['perplexity'].values())[-1]:.2f}",
        "ended": f"{row['ended']} of {said}" if said else "-", "tok/s": number("decode_tps", ".1f"),
        "took": show_seconds(row["seconds"]) if "seconds" in row else "-",
        "yuan": cost.show_yuan(row["yuan"]) if "yuan" in row else "-",
    }[name]  # fmt: skip
