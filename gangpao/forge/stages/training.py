"""The first half of a line: data, experiments, a plan, a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gangpao.atomic import read_json
from gangpao.config import read_toml
from gangpao.forge.config import DataStage, PlanStage, SandboxStage, TrainStage
from gangpao.forge.content import key_of, values_of
from gangpao.forge.stages import checks
from gangpao.forge.stages.stage import Command, Context, Made, Product, Run, Stage, last_json, sets

# What is learned from is told by the fingerprint of the built data.
_DATA_KEYS = ("data", "data_set", "data_dir")
EXPORT = "export"  # where a run of training leaves its model


def _nothing(context: Context, stage: Any) -> Any:
    return None


def _data(context: Context, stage: DataStage) -> Run:
    words = (
        "data",
        "build",
        context.config_file(stage.config),
        "--out",
        str(context.folder),
        *sets(stage.set),
        "--json",
    )
    told = last_json((yield Command(words, stage.launch)))
    return Made({"data": Product(str(context.folder), told["fingerprint"])}, {"built": told})


def _with_data(context: Context) -> list[str]:
    """Words with which a command learns from what the data stage built, and counts yuan as the line does."""
    return sets([*checks.with_data(context, context.here["data"].path), *context.price()])


def _sandbox_depends(context: Context, stage: SandboxStage) -> Any:
    told = values_of(stage.config, stage.set, context.hashes, without=_DATA_KEYS)
    return [told, context.here["data"].digest, stage.experiments]


def _sandbox(context: Context, stage: SandboxStage) -> Run:
    config, out = context.config_file(stage.config), context.out / "sandbox"
    given = [*_with_data(context), *sets(stage.set)]
    storage = ["--storage", stage.storage] if stage.storage else []
    found = {}
    for name in stage.experiments:
        yield Command(("sandbox", name, config, "--out", str(out), *given, *storage), stage.launch)
        outcome = read_json(out / name / "outcome.json")
        found[name] = {key: outcome[key] for key in ("facts", "verdicts", "trials", "flops", "seconds", "yuan")}
    digest = key_of({name: [one["facts"], one["verdicts"]] for name, one in found.items()})
    spent = {name: {key: one[key] for key in ("trials", "flops", "seconds", "yuan")} for name, one in found.items()}
    return Made({"sandbox": Product(str(out), digest)}, {"experiments": spent})


def _plan_depends(context: Context, stage: PlanStage) -> Any:
    asked = stage.model_dump(mode="json", exclude={"launch", "slurm"})
    return [asked, context.here["sandbox"].digest, context.here["data"].digest]


def _plan(context: Context, stage: PlanStage) -> Run:
    sandbox = context.config.sandbox
    assert sandbox is not None
    toml = context.folder / "plan.toml"
    words = ["sandbox", "plan", context.config_file(sandbox.config, "sandbox"), "--out", str(context.out / "sandbox")]
    words += [*_with_data(context), *sets(sandbox.set), "--budget", stage.budget, "--toml", str(toml), "--json"]
    words += ["--serve-tokens", f"{stage.serve_tokens:g}"] if stage.serve_tokens else []
    words += ["--max-params", f"{stage.max_params:g}"] if stage.max_params else []
    words += ["--memory", f"{stage.memory:g}"] if stage.memory else []
    said = yield Command((*words, *(["--force"] if stage.force else [])), stage.launch)
    plan = json.JSONDecoder().raw_decode(said.lstrip())[0]
    told = {key: plan[key] for key in ("budget", "choice", "interval", "seconds", "yuan", "profile")}
    return Made({"plan": Product(str(toml), key_of(_recipe(toml)))}, told)


def _recipe(toml: Path) -> Any:
    return {key: value for key, value in read_toml(toml).items() if key not in _DATA_KEYS}


def _train_depends(context: Context, stage: TrainStage) -> Any:
    if stage.config is None:
        return [context.here["plan"].digest, stage.set, context.here["data"].digest]
    return [values_of(stage.config, stage.set, context.hashes, without=_DATA_KEYS), context.here["data"].digest]


def _train(context: Context, stage: TrainStage) -> Run:
    planned = stage.config is None
    config = context.here["plan"].path if stage.config is None else context.config_file(stage.config)
    words = ["train", config, "--out", str(context.folder), *_with_data(context), *sets(stage.set), "--json"]
    facts = {"trained": last_json((yield Command(tuple(words), stage.launch)))}
    if planned and not stage.set:  # another recipe is no run of the plan
        yield Command(("sandbox", "compare", str(context.folder), "--out", str(context.out / "sandbox")))
        facts["predicted"] = predicted(context.folder, context.out / "sandbox")
    return Made({"model": context.product(context.folder / EXPORT)}, facts)


def predicted(run: Path, sandbox: Path) -> list[Any]:
    """What was said of this run, the newest last. A run that lay here before it and was put aside is another one."""
    from gangpao.sandbox.plan.planned import plans
    from gangpao.train.run_file import read_run

    known = read_run(run)
    assert known is not None
    found = (one for plan in reversed(plans(sandbox)) for one in plan["runs"])
    return [one for one in found if one["run"] == str(run) and one["started"] == known["started"]]


DATA = Stage(_nothing, _data, shared=True, always=True, check=checks.of_data)
SANDBOX = Stage(_sandbox_depends, _sandbox, shared=True, check=checks.of_sandbox)
PLAN = Stage(_plan_depends, _plan, check=checks.of_plan)
TRAIN = Stage(_train_depends, _train, check=checks.of_train)
