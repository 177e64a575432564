"""What a run says while it runs: a line of metrics.jsonl for every step, and progress with loss, speed, time left and yuan.

On a terminal it is one live bar (rich); in a file or a pipe a plain line every few seconds. metrics.jsonl can be cut back to
where a checkpoint was written, so that a resumed run has every step once.

What it gives up: it shows rank 0 only.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from gangpao import cost
from gangpao.progress import LINE_SECONDS
from gangpao.units import show_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_BAR = 10  # columns
_DROPPED_FIRST = ("mfu", "norm", "lr", "yuan")


class Report:
    """Metrics of one run, written to a folder (None: nowhere) and shown on a stream (None: nowhere).

    watch is called with every line of metrics.jsonl after it is written; what it raises ends the run.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        stream: TextIO | None = None,
        profile: cost.CostProfile | None = None,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        tensorboard: bool = False,
        line_seconds: float = LINE_SECONDS,
        watch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._watch = watch
        self.seconds = 0.0  # machine time of the run so far, over all its resumptions
        self._stream, self._profile, self._line_seconds = stream, profile, line_seconds
        self._flops, self._peak = flops_per_token, peak_flops
        self._file: IO[bytes] | None = (folder / "metrics.jsonl").open("ab") if folder else None
        self._board = _board(folder) if tensorboard and folder else None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._width: int | None = None  # columns for text beside the bar
        self._total = 0
        self._shown = -math.inf
        self._step_seconds: float | None = None
        self._clock = time.monotonic()

    @property
    def shown(self) -> bool:
        """Whether somebody watches."""
        return self._stream is not None

    def begin(self, step: int, total: int) -> None:
        """Training goes from `step` to `total`."""
        self._total = total
        self._clock = time.monotonic()
        if self._stream is not None and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            console = Console(file=self._stream)
            columns = (BarColumn(bar_width=_BAR), TextColumn("{task.description}"))
            self._bar, self._width = Progress(*columns, console=console), console.width - _BAR - 1
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=step)

    def tick(self) -> float:
        """Seconds since the last call; they count as machine time."""
        now = time.monotonic()
        passed, self._clock = now - self._clock, now
        self.seconds += passed
        return passed

    def step(self, step: int, stage: str, values: dict[str, float], tokens: int, seconds: float) -> None:
        """One optimizer step of so many tokens (over all ranks) and seconds."""
        speed = tokens / seconds if seconds else 0.0
        line = {"step": step, "stage": stage, **values, "tok_s": round(speed, 1)}
        if self._peak:
            line["mfu"] = round(speed * self._flops / self._peak, 4)
        if self._profile:
            line["yuan"] = float(f"{cost.yuan(self._profile, self.seconds):.4g}")
        self.write(line)
        before = self._step_seconds
        self._step_seconds = seconds if before is None else 0.9 * before + 0.1 * seconds
        if self._stream is not None:
            self._show(step, line)

    def write(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl. What JSON has no number for becomes a word."""
        if self._file is not None:
            safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
            self._file.write(json.dumps(safe).encode() + b"\n")
            self._file.flush()
        if self._watch is not None:
            self._watch(line)
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, line["step"])

    def note(self, text: str) -> None:
        """A line for the person who watches."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._stream is not None:
            print(text, file=self._stream, flush=True)

    def _show(self, step: int, line: dict[str, Any]) -> None:
        now = time.monotonic()
        last = step == self._total
        if now - self._shown < (0.1 if self._bar is not None else self._line_seconds) and not last:
            return
        self._shown = now
        text = self._text(step, line)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, description=text)
        else:
            print(text, file=self._stream, flush=True)

    def _text(self, step: int, line: dict[str, Any]) -> str:
        """The figures of a step; on a narrow terminal those that a person looks at first."""
        left = (self._total - step) * (self._step_seconds or 0.0)
        parts = {
            "step": f"{line['stage']} {step}/{self._total}",
            "loss": f"loss {line.get('loss', math.nan):.4f}",
            "lr": f"lr {line.get('lr', 0.0):.3g}",
            "norm": f"norm {line.get('grad_norm', math.nan):.3g}",
            "speed": f"{line['tok_s']:,.0f} tok/s",
        }
        if "reward" in line:  # what such a run is about; its loss says little
            parts = {"step": parts.pop("step"), "reward": f"reward {line['reward']:.3f}", **parts}
        if "mfu" in line:
            parts["mfu"] = f"mfu {line['mfu'] * 100:.0f} %"
        parts["left"] = f"{show_seconds(left)} left"
        if "yuan" in line:
            parts["yuan"] = cost.show_yuan(line["yuan"])
        for name in _DROPPED_FIRST:
            if self._width is None or len("  ".join(parts.values())) <= self._width:
                break
            parts.pop(name, None)
        return "  ".join(parts.values())

    def position(self) -> int:
        """Bytes of metrics.jsonl so far, on the disk."""
        if self._file is None:
            return 0
        self._file.flush()
        return self._file.tell()

    def cut(self, position: int) -> None:
        """Forget what was written behind a position: steps after the checkpoint that a run goes on from."""
        if self._file is not None and self._file.seek(0, 2) > position:
            self._file.truncate(position)

    def close(self) -> None:
        """Take the bar away and close the files."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl; half a line at the end (a crash) is left out."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(
            f"{folder}: no metrics.jsonl here ({os.strerror(error.errno or 0)}); is it the folder of a run?"
        ) from error
    out = []
    for line in lines:
        try:
            out.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in out if isinstance(line, dict)]


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard = true needs the package tensorboard: pip install tensorboard, or set it to false"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))


def stderr() -> TextIO:
    """Where progress goes; stdout stays free for results."""
    return sys.stderr
