"""Many trials at once: a queue in an Optuna study, workers that take from it, and a table of what happens.

A grid of an experiment is a list of specs that are put into the queue; a search (random, TPE, the paper's Bayesian one, or
a grid) lets the study's sampler choose. Either way a worker asks the study for a trial, ensures it (trial.py), and tells
what came out. SQLite is the storage on one machine; with postgresql:// workers on other machines take from the same queue.

Every worker is one process that lives for many trials, with its own share of the cores: small models leave a second thread idle
most of the time, so two trials at once are faster than one trial with two threads.

After kill -9 a second start puts the trials that nobody runs any more back into the queue; what they had trained is
in their run folders. What it gives up: a worker on another machine needs the same data and its own folder of runs.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from gangpao import machine
from gangpao.sandbox.reasons import Reason
from gangpao.sandbox.trials.config import SandboxConfig
from gangpao.sandbox.trials.search import (
    SEARCH,
    Range,
    SearchConfig,
    fitted,
    grid_of,
    number_of,
    search_name,
    step_of,
)
from gangpao.sandbox.trials.trial import Lab, Pruned, Result, Spec, cost_of, ensure, key_of

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 40
RETRIES = 20
SQLITE_SECONDS = 60.0  # that a process waits for another one's transaction
PRUNING_REPORTS = 12  # a trial tells so many times how it does


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's heartbeat has been "experimental" since 2021, and it says so at every turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Where a study lives: sqlite:///file or postgresql://. Raises ValueError when it cannot be reached."""
    if url.startswith("postgresql://"):  # else SQLAlchemy asks for the driver before psycopg 3
        url = url.replace("postgresql", "postgresql+psycopg", 1)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", optuna.exceptions.ExperimentalWarning
        )  # the heartbeat is "experimental" since 2021
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
        try:
            storage = optuna.storages.RDBStorage(
                url,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=retry,
                engine_kwargs={"connect_args": {"timeout": SQLITE_SECONDS}} if url.startswith("sqlite") else None,
            )
        except ImportError as error:
            raise ValueError(f"storage {_safe(url)}: {error}; for PostgreSQL: pip install 'psycopg[binary]'") from error
        except Exception as error:
            raise ValueError(f"storage {_safe(url)}: cannot be opened ({type(error).__name__}: {error})") from error
    if url.startswith("sqlite"):
        _one_at_a_time(storage.engine)
    return storage


def _one_at_a_time(engine: sqlalchemy.Engine) -> None:
    """Take SQLite's write lock before a transaction reads. Optuna looks whether a trial waits and then marks it as its own;
    Python's driver begins a transaction only at the second of these, so that two workers could take the same trial."""

    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing of its own

    def begun(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", connected)
    sqlalchemy.event.listen(engine, "begin", begun)
    engine.dispose()  # connections that were made before


def _safe(url: str) -> str:
    """A URL without its password."""
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:***@{tail}" if at and head.count(":") > 1 else url


def local_storage(out: Path) -> str:
    """The SQLite file of a sandbox."""
    out.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(out / 'sandbox.db').absolute()}"


