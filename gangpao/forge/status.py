"""How far a line is: a row per stage with its state, time, yuan and what it is worth so far, also while it runs elsewhere.

A stage that runs says its last line of progress, in which its command tells how far it is and how long it will take.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from gangpao import cost
from gangpao.atomic import is_locked
from gangpao.forge.child import last_line
from gangpao.forge.config import ForgeConfig
from gangpao.forge.quality import quality
from gangpao.forge.record import log_path, read_line
from gangpao.units import plain, show_seconds, table


@dataclass(frozen=True, slots=True)
class Standing:
    """A stage: waiting, running, stopped (begun, and no call runs) or done. said: its quality when done, else its last words."""

    name: str
    state: str
    seconds: float
    yuan: float
    said: str


def standings(out: Path) -> tuple[ForgeConfig, list[Standing]]:
    """All stages of a line. Raises ValueError for a folder without one."""
    line = read_line(out)
    config, runs = line.config, is_locked(out)
    price = cost.Meter(config.cost_profile)
    found, begun = [], False
    for name in config.stages():
        record = line.records.get(name)
        if record is None:
            found.append(Standing(name, "waiting", 0.0, 0.0, ""))
            continue
        if record.done:
            found.append(Standing(name, "done", record.seconds, price.yuan(record.seconds), quality(record.facts)))
            continue
        now = runs and not begun
        begun = True
        seconds = record.spent(out, runs=now)
        words = plain(last_line(log_path(out, name)))[:160]
        found.append(Standing(name, "running" if now else "stopped", seconds, price.yuan(seconds), words))
    return config, found


def text(out: Path) -> str:
    """The rows for a terminal."""
    config, found = standings(out)
    rows = []
    for one in found:
        spent = [show_seconds(one.seconds), cost.show_yuan(one.yuan)] if one.seconds else ["", ""]
        rows.append([one.name, one.state, *spent, one.said])
    done = sum(one.state == "done" for one in found)
    whole = sum(one.seconds for one in found)
    return "\n".join(
        [
            table(["stage", "state", "took", "yuan", "so far"], rows),
            f"{config.name}: {done} of {len(found)} stages done, {show_seconds(whole)}, "
            f"{cost.show_yuan(cost.Meter(config.cost_profile).yuan(whole))}",
        ]
    )


def watch(out: Path, every: float = 2.0) -> None:
    """Show the rows until the line is done or Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(Text(text(out)), console=Console(), auto_refresh=False) as live:
        while True:
            live.update(Text(text(out)), refresh=True)
            if not is_locked(out):
                return
            time.sleep(every)
