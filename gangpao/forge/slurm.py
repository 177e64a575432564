"""A line as jobs for Slurm: one job a stage, each waiting for the one before, in one shell script to look at and run."""

from __future__ import annotations

import shlex
from pathlib import Path

from gangpao.forge.config import ForgeConfig


def script(config: ForgeConfig, file: Path, out: Path, overrides: tuple[str, ...] = ()) -> str:
    """The text of the script. file: the line's TOML; options of sbatch are each stage's `slurm`.

    A job asks for its stage and what is not done before it, so a script that is run again does only what is left.
    """
    told = [word for text in overrides for word in ("--set", text)]
    lines = [
        "#!/bin/sh",
        f"# {config.name}: one job a stage, each after the one before. Run it where gangpao is installed: sh FILE",
        "set -e",
        f"mkdir -p {shlex.quote(str(out / 'log'))}",
    ]
    for number, name in enumerate(config.stages()):
        command = shlex.join(
            ["gangpao", "forge", str(file.absolute()), "--out", str(out.absolute()), *told, "--until", name]
        )
        options = [f"--job-name={config.name}-{name}", f"--output={out.absolute() / 'log' / f'{name}.slurm'}"]
        options += config.stage(name).slurm
        words = shlex.join(["sbatch", "--parsable", *options])
        waits = ' --dependency="afterok:${job%%;*}"' if number else ""
        lines.append(f"job=$({words}{waits} --wrap={shlex.quote(command)})")
        lines.append(f'echo "{name}: job $job"')
    return "\n".join(lines) + "\n"
