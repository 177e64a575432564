"""What became of a tuning run, for the person who started it and, with --json, for a program: read from the run's own files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from gangpao import cost
from gangpao.train.checkpoints import checkpoint
from gangpao.train.loop import Outcome
from gangpao.train.plot import steps_of
from gangpao.train.progress import read_metrics
from gangpao.train.run_file import read_run
from gangpao.tune import output
from gangpao.units import show_bytes, show_seconds


def facts(out: Path, outcome: Outcome) -> dict[str, Any]:
    """Everything the summary says, as JSON. seconds: machine time of all calls together; yuan by the run's cost profile."""
    run = read_run(out) or {}
    state = checkpoint.checkpoints(out / "checkpoints")[-1] / checkpoint.STATE
    record = json.loads(state.read_text(encoding="utf-8"))
    steps, heldout = steps_of(read_metrics(out))
    profile_name, profile = cost.get_profile(run["config"]["cost_profile"])
    return {
        "run": str(out),
        "base": run["base"],
        "method": run["config"]["method"]["kind"],
        "objective": run["config"]["objective"]["kind"],
        "step": outcome.step,
        "begun": outcome.begun,
        "steps": run["steps"],
        "done": outcome.signal is None,
        "trainable": run["trainable"],
        "tokens": record["tokens"],
        "seconds": round(record["seconds"], 1),
        "loss": steps[-1]["loss"] if steps else None,
        "heldout": heldout[-1]["heldout"] if heldout else {},
        "heldout_first": heldout[0]["heldout"] if heldout else {},
        "yuan": cost.yuan(profile, record["seconds"]),
        "cost_profile": profile_name,
        "device": run["environment"]["device"],
        "threads": run["environment"]["threads"],
        **{name: str(out / name) if (out / name).exists() else None for name in _OUT},
    }


_OUT = (output.ADAPTER, output.GGUF_ADAPTER, output.EXPORT)


def text(found: dict[str, Any], out: Path) -> str:
    """The facts of a finished run for a person, and what to type next."""
    speed = found["tokens"] / found["seconds"] if found["seconds"] else 0.0
    done = "finished already, nothing to tune" if found["begun"] == found["step"] else "tuned"
    lines = [
        f"{done}: {out}, {found['step']:,} steps, {found['method']} by {found['objective']}",
        f"  base      {found['base']['path']} ({found['base']['storage']})",
        f"  training  {found['trainable']:,} weights, {found['tokens']:,} tokens in {show_seconds(found['seconds'])}, "
        f"{speed:,.0f} tok/s, {cost.show_yuan(found['yuan'])} ({found['cost_profile']})",
        f"  loss      {_number(found['loss'])} at the last step",
    ]
    first, last = found["heldout_first"], found["heldout"]
    lines += [f"  {name:22} {first.get(name, value):.4f} at first, {value:.4f} now" for name, value in last.items()]
    written = [found[name] for name in _OUT if found[name]]
    lines += [f"  written   {path} ({show_bytes(_size(Path(path)))})" for path in written]
    if not written:
        lines.append(f"  written   nothing but {out / 'checkpoints'}: {found['method']} has no form that others read")
    commands = next_commands(out, found)
    width = max(len(command) for command, _ in commands)
    return "\n".join([*lines, "next", *(f"  {command:{width}}   {what}" for command, what in commands)])


def next_commands(out: Path, found: dict[str, Any]) -> list[tuple[str, str]]:
    """Commands that go on from here, as one types them, and what they do."""
    run, base = shlex.quote(str(out)), shlex.quote(found["base"]["path"])
    plot = (f"gangpao train plot {run}", "draw what happened")
    if found["export"]:
        return [
            (f"gangpao chat -m {run}/export", "talk with it"),
            (f"gangpao export {run}/export FILE.gguf", "a file"),
            plot,
        ]
    if not found["adapter"]:
        return [plot]
    beside = [
        (f"gangpao chat -m {base} --adapter {run}", "talk with it"),
        (f"gangpao serve {base} --adapter NAME={run}", "serve it beside the base, as a model NAME"),
    ]
    return [
        *(beside if found["method"] != "ia3" else []),
        (f"gangpao merge {base} --adapter {run} --out FILE", "one model, for programs that know no adapters"),
        plot,
    ]


def _number(loss: float | None) -> str:
    return "?" if loss is None else f"{loss:.4f}"


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.iterdir()) if path.is_dir() else path.stat().st_size
