"""The second half of a line: a model tuned, made smaller, measured, written as a file, and asked behind a server."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

from gangpao.atomic import new_file, read_json
from gangpao.forge.config import CheckStage, CompressStage, EvaluateStage, ExportStage, TuneStage
from gangpao.forge.content import path_in, values_of
from gangpao.forge.stages import checks
from gangpao.forge.stages.stage import Command, Context, Made, Run, Stage, last_json, sets

RESULTS = "results.json"


def _configured(context: Context, stage: TuneStage | CompressStage) -> Any:
    return [values_of(stage.config, stage.set, context.hashes, without=("model",)), context.here["model"].digest]


def _tune(context: Context, stage: TuneStage) -> Run:
    base, out = context.here["model"].path, context.folder
    words: tuple[str, ...] = ("tune", context.config_file(stage.config), "-m", base, "--out", str(out))
    words += (*sets([*context.price(), *stage.set]), "--json")
    told = last_json((yield Command(words, stage.launch)))
    if told["export"]:
        return Made({"model": context.product(Path(told["export"]))}, {"tuned": told})
    if not told["adapter"]:
        raise ValueError(
            f"{out}: {told['method']} has no form that a later stage could begin with; choose another method"
        )
    merged = out / ("merged.gguf" if base.endswith(".gguf") else "merged")
    yield Command(("merge", base, "--adapter", str(out), "--out", str(merged)), makes=merged)
    return Made({"model": context.product(merged)}, {"tuned": told})


def _compress(context: Context, stage: CompressStage) -> Run:
    config, base = context.config_file(stage.config), context.here["model"].path
    words: tuple[str, ...] = ("compress", config, "-m", base, "--out", str(context.folder))
    words += (*sets([*context.price(), *stage.set]), "--json")
    told = last_json((yield Command(words, stage.launch)))
    return Made({"model": context.product(Path(told["rows"][-1]["path"]))}, {"compressed": told["rows"]})


def _cost(context: Context) -> list[str]:
    profile = context.config.cost_profile
    return ["--cost", profile] if profile else []


def _evaluate_depends(context: Context, stage: EvaluateStage) -> Any:
    names = [text.rpartition("=")[0] for text in stage.texts]
    texts = [context.hashes.of(path) for path in checks.text_paths(stage)]
    asked = stage.model_dump(mode="json", exclude={"launch", "slurm", "texts", "data"})
    folder = path_in(stage.data, Path())
    data = stage.data if folder is None else context.hashes.of(folder)
    return [asked, names, texts, data, context.here["model"].digest]


def _evaluate(context: Context, stage: EvaluateStage) -> Run:
    model, facts = context.here["model"].path, []
    limit = [*(["--limit", str(stage.limit)] if stage.limit else []), *_cost(context)]
    if stage.texts:
        out = context.folder / "perplexity"
        yield Command(("eval", "perplexity", "-m", model, *stage.texts, *limit, "--out", str(out)), stage.launch)
        facts.append(read_json(out / RESULTS))
    asked = [*(("--suite", name) for name in stage.suites), *(("--task", name) for name in stage.tasks)]
    data = ["--data", stage.data] if stage.data else []
    for option, name in asked:
        out = context.folder / name
        yield Command(("eval", "-m", model, option, name, *data, *limit, "--out", str(out)), stage.launch)
        facts.append(read_json(out / RESULTS))
    return Made({}, {"results": facts})


def _export_depends(context: Context, stage: ExportStage) -> Any:
    return [stage.type, context.config.name, context.here["model"].digest]


def _export(context: Context, stage: ExportStage) -> Run:
    base, target = Path(context.here["model"].path), context.folder / f"{context.config.name}.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    also: tuple[str, ...] = ()
    if base.is_file():
        also = (shlex.join(["cp", str(base), str(target)]),)
        with new_file(target) as staging:
            shutil.copyfile(base, staging)
    else:
        yield Command(("export", str(base), str(target), "--type", stage.type), stage.launch, makes=target)
    return Made({"file": context.product(target)}, {"file": str(target), "bytes": target.stat().st_size}, also)


def _check_depends(context: Context, stage: CheckStage) -> Any:
    return [stage.prompts, stage.max_tokens, _file(context)[1]]


def _file(context: Context) -> tuple[str, str]:
    """The file at the end of the line so far: that of [export], or what [compress] wrote. Raises ValueError for a folder."""
    product = context.here.get("file", context.here["model"])
    if not product.path.endswith(".gguf"):
        raise ValueError(f"[check] asks a .gguf file, and the line ends with {product.path}: add [export]")
    return product.path, product.digest


def _check(context: Context, stage: CheckStage) -> Run:
    prompts = [word for prompt in stage.prompts for word in ("--prompt", prompt)]
    asked = (*prompts, "--max-tokens", str(stage.max_tokens), *_cost(context))
    words = ("forge", "check", _file(context)[0], *asked, "--json")
    return Made({}, {"checked": last_json((yield Command(words, stage.launch)))})


TUNE = Stage(_configured, _tune, check=checks.of_tune)
COMPRESS = Stage(_configured, _compress, check=checks.of_compress)
EVALUATE = Stage(_evaluate_depends, _evaluate, check=checks.of_evaluate)
EXPORT = Stage(_export_depends, _export, check=checks.of_export)
CHECK = Stage(_check_depends, _check)
