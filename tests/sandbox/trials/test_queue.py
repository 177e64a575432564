"""Queues, workers and searches: every trial once, whatever is killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gangpao.sandbox.experiments.config import config_type
from gangpao.sandbox.trials import queue
from gangpao.sandbox.trials.driver import Driver
from gangpao.sandbox.trials.queue import enqueue, grid_of, open_storage, open_study, results, work, write_config
from gangpao.sandbox.trials.search import Range, SearchConfig
from gangpao.sandbox.trials.trial import RESULT, ensure, key_of
from gangpao.train.progress import read_metrics
from tests.child import ROOT, environment


def whole(lab, specs):
    """Every spec has one run folder with every step once, and there are no others."""
    folders = sorted(p.name for p in (lab.out / "trials").iterdir())
    assert folders == sorted(key_of(lab, spec) for spec in specs)
    for spec in specs:
        steps = [m["step"] for m in read_metrics(lab.folder(spec)) if "loss" in m and "event" not in m]
        assert steps == list(range(1, spec.steps + 1))


def test_two_workers_do_each_trial_once_and_a_second_call_none(config, tmp_path):
    driver = Driver(config.model_copy(update={"workers": 2}), tmp_path)
    specs = [driver.lab.spec(lr=lr) for lr in (0.005, 0.01, 0.02, 0.04)]
    found = driver.submit("lr", specs)
    assert [r.spec for r in found] == specs
    assert len({r.bpb for r in found}) == 4
    whole(driver.lab, specs)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "trials").rglob("*")}
    assert driver.submit("lr", specs[::-1]) == found[::-1]
    assert driver.submit("another name", specs[:1]) == found[:1]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "trials").rglob("*")} == stamps


def _drive(config_file, out):
    config = config_type().model_validate_json(config_file.read_text())
    driver = Driver(config, out)
    driver.submit("lr", specs_of(driver.lab))


def specs_of(lab):
    stable = lab.spec(decay=0.0, steps=60, marks=(40,))
    return [
        stable,
        *(lab.spec(parent=stable, parent_step=40, steps=20, seed=0, lr=lr) for lr in (0.01, 0.02)),
        lab.spec(seed=5),
    ]


def started(config, tmp_path, out, until):
    """A driver in a process of its own, when until()."""
    file = write_config(config, tmp_path)
    code = (
        f"import sys; from pathlib import Path; sys.path.append({str(ROOT)!r}); from {__name__} import _drive; "
        "_drive(*map(Path, sys.argv[1:]))"
    )
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(file), str(out)],
            env=environment(),
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
    end = time.monotonic() + 90
    while not until():
        assert child.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.2)
    return child


def workers_on(out):
    """Process ids of the workers of a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if b"worker" in words and str(out).encode() in words:
                found.append(int(process.name))
    return found


def test_sigterm_takes_the_workers_along(config, tmp_path):
    out = tmp_path / "box"
    config = config.model_copy(update={"workers": 2})
    child = started(config, tmp_path, out, lambda: len(workers_on(out)) == 2)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM, (tmp_path / "log").read_text()
    assert workers_on(out) == []


def test_kill_9_of_everything_loses_nothing(config, tmp_path):
    """Driver and workers are killed in the middle; the second start finishes the rest, and each step is there once."""
    out = tmp_path / "box"
    config = config.model_copy(update={"workers": 2})
    child = started(config, tmp_path, out, lambda: list(out.glob("trials/*/metrics.jsonl")))
    child.send_signal(signal.SIGKILL)
    child.wait()
    for worker in workers_on(out):  # which it can no longer stop
        os.kill(worker, signal.SIGKILL)
    driver = Driver(config, out)
    specs = specs_of(driver.lab)
    found = driver.submit("lr", specs)
    assert [r.state for r in found] == ["done"] * len(specs)
    assert sorted(p.name for p in (out / "trials").iterdir()) == sorted(key_of(driver.lab, s) for s in specs)
    for spec in specs:
        steps = [m["step"] for m in read_metrics(driver.lab.folder(spec)) if "loss" in m]
        assert steps == list(range(spec.parent_step + 1, spec.parent_step + spec.steps + 1))


