"""What became of a run, for the person who started it and, with --json, for a program: read from the run's own files.

What was trained, how long it took and what it cost, the last losses, where the export is, and which commands come next.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gangpao import cost
from gangpao.long_command import leave, say
from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import TrainConfig
from gangpao.train.loop import Outcome
from gangpao.train.plot import steps_of
from gangpao.train.progress import read_metrics
from gangpao.train.run_file import read_run
from gangpao.units import show_bytes, show_seconds


def facts(out: Path, outcome: Outcome) -> dict[str, Any]:
    """Everything the summary says, as JSON. seconds: machine time of all calls together; yuan by the run's cost profile."""
    run = read_run(out) or {}
    config = TrainConfig.model_validate(run["config"])
    record = json.loads(
        (checkpoint.checkpoints(out / "checkpoints")[-1] / checkpoint.STATE).read_text(encoding="utf-8")
    )
    steps, heldout = steps_of(read_metrics(out))
    begin = int(run.get("begin", 0))  # of a branch: steps that were done elsewhere
    profile_name, profile = cost.get_profile(config.cost_profile)
    return {
        "run": str(out),
        "step": outcome.step,
        "begun": outcome.begun,
        "branched": begin,
        "steps": begin + sum(config.stage_steps()),
        "done": outcome.signal is None,
        "export": str(out / "export") if (out / "export").is_dir() else None,
        "parameters": run["parameters"],
        "tokens": record["tokens"],
        "seconds": round(record["seconds"], 1),
        "loss": steps[-1]["loss"] if steps else None,
        "heldout": heldout[-1]["heldout"] if heldout else {},
        "yuan": cost.yuan(profile, record["seconds"]),
        "cost_profile": profile_name,
        "precision": config.precision,
        "device": run["environment"]["device"],
        "threads": run["environment"]["threads"],
    }


def text(found: dict[str, Any], out: Path) -> str:
    """The facts of a finished run for a person, and what to type next."""
    already = found["begun"] == found["step"]
    size, steps = found["parameters"], f"{found['step']:,} steps"
    if found["branched"]:
        steps = f"steps {found['branched'] + 1:,} to {found['step']:,}"
    lines = [
        f"{'finished already, nothing to train' if already else 'trained'}: {out}, {steps}",
        f"  model     {size['total']:,} parameters, {size['non_embedding']:,} beside the embedding",
        f"  training  {found['tokens']:,} tokens in {show_seconds(found['seconds'])}, {_speed(found)}{found['precision']}, "
        f"{cost.show_yuan(found['yuan'])} ({found['cost_profile']})",
        f"  loss      {_number(found['loss'])} at the last step" + _together(found["heldout"]),
    ]
    lines += [f"    {name:20} {words}" for name, words in _by_source(found["heldout"])]
    if found["export"]:
        lines.append(
            f"  export    {found['export']} ({_size(out / 'export')}), a Hugging Face folder with its tokenizer"
        )
    width = max(len(command) for command, _ in next_commands(out, found))
    lines += ["next", *(f"  {command:{width}}   {what}" for command, what in next_commands(out, found))]
    return "\n".join(lines)


def next_commands(out: Path, found: dict[str, Any]) -> list[tuple[str, str]]:
    """Commands that go on from here, as one types them, and what they do."""
    run, name = shlex.quote(str(out)), shlex.quote(out.name)
    asking = [
        (f'gangpao run -m {run} --raw "TEXT"', "let it go on with a text, which is what it learned"),
        (f"gangpao chat -m {run}", "talk with it, if its data had conversations"),
        (f"gangpao export {run}/export {name}.gguf", "a file for llama.cpp, Ollama, LM Studio"),
    ]
    return [*(asking if found["export"] else []), (f"gangpao train plot {run} --out {name}", "draw what happened")]


def stopped(out: Path, outcome: Outcome, total: int) -> str:
    """One line after a signal: what is saved, and how to go on."""
    saved = out / "checkpoints" / checkpoint.name_of(outcome.step)
    return f"stopped after step {outcome.step:,} of {total:,}, saved in {saved}; the same command goes on from there"


def interrupted(out: Path) -> str:
    """One line after a stop in the middle of something."""
    saved = checkpoint.checkpoints(out / "checkpoints")
    if not saved:
        return f"stopped at once, before anything of the run {out} was saved; the same command begins it again"
    return f"stopped at once; what is saved is {saved[-1]}, from which the same command goes on"


def _speed(found: dict[str, Any]) -> str:
    if found["device"] is None or not found["seconds"]:
        return ""
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}"
    return f"{found['tokens'] / found['seconds']:,.0f} tok/s, {threads}, "


def _together(heldout: dict[str, float]) -> str:
    if "heldout" not in heldout:
        return ""
    bits = f", {heldout['heldout_bpb']:.4f} bits a byte" if "heldout_bpb" in heldout else ""
    return f"; held-out {heldout['heldout']:.4f} nats a token{bits}"


def _by_source(heldout: dict[str, float]) -> list[tuple[str, str]]:
    """Held-out losses of every source; conversations have nats only."""
    out = []
    for key, nats in heldout.items():
        if name := key.removesuffix("_nats") if key.endswith("_nats") else "":
            bits = heldout.get(f"{name}_bpb")
            out.append((name, f"{nats:.4f} nats a token" + (f", {bits:.4f} bits a byte" if bits is not None else "")))
    return out


def _number(loss: float | None) -> str:
    return "?" if loss is None else f"{loss:.4f}"


def _size(folder: Path) -> str:
    return show_bytes(sum(path.stat().st_size for path in folder.iterdir()))


def run_and_tell(
    run: Callable[[], Outcome],
    out: Path,
    facts: Callable[[Path, Outcome], dict[str, Any]],
    text: Callable[[dict[str, Any], Path], str],
    *,
    as_json: bool,
) -> None:
    """Run what a command asks for and say what became of it, on rank 0; then end with the command's exit code."""
    try:
        outcome = run()
    except KeyboardInterrupt:
        say(interrupted(out))
        leave(130)
        return
    if os.environ.get("RANK", "0") == "0":
        found = facts(out, outcome)
        if outcome.signal is not None:
            say(stopped(out, outcome, found["steps"]))
        if as_json:
            print(json.dumps(found))
        elif outcome.signal is None:
            print(text(found, out))
    leave(130 if outcome.signal == signal.SIGINT else 0)
