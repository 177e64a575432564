"""Runs an experiment: puts its trials into the queue, keeps workers going, shows a live table, and collects the results.

The table says how many trials are done, running and waiting, the newest results, time left and yuan so far. Time left
follows from the FLOPs that are left and the speed of the trials that are done.

What it gives up: it watches the study, not the trials; how far a running trial is stands in its metrics.jsonl.
"""

from __future__ import annotations

import math
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import optuna
from optuna.trial import TrialState

from gangpao.atomic import locked
from gangpao.progress import LINE_SECONDS
from gangpao.sandbox.trials.config import SandboxConfig
from gangpao.sandbox.trials.queue import (
    Standing,
    Watch,
    enqueue,
    local_storage,
    open_storage,
    open_study,
    results,
    searched,
    start_worker,
    workers_of,
    write_config,
)
from gangpao.sandbox.trials.search import SEARCH, SearchConfig, fitted, search_name
from gangpao.sandbox.trials.trial import Lab, Result, Spec, key_of
from gangpao.units import show_seconds

if TYPE_CHECKING:
    from optuna.study import Study
    from rich.live import Live
    from rich.table import Table

_POLL_SECONDS, _LOOK_SECONDS = 0.2, 2.0  # at the workers, and at the study, which costs something


class Driver:
    """Everything that is needed to get trials done. storage: None for a SQLite file in the folder, else a URL that workers on
    other machines use too; local: start workers here."""

    def __init__(
        self,
        config: SandboxConfig,
        out: Path,
        *,
        storage: str | None = None,
        local: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.config, self.out, self.stream = config, out, stream
        self.shared = storage is not None
        self.url = storage or local_storage(out)
        self.storage = open_storage(self.url)
        self.local = local
        self.lab = Lab.open(config, out)
        self._shown = 0.0

    def close(self) -> None:
        """Give back the connections to the storage."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def submit(self, name: str, specs: Sequence[Spec]) -> list[Result]:
        """Results in the order of the specs, from the study of that name."""
        study = open_study(self.storage, name)
        keys = [key_of(self.lab, spec) for spec in specs]
        known = results(study)
        if not all(key in known for key in keys):
            self._until_done(study, name, specs)
            known = results(study)
        missing = [key for key in keys if key not in known]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(keys)} trials of {name} did not end, first {missing[0]}: "
                f"see {self.out / 'logs'}, then run it again"
            )
        return [known[key] for key in keys]

    def search(self) -> Study:
        """Let a sampler choose trials of the configuration's search until there are enough; the study."""
        search = self.config.table(SearchConfig)
        wanted = fitted(search, self.config)
        study = open_study(self.storage, search_name(self.lab, search), wanted)
        if not searched(study, wanted):
            self._until_done(study, SEARCH, [], wanted)
        return study

    def searched(self) -> int:
        """Trials that the configuration's search has had so far."""
        name = search_name(self.lab, self.config.table(SearchConfig))
        if name not in optuna.get_all_study_names(self.storage):
            return 0
        states = [t.state for t in open_study(self.storage, name).get_trials(deepcopy=False)]
        return states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED)

    def _until_done(self, study: Study, name: str, specs: Sequence[Spec], search: SearchConfig | None = None) -> None:
        """Whoever does not get the lock must leave the trials of the one who has it alone, so that nothing is queued before."""
        busy = "another experiment is running here; wait for it or choose another folder"
        with _terminable(), locked(self.out, busy):
            enqueue(study, self.lab, specs, revive=not self.shared)
            with self._workers(name) as children, self._live() as live:
                watch, looked = Watch(self.lab, study, search), -math.inf
                over = False
                while not over:
                    over = bool(children) and all(child.process.poll() is not None for child in children)
                    if over or time.monotonic() - looked > _LOOK_SECONDS:
                        now, looked = watch.look(), time.monotonic()
                        over = over or (not children and not _open(now))
                        self._show(name, now, live, last=over)
                    if not over:
                        time.sleep(_POLL_SECONDS)
        for child in children:
            child.check(name)

    @contextmanager
    def _workers(self, name: str) -> Iterator[list[_Child]]:
        logs = self.out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        file, threads = write_config(self.config, self.out), self.config.threads
        number = workers_of(self.config) if self.local else 0
        children = [_Child.start(self, file, name, i * threads, logs / f"{name}-{i}.log") for i in range(number)]
        try:
            yield children
        finally:
            for child in children:
                if child.process.poll() is None:
                    child.process.send_signal(signal.SIGTERM)
            for child in children:
                child.process.wait()

    @contextmanager
    def _live(self) -> Iterator[Live | None]:
        if self.stream is None or not self.stream.isatty():
            yield None
            return
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(file=self.stream), auto_refresh=False) as live:
            yield live

    def _show(self, name: str, s: Standing, live: Live | None, *, last: bool = False) -> None:
        if live is not None:
            live.update(table(name, s, workers_of(self.config)), refresh=True)
        elif self.stream is not None and (last or time.monotonic() - self._shown > LINE_SECONDS):
            self._shown = time.monotonic()
            print(line(name, s, workers_of(self.config)), file=self.stream, flush=True)