def open_study(storage: optuna.storages.RDBStorage, name: str, search: SearchConfig | None = None) -> Study:
    """The study of that name, made when it is not there. search: None for a queue of given trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, sampler=_sampler(search), pruner=_pruner(search)
    )


def join_study(storage: optuna.storages.RDBStorage, lab: Lab, name: str) -> tuple[Study, SearchConfig | None]:
    """The study that a worker takes trials from, and its search. name: of an experiment, or "search" for that of the worker's
    configuration. Raises ValueError where there is no such study."""
    search = None
    if name == SEARCH or name.startswith(f"{SEARCH}-"):
        search, name = (
            fitted(lab.config.table(SearchConfig), lab.config),
            search_name(lab, lab.config.table(SearchConfig), name),
        )
    there = sorted(optuna.get_all_study_names(storage))
    if name not in there:
        hint = "; the name of a search follows from its configuration: give the driver's" if search else ""
        raise ValueError(
            f"storage {_safe(storage.url)}: there is no study {name!r:.80}; there are {', '.join(there) or 'none'}{hint}"
        )
    return open_study(storage, name, search), search


def _sampler(search: SearchConfig | None, trial: int = 0) -> optuna.samplers.BaseSampler:
    """trial: its number, which goes into the seed: two workers, or one that starts again, would draw the same values twice."""
    if search is None:
        return optuna.samplers.RandomSampler(seed=0)
    if search.sampler == "grid":
        space = {n: grid_of(n, r) for n, r in search.space.items()}
        return optuna.samplers.GridSampler(space, seed=search.sampler_seed)
    seed = int(np.random.SeedSequence([search.sampler_seed, trial]).generate_state(1)[0])
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, min(10, search.trials // 3)))


def _pruner(search: SearchConfig | None) -> optuna.pruners.BasePruner:
    if search is None or search.pruner == "none":
        return optuna.pruners.NopPruner()
    if search.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=PRUNING_REPORTS // 4)
    return optuna.pruners.HyperbandPruner(min_resource=PRUNING_REPORTS // 4, max_resource=PRUNING_REPORTS)


# --- the queue


def enqueue(study: Study, lab: Lab, specs: Sequence[Spec], *, revive: bool = True) -> int:
    """Put trials into the queue that are not in it; the number of new ones. revive: nobody else works on this study, so
    trials that are marked as running belong to a process that was killed, and go back into the queue; those that wait and
    are not asked for any more, because somebody changed the configuration, leave it. Without it only those of another
    configuration leave, and only while no trial runs. Raises ValueError when one does: two configurations share a study."""
    asked = {key_of(lab, spec): spec for spec in specs}
    known = set()
    if not revive:
        _drop_others(study, lab)
    for trial in study.get_trials(deepcopy=False):
        key, queued = trial.user_attrs.get("key"), "spec" in trial.user_attrs
        if revive and trial.state == TrialState.RUNNING:
            if not queued:  # chosen by a search: the next worker goes on with its run
                study.add_trial(_again(trial))
            study.tell(trial.number, state=TrialState.FAIL)
        elif revive and _waits(trial) and (key not in asked or _key_here(lab, trial) != key):
            _drop(study, trial)
        elif not trial.state.is_finished() or (queued and _result_of(trial) is not None):
            known.add(key)
    new = [(key, spec) for key, spec in asked.items() if key not in known]
    for key, spec in new:
        study.enqueue_trial({}, user_attrs={"key": key, "spec": spec.model_dump(mode="json")})
    return len(new)


def _again(trial: FrozenTrial) -> FrozenTrial:
    """A trial with the values that were chosen for this one."""
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
    )


def _waits(trial: FrozenTrial) -> bool:
    """Is it a given trial that nobody has taken?"""
    return trial.state == TrialState.WAITING and "spec" in trial.user_attrs


def _drop(study: Study, trial: FrozenTrial) -> None:
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # tell() takes running ones only


def _drop_others(study: Study, lab: Lab) -> None:
    """Trials of another configuration that wait in a shared study would stop every worker of ours."""

    def others() -> list[FrozenTrial]:
        return [t for t in study.get_trials(deepcopy=False) if _waits(t) and _key_here(lab, t) != t.user_attrs["key"]]

    if not others():
        return
    with _quiet():
        optuna.storages.fail_stale_trials(study)
    left = others()
    if any(t.state == TrialState.RUNNING for t in study.get_trials(deepcopy=False)):
        raise ValueError(
            f"study {study.study_name}: {len(left)} trials wait there that were asked for with another configuration, and somebody "
            f"works on them; wait until they are done, or use a database of your own"
        )
    for trial in left:
        _drop(study, trial)


def _key_here(lab: Lab, trial: FrozenTrial | Trial) -> str | None:
    """The key of a queued trial under this configuration; None where it cannot be one."""
    try:
        return key_of(lab, Spec.model_validate(trial.user_attrs["spec"]))
    except ValueError:  # a width of no whole heads, a batch of no whole rows
        return None


def _result_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """What came out of a trial, where it counts: under the configuration that asked for it, and of a queued one that was trained
    to its end (what a search has pruned was once taken for that)."""
    found: dict[str, Any] | None = trial.user_attrs.get("result")
    if found is None or found["key"] != trial.user_attrs.get("key"):
        return None
    return None if "spec" in trial.user_attrs and found["state"] == "pruned" else found


def results(study: Study) -> dict[str, Result]:
    """Key -> result of every trial that ended."""
    found = [_result_of(t) for t in study.get_trials(deepcopy=False)]
    return {r["key"]: Result.model_validate(r) for r in found if r is not None}


# --- a worker


def work(lab: Lab, study: Study, search: SearchConfig | None = None) -> int:
    """Take trials until there are none; how many were done. Trials that a dead worker left come back after a while."""
    done = 0
    while True:
        with _quiet():
            optuna.storages.fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        open_ = [t for t in trials if t.state in (TrialState.WAITING, TrialState.RUNNING)]
        waiting = any(t.state == TrialState.WAITING for t in open_)
        if waiting or (search is not None and unasked(trials, search)):
            done += _one(lab, study, search)
        elif open_:
            time.sleep(0.3)  # its worker may die, and then it is ours
        else:
            return done


def _one(lab: Lab, study: Study, search: SearchConfig | None) -> bool:
    """Take a trial and do it; False when it was taken from us meanwhile: a machine that slept longer than the others wait."""
    ours: list[Exception] = []

    def objective(trial: Trial) -> float:
        try:
            return _objective(lab, trial, search)
        except (optuna.TrialPruned, optuna.exceptions.UpdateFinishedTrialError):
            raise
        except Exception as error:
            ours.append(error)
            raise

    try:
        study.optimize(objective, n_trials=1, catch=())
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        if ours:
            raise
        return False  # Optuna refuses what we tell; the run's folder has the result for whoever has the trial now
    return True


def unasked(trials: Sequence[FrozenTrial], search: SearchConfig) -> int:
    """Trials that a search has still to choose."""
    failed = sum(t.state == TrialState.FAIL for t in trials)
    return max(0, number_of(search) - (len(trials) - failed))


def searched(study: Study, search: SearchConfig) -> bool:
    """Has a search had all its trials?"""
    states = [t.state for t in study.get_trials(deepcopy=False)]
    return states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) >= number_of(search)


def _objective(lab: Lab, trial: Trial, search: SearchConfig | None) -> float:
    if "spec" in trial.user_attrs:
        result = ensure(lab, _asked_for(lab, trial))
        trial.set_user_attr("result", result.model_dump(mode="json"))
        if result.bpb is None:
            raise optuna.TrialPruned(_said(result))
        return result.bpb
    if search is None:  # another worker took the last one in the queue, and Optuna made a new one for us
        raise optuna.TrialPruned("nothing left")
    if search.sampler != "grid":  # whose points are chosen by now
        trial.study.sampler = _sampler(search, trial.number)
    changes = {name: _suggest(trial, name, r, step_of(name, lab.config)) for name, r in search.space.items()}
    trial.set_user_attr("values", changes)
    specs = [lab.spec(**changes, seed=seed) for seed in search.seeds]
    trial.set_user_attr("key", key_of(lab, specs[0]))
    found = []
    for i, spec in enumerate(specs):
        found.append(ensure(lab, spec, _watch(trial, spec) if i == 0 and search.pruner != "none" else None))
        trial.set_user_attr("result", found[0].model_dump(mode="json"))
        if found[-1].bpb is None:
            raise optuna.TrialPruned(_said(found[-1]))
    return sum(r.bpb or 0.0 for r in found) / len(found)


def _said(result: Result) -> str:
    """Why a trial has no loss, for Optuna's records."""
    return result.reason.text().en if result.reason else result.state