def test_a_worker_that_dies_alone_leaves_its_trial_to_the_others(lab, tmp_path):
    """In one process: a trial that is marked as running and belongs to nobody comes back."""
    storage = open_storage(f"sqlite:///{tmp_path / 'x.db'}")
    study = open_study(storage, "lr")
    specs = [lab.spec(), lab.spec(lr=0.02)]
    assert enqueue(study, lab, specs) == 2
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask()  # a worker takes one, and is killed
    assert enqueue(study, lab, specs) == 1
    assert work(lab, study) == 2
    assert set(results(study)) == {key_of(lab, s) for s in specs}
    assert enqueue(study, lab, specs) == 0
    assert work(lab, study) == 0


def test_what_a_changed_configuration_does_not_ask_for_is_not_done(lab, tmp_path):
    study = open_study(open_storage(f"sqlite:///{tmp_path / 'x.db'}"), "lr")
    before, after = [lab.spec(), lab.spec(lr=0.02)], [lab.spec(lr=0.02), lab.spec(lr=0.03)]
    assert enqueue(study, lab, before) == 2
    assert enqueue(study, lab, after, revive=False) == 1  # somebody else may still want them
    assert enqueue(study, lab, after) == 0
    assert work(lab, study) == 2
    assert set(results(study)) == {key_of(lab, s) for s in after}
    assert enqueue(study, lab, before) == 1  # and what is asked for again comes back


def test_no_two_workers_take_the_same_trial(tmp_path):
    """Four with connections of their own, which is what four processes have, at a queue that is soon empty."""
    url, number, taken = f"sqlite:///{tmp_path / 'x.db'}", 40, []
    study = open_study(open_storage(url), "lr")
    for _ in range(number):
        study.enqueue_trial({})
    studies = [open_study(open_storage(url), "lr") for _ in range(4)]
    start = threading.Barrier(len(studies))

    def take(study):
        start.wait()
        while (trial := study.ask()).number < number:
            taken.append(trial.number)

    with warnings.catch_warnings(), ThreadPoolExecutor(len(studies)) as pool:
        warnings.filterwarnings("ignore", "Heartbeat")
        for done in [pool.submit(take, study) for study in studies]:
            done.result()
    assert sorted(taken) == list(range(number))


def test_a_worker_whose_trial_was_given_to_another_goes_on(lab, tmp_path, monkeypatch):
    """A machine that slept: its trial failed meanwhile and is in the queue again. What it trained is not lost."""
    study = open_study(open_storage(f"sqlite:///{tmp_path / 'x.db'}"), "lr")
    specs = [lab.spec(), lab.spec(lr=0.02)]
    enqueue(study, lab, specs)
    slept = []

    def ensure_slowly(lab, spec, watch=None):
        result = ensure(lab, spec, watch)
        if not slept:
            slept.append(spec)
            enqueue(study, lab, specs)  # a driver that starts now takes it for dead
        return result

    monkeypatch.setattr(queue, "ensure", ensure_slowly)
    assert work(lab, study) == 2
    assert set(results(study)) == {key_of(lab, s) for s in specs}
    whole(lab, specs)


def test_an_error_of_a_trial_is_not_taken_for_that(lab, tmp_path):
    study = open_study(open_storage(f"sqlite:///{tmp_path / 'x.db'}"), "lr")
    enqueue(study, lab, [lab.spec()])
    lab.folder(lab.spec()).mkdir(parents=True)
    (lab.folder(lab.spec()) / RESULT).write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        work(lab, study)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_finds_a_better_value_than_its_first(lab, tmp_path, sampler):
    search = SearchConfig(space={"lr": Range(low=1e-4, high=0.3)}, sampler=sampler, trials=7, pruner="none")
    study = open_study(open_storage(f"sqlite:///{tmp_path / 'x.db'}"), "search", search)
    assert work(lab, study, search) == 7
    values = [t.value for t in study.trials]
    assert study.best_value == min(v for v in values if v is not None)
    assert study.best_value < values[0]
    assert work(lab, study, search) == 0