@dataclass(frozen=True, slots=True)
class _Child:
    """A worker; what it says is in its log from `begin` on."""

    process: subprocess.Popen[bytes]
    log: Path
    begin: int

    @classmethod
    def start(cls, driver: Driver, config: Path, name: str, core: int, log: Path) -> _Child:
        begin = log.stat().st_size if log.exists() else 0
        threads = driver.config.threads
        return cls(start_worker(config, driver.out, driver.url, name, threads, core, log), log, begin)

    def check(self, name: str) -> None:
        """Raises ValueError with what it said last when it did not end well."""
        code = self.process.returncode
        if not code:
            return
        said = self.log.read_bytes()[self.begin :].decode(errors="replace").strip().splitlines()
        last = said[-1].removeprefix("error: ") if said else "it said nothing"
        how = f"ended with code {code}" if code > 0 else f"was killed by signal {-code}"
        raise ValueError(f"a worker of {name} {how}: {last} (all it said: {self.log})")


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM leaves as Ctrl-C does, by way of whoever has something to end: the workers would go on alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open(s: Standing) -> bool:
    return s.running + s.waiting > 0


def seconds_left(s: Standing, workers: int) -> float | None:
    """At the speed so far; None before the first trial is done."""
    if not s.flops_done or not s.busy:
        return None
    return s.flops_left / (s.flops_done / s.busy) / workers


def line(name: str, s: Standing, workers: int) -> str:
    """Where a study is, on one line."""
    left = seconds_left(s, workers)
    parts = [f"{name}: {s.done} done", f"{s.running} running", f"{s.waiting} waiting"]
    parts += [f"{s.bad} diverged or pruned"] if s.bad else []
    parts += (
        [f"best {min(r.bpb for r in s.newest if r.bpb is not None):.4f} bpb of the last {len(s.newest)}"]
        if any(r.bpb for r in s.newest)
        else []
    )
    parts += [f"{show_seconds(left)} left"] if left is not None and _open(s) else []
    return ", ".join([*parts, f"{s.yuan:.4g} yuan"])


def table(name: str, s: Standing, workers: int) -> Table:
    """The same with the newest trials, for a terminal."""
    from rich.table import Table

    out = Table(title=line(name, s, workers), title_justify="left")
    for heading in ("trial", "size", "N", "D", "batch", "lr", "schedule", "bpb", "time"):
        out.add_column(heading, justify="left" if heading in ("trial", "schedule") else "right")
    for r in reversed(s.newest):
        q = r.spec
        schedule = q.schedule if not q.parent else f"{q.schedule} decay"
        bpb = f"{r.bpb:.4f}" if r.bpb is not None else r.state
        cells = (
            r.key[:8],
            f"{q.width}x{q.layers}",
            f"{r.N:,}",
            f"{r.D:,}",
            f"{q.batch_tokens:,}",
            f"{q.lr:.4g}",
            schedule,
        )
        out.add_row(*cells, bpb, show_seconds(r.seconds))
    return out