def _asked_for(lab: Lab, trial: Trial) -> Spec:
    """The spec of a queued trial. Raises ValueError where it is another run under this configuration than under that of who asked:
    then it goes back into the queue, for a worker that has the right one."""
    attributes = trial.user_attrs
    if _key_here(lab, trial) == attributes["key"]:
        return Spec.model_validate(attributes["spec"])
    trial.study.enqueue_trial({}, user_attrs={"key": attributes["key"], "spec": attributes["spec"]})
    raise ValueError(
        f"study {trial.study.study_name}, trial {attributes['key']}: it was asked for with another configuration (data, seq_len, "
        "head_dim, base ...) than this worker's; give the worker the TOML and the --set of the one who asked. "
        "The trial is back in the queue"
    )


def _suggest(trial: Trial, name: str, r: Range, step: int | None) -> Any:
    if r.choices:
        return trial.suggest_categorical(name, list(r.choices))
    assert r.low is not None
    assert r.high is not None
    if step is None:
        return trial.suggest_float(name, r.low, r.high, log=r.log)
    low, high = int(r.low), int(r.high)
    if not r.log or step == 1:
        return trial.suggest_int(name, low, high, step=step, log=r.log)
    # Optuna has no steps in logs.
    return step * trial.suggest_int(f"{name} / {step}", low // step, high // step, log=True)


def best_values(study: Study) -> dict[str, Any]:
    """The fields of the best trial of a search. Raises ValueError where none was trained to its end."""
    if not any(t.state == TrialState.COMPLETE for t in study.get_trials(deepcopy=False)):
        raise ValueError(f"study {study.study_name}: no trial has ended well, all diverged or were pruned")
    best: dict[str, Any] = study.best_trial.user_attrs["values"]
    return best


def _watch(trial: Trial, spec: Spec) -> Any:
    """Tells the study the mean training loss of each part of a trial, and stops it when the study says so."""
    every = max(1, spec.steps // PRUNING_REPORTS)
    seen: list[float] = []

    def watch(line: dict[str, Any]) -> None:
        if not isinstance(line.get("loss"), float) or "event" in line:
            return
        seen.append(line["loss"])
        if line["step"] % every == 0 and line["step"] < spec.steps:
            trial.report(sum(seen) / len(seen), line["step"] // every)
            seen.clear()
            if trial.should_prune():
                raise Pruned(Reason.of("worse", step=line["step"]))

    return watch


# --- the one who starts workers and watches


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a study is: numbers of trials by state (waiting: also those that a search has still to choose), FLOPs that are left,
    seconds, yuan, and the newest results."""

    done: int
    bad: int
    running: int
    waiting: int
    flops_left: float
    busy: float
    flops_done: float
    yuan: float
    newest: list[Result]


class Watch:
    """Looks at a study again and again, and works out what it knows of a trial once."""

    def __init__(self, lab: Lab, study: Study, search: SearchConfig | None = None) -> None:
        self.lab, self.study, self.search = lab, study, search
        self._results: dict[int, Result] = {}
        self._flops: dict[int, float] = {}

    def look(self) -> Standing:
        """What the study says now."""
        trials = self.study.get_trials(deepcopy=False)
        never = datetime.datetime.max
        ended = sorted((t for t in trials if _result_of(t) is not None), key=lambda t: t.datetime_complete or never)
        found = [self._result(t) for t in ended]
        left = [t for t in trials if t.state in (TrialState.WAITING, TrialState.RUNNING)]
        given, more = [t for t in left if "spec" in t.user_attrs], unasked(trials, self.search) if self.search else 0
        usual = sum(r.flops for r in found) / len(found) * len(self.search.seeds) if found and self.search else 0.0
        return Standing(
            done=sum(r.state == "done" for r in found),
            bad=sum(r.state != "done" for r in found),
            running=sum(t.state == TrialState.RUNNING for t in left),
            waiting=sum(t.state == TrialState.WAITING for t in left) + more,
            flops_left=sum(self._flops_of(t) for t in given) + usual * (len(left) - len(given) + more),
            busy=sum(r.seconds for r in found),
            flops_done=sum(r.flops for r in found),
            yuan=sum(r.yuan for r in found),
            newest=found[-5:],
        )

    def _result(self, trial: FrozenTrial) -> Result:
        if trial.number not in self._results:
            self._results[trial.number] = Result.model_validate(trial.user_attrs["result"])
        return self._results[trial.number]

    def _flops_of(self, trial: FrozenTrial) -> float:
        if trial.number not in self._flops:
            self._flops[trial.number] = cost_of(self.lab, Spec.model_validate(trial.user_attrs["spec"]))[2]
        return self._flops[trial.number]


def workers_of(config: SandboxConfig) -> int:
    """Trials at a time on this machine."""
    return config.workers or max(1, machine.physical_cores() // config.threads)


def start_worker(
    config_file: Path, out: Path, storage: str, name: str, threads: int, core: int, log: Path
) -> subprocess.Popen[bytes]:
    """A process that takes trials until there are none, on cores of its own where the machine has them."""
    command = [
        sys.executable, "-P", "-m", "gangpao.cli", "sandbox", "worker", str(config_file), "--out", str(out), "--storage", storage,
        "--study", name, "--core", str(core),
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with log.open("ab") as file:
        return subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)


def pin(core: int, threads: int) -> None:
    """Keep this process on `threads` cores from `core` on, when the machine has as many; else wherever the system likes."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        chosen = allowed[core : core + threads]
        if len(chosen) == threads:
            os.sched_setaffinity(0, chosen)


def write_config(config: SandboxConfig, out: Path) -> Path:
    """The resolved configuration as a file that a worker reads (JSON: a worker is started by us)."""
    path = out / "sandbox.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=1), encoding="utf-8")
    return path