def test_a_grid_is_searched_whole_and_hopeless_trials_are_pruned(lab, tmp_path):
    space = {"lr": Range(choices=(0.01, 0.012, 0.014, 0.016, 1e-7)), "layers": Range(choices=(2,))}
    search = SearchConfig(space=space, sampler="grid", pruner="median", sampler_seed=1)
    study = open_study(open_storage(f"sqlite:///{tmp_path / 'x.db'}"), "search", search)
    for lr in (0.01, 0.012, 0.014, 0.016, 1e-7):  # the hopeless one last
        study.enqueue_trial({"lr": lr, "layers": 2})
    work(lab, study, search)
    found = {t.params["lr"]: t for t in study.trials}
    assert found[1e-7].state.name == "PRUNED"
    assert all(found[lr].state.name == "COMPLETE" for lr in (0.01, 0.012))
    pruned = results(study)[found[1e-7].user_attrs["key"]]
    assert pruned.state == "pruned"
    assert len([m for m in read_metrics(lab.out / "trials" / pruned.key) if "loss" in m]) < lab.spec().steps


def test_points_of_a_grid():
    assert grid_of("lr", Range(low=1.0, high=4.0, points=3)) == pytest.approx([1, 2, 4])
    assert grid_of("lr", Range(low=1.0, high=4.0, log=False, points=3)) == pytest.approx([1, 2.5, 4])
    with pytest.raises(ValueError, match=r"search.space.lr: a grid needs points"):
        grid_of("lr", Range(low=1.0, high=4.0))


def test_a_storage_that_is_not_there_is_named_without_its_password():
    with pytest.raises(ValueError, match=r"postgresql://me:\*\*\*@127.0.0.1:1/x|psycopg") as error:
        open_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)


@pytest.fixture
def postgres(tmp_path):
    """A real server from Debian's packages, in a folder of its own."""
    pytest.importorskip("psycopg")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no initdb: apt-get install postgresql")
    binaries, home = programs[-1].parent, tmp_path / "pg"
    user = [] if os.getuid() else ["runuser", "-u", "postgres", "--"]  # it refuses root
    home.mkdir()
    if user:
        shutil.chown(home, "postgres")
        for parent in home.parents:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 1:
                parent.chmod(parent.stat().st_mode | 0o011)
    subprocess.run(
        [*user, binaries / "initdb", "-D", home / "data", "-A", "trust", "-U", "box"], check=True, capture_output=True
    )
    options = f"-p 54399 -k {home} -c listen_addresses=127.0.0.1"
    subprocess.run(
        [*user, binaries / "pg_ctl", "-D", home / "data", "-o", options, "-w", "-l", home / "log", "start"],
        check=True,
        capture_output=True,
    )
    yield "postgresql://box@127.0.0.1:54399/postgres"
    subprocess.run(
        [*user, binaries / "pg_ctl", "-D", home / "data", "-m", "immediate", "stop"], check=True, capture_output=True
    )


@pytest.mark.slow
def test_workers_share_a_postgresql_study_and_one_is_killed(config, tmp_path, postgres):
    out = tmp_path / "box"
    driver = Driver(config.model_copy(update={"workers": 2}), out, storage=postgres)
    specs = [driver.lab.spec(lr=lr, tokens=51_200) for lr in (0.004, 0.006, 0.008, 0.01, 0.014, 0.02)]
    study = open_study(driver.storage, "lr")
    enqueue(study, driver.lab, specs, revive=False)
    file = write_config(driver.config, out)
    command = [
        sys.executable,
        "-P",
        "-m",
        "gangpao.cli",
        "sandbox",
        "worker",
        str(file),
        "--storage",
        postgres,
        "--study",
        "lr",
    ]
    with (tmp_path / "log").open("w") as log:
        options = {"stdout": log, "stderr": log, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
        first = subprocess.Popen([*command, "--out", str(out)], **options)
        end = time.monotonic() + 60
        while not list(out.glob("trials/*/metrics.jsonl")):
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
        second = subprocess.Popen([*command, "--out", str(out)], **options)
        third = subprocess.Popen([*command, "--out", str(tmp_path / "other machine")], **options)
        assert second.wait(200) == 0, (tmp_path / "log").read_text()
        assert third.wait(200) == 0, (tmp_path / "log").read_text()
    found = driver.submit("lr", specs)
    assert [r.state for r in found] == ["done"] * 6
    driver.close()
    ran = [p.parent.name for o in (out, tmp_path / "other machine") for p in o.glob(f"trials/*/{RESULT}")]
    assert sorted(ran) == sorted(key_of(driver.lab, s) for s in specs)
