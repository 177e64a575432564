"""Run programs that a model wrote against tests, many at a time, each in a cage of its own.

    outcome = cage.run(Program(code, tests, names=("add",)), run_code=True)

A run is a process of its own with an empty environment; it ends with its verdict, at the wall clock's limit, or when it has written
too much, and with it everything that it started. The code must be asked for by name (`run_code=True`; the command's option is
--run-code): however narrow a cage is, whoever runs foreign code should know it.

What it gives up: systems other than Linux, and Linux without user namespaces. There is no way to run a program without a cage.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import selectors
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gangpao.evaluate.graders.cage import syscalls

_START_S = 20.0  # beside the limit of a program: processes start slowly on a machine that is busy
_HOME = Path(__file__).resolve().parents[4]  # the folder of the package
_START = """import sys
home, *files = sys.argv[1:]
sys.path.append(home)
from gangpao.evaluate.graders.cage.child import main
sys.path.remove(home)
sys.exit(main(*map(int, files)))"""
_KEPT = 4_000  # characters of output
_VERDICT_BYTES = 16_000


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 10  # of the program, and of its tests; what decides where a machine is busy
    seconds: float = 30.0  # wall clock, tests included
    memory_mb: int = 1024  # address space
    temporary_mb: int = 16  # its folder; also the most that one file holds
    output_bytes: int = 4_000_000  # printed; the run ends there
    processes: int = 24  # threads, the two processes of ours included
    files: int = 64


@dataclass(frozen=True)
class Program:
    """Something to run and what must hold of it."""

    code: str  # the program as the model wrote it
    tests: str  # Python that raises where the program is wrong
    names: tuple[str, ...]  # what the tests take from the program
    prelude: str = ""  # Python before the tests: imports and helpers that are not the model's


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    passed: bool
    why: str  # "passed", or what went wrong in one line
    output: str = ""  # the beginning of what the program printed
    seconds: float = 0.0


class CageError(ValueError):
    """Programs cannot be run safely here; says why and what to do."""


def check() -> None:
    """Raise CageError unless a harmless program passes in the cage on this machine. Asked once."""
    problem = _problem()
    if problem:
        raise CageError(problem)


@functools.cache
def _problem() -> str:
    ways = (
        " Programs are never run without a cage. Ways out: grade on Linux 5.14 or later with user namespaces (WSL 2 and a virtual "
        "machine have them; a container needs --security-opt seccomp=unconfined --security-opt apparmor=unconfined), or leave the "
        "tasks with code out; the answers are kept, and can be graded elsewhere."
    )
    if sys.platform != "linux":
        return f"a cage for programs needs Linux, and this is {platform.system()}.{ways}"
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"a cage for programs is built for x86_64 and aarch64, and this is {platform.machine()}.{ways}"
    try:
        outcome = _run(Program("def one():\n    return 1", "assert one() == 1", ("one",)), Limits())
    except CageError as error:
        return f"no cage for programs can be built here: {error}{_causes()}.{ways}"
    return "" if outcome.passed else f"a harmless program failed in the cage ({outcome.why}).{ways}"


def _causes() -> str:
    """Settings of this kernel that forbid namespaces, and how they are set otherwise."""
    forbidding = {
        "user/max_user_namespaces": "0",
        "kernel/unprivileged_userns_clone": "0",
        "kernel/apparmor_restrict_unprivileged_userns": "1",
    }
    found = []
    for name, value in forbidding.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", name).read_text(encoding="ascii").strip() == value:
                other = "1" if value == "0" and "clone" in name else "10000" if value == "0" else "0"
                found.append(f"{name.replace('/', '.')} is {value}: sudo sysctl -w {name.replace('/', '.')}={other}")
    return "; " + "; ".join(found) if found else ""


def run(program: Program, *, run_code: bool, limits: Limits | None = None) -> Outcome:
    """One program. Raises CageError where none can be run, ValueError without run_code."""
    return next(iter(run_all([program], run_code=run_code, limits=limits, workers=1)))


def run_all(
    programs: Iterable[Program], *, run_code: bool, limits: Limits | None = None, workers: int | None = None
) -> Iterator[Outcome]:
    """Outcomes in the order of `programs`, `workers` (the number of CPUs) at a time. Raises as `run`, before any is run."""
    if not run_code:
        raise ValueError(
            "this task runs programs that the model wrote. They run in a cage without network and files; "
            "say --run-code (run_code=True) to allow it, or leave the task out"
        )
    check()
    return _outcomes(list(programs), limits or Limits(), workers or os.cpu_count() or 1)


def _outcomes(programs: list[Program], limits: Limits, workers: int) -> Iterator[Outcome]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cage")
    try:
        yield from pool.map(lambda program: _run(program, limits), programs)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@functools.cache
def _system() -> dict[str, Any]:
    """The folders of the machine that a cage shows: the standard library and shared libraries, without installed packages."""
    wanted = [Path(p) for p in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")]
    links = {str(p): os.readlink(p) for p in wanted if p.is_symlink()}
    wanted = [p for p in wanted if p.is_dir() and not p.is_symlink()]
    wanted += [Path(p) / "lib" for p in (sys.base_prefix, sys.base_exec_prefix)]
    wanted.append(Path(sysconfig.get_path("stdlib")))
    found = sorted({p.resolve() for p in wanted if p.is_dir()})
    folders = [p for p in found if not any(p != q and p.is_relative_to(q) for q in found)]
    patterns = ("{}-packages", "python3*/{}-packages")
    kinds = ("site", "dist")
    masks = {m for f in folders for p in patterns for k in kinds for m in f.glob(p.format(k)) if m.is_dir()}
    plain = {m for m in masks if not m.is_symlink()}
    return {"folders": [str(f) for f in folders], "links": links, "masks": sorted(str(m) for m in plain)}


def _settings(program: Program, limits: Limits) -> dict[str, Any]:
    return {
        **_system(),
        "parent": os.getpid(),
        "program": program.code,
        "temporary_mb": limits.temporary_mb,
        "filter": syscalls.program(platform.machine()).hex(),
        "limits": {
            "RLIMIT_CPU": limits.cpu_seconds,
            "RLIMIT_AS": limits.memory_mb * 1_000_000,
            "RLIMIT_FSIZE": limits.temporary_mb * 1_000_000,
            "RLIMIT_NOFILE": limits.files,
            "RLIMIT_NPROC": limits.processes,
            "RLIMIT_CORE": 0,
        },
    }


def _loader() -> dict[str, str]:
    """What a Python may need to find its own library; the program does not see it."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _in_memory(name: str, value: Any) -> int:
    """A nameless file with JSON in it."""
    file = os.memfd_create(name)
    with open(file, "wb", closefd=False) as out:
        out.write(json.dumps(value).encode())
    return file


def _run(program: Program, limits: Limits) -> Outcome:
    started = time.monotonic()
    tests = {
        "tests": program.tests,
        "prelude": program.prelude,
        "names": program.names,
        "cpu_seconds": limits.cpu_seconds,
    }
    ours, theirs = os.pipe()
    files = [_in_memory("settings", _settings(program, limits)), _in_memory("tests", tests), theirs]
    command = [sys.executable, "-s", "-S", "-P", "-c", _START, str(_HOME), *map(str, files)]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=files,
            # Sets and dicts of text have the same order in every run, so that a verdict does not change by chance.
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", **_loader()}, cwd=os.sep, start_new_session=True,
        )  # fmt: skip
    finally:
        for file in files:
            os.close(file)
    try:
        with process:
            try:
                verdict, output, why = _read(process, ours, limits)
            finally:
                process.kill()  # and the kernel kills what is in the cage
    finally:
        os.close(ours)
    return replace(_outcome(verdict, why, output), output=_shown(output), seconds=time.monotonic() - started)


def _read(process: subprocess.Popen[bytes], verdict_file: int, limits: Limits) -> tuple[bytes, bytes, str]:
    """Verdict, the beginning of the output, and why the run was ended from here, if it was."""
    assert process.stdout is not None
    printed, verdict, output = 0, bytearray(), bytearray()
    deadline = time.monotonic() + _START_S
    out = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        selector.register(verdict_file, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return b"", bytes(output), f"the program took more than {limits.seconds:g} s"
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                if key.fd == verdict_file:
                    if not verdict:
                        deadline = time.monotonic() + limits.seconds
                    verdict += piece
                    if not piece or len(verdict) > _VERDICT_BYTES:
                        return bytes(verdict), bytes(output), ""
                    continue
                printed += len(piece)
                output += piece[: max(0, _KEPT * 4 - len(output))]
                if printed > limits.output_bytes:
                    return b"", bytes(output), f"the program printed more than {limits.output_bytes} bytes"
                if not piece:
                    selector.unregister(out)


def _outcome(verdict: bytes, why: str, output: bytes) -> Outcome:
    if why:
        return Outcome(False, why)
    try:
        said = json.loads(verdict)
    except ValueError:
        said = {}
    if "broken" in said:
        raise CageError(said["broken"])
    if not isinstance(said.get("passed"), bool):
        return Outcome(False, "the tests ended without a verdict")
    return Outcome(said["passed"], str(said["why"]))


def _shown(output: bytes) -> str:
    return output.decode("utf-8", "replace")[:_KEPT]
