"""Programs in the cage: attacks have no effect and no false verdict, honest programs pass, and everything ends."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gangpao.evaluate.graders.cage import parent as cage
from gangpao.evaluate.graders.cage import syscalls
from tests.evaluate.graders import attacks

QUICK = cage.Limits(seconds=1.0, memory_mb=512, output_bytes=200_000)


pytestmark = pytest.mark.usefixtures("caged")


def program(code: str) -> cage.Program:
    return cage.Program(code, attacks.TESTS, ("add",))


def results(codes: dict[str, str], limits: cage.Limits | None = None) -> dict[str, cage.Outcome]:
    outcomes = cage.run_all(map(program, codes.values()), run_code=True, limits=limits)
    return dict(zip(codes, outcomes, strict=True))


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server


def test_attacks_have_no_effect(tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("s", encoding="utf-8")
    monkeypatch.setenv("GANGPAO_TEST_SECRET", "s")
    bystander = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        facts = {"canary": tmp_path, "port": listening.getsockname()[1], "pid": bystander.pid}
        codes = {
            name: attacks._TRY.format(body="    " + body.format(**facts)) for name, body in attacks.EFFECTS.items()
        }
        found = results(codes)
        assert {n: o.why for n, o in found.items() if o.passed} == {}
        odd = {n: o.why for n, o in found.items() if not o.why.startswith("AssertionError (line 1")}
        assert odd == {}, "these were ended, where an error was expected"
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")
    with pytest.raises(TimeoutError):
        listening.accept()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret"]
    assert not (Path(os.__file__).parent / "written.py").exists()


def test_an_attack_that_works_would_be_seen() -> None:
    code = attacks._TRY.format(body="    open('/tmp/mine', 'w').write('x'); os.urandom(1); open('/dev/null').read()")
    assert results({"its own folder": code})["its own folder"].passed


def test_no_program_is_right_that_only_says_so() -> None:
    found = results(attacks.CHEATS, QUICK)
    assert {n: o.why for n, o in found.items() if o.passed} == {}
    assert "exit code 0" in found["os._exit within a call"].why
    assert "SystemExit" in found["exit before the tests"].why


def test_what_does_not_end_is_ended() -> None:
    found = results(attacks.ENDLESS, QUICK)
    assert {n: o.why for n, o in found.items() if o.passed} == {}
    assert "printed more than 200000 bytes" in found["print without end"].why
    assert len(found["print without end"].output) == 4_000
    assert left_over() == []


def test_processor_time_is_limited_whatever_the_clock_says() -> None:
    outcome = cage.run(program(attacks.ENDLESS["never end"]), run_code=True, limits=cage.Limits(cpu_seconds=1))
    assert outcome.why == "the program used more than 1 s of processor time"


def left_over() -> list[str]:
    """Commands of cages that still run, started by this process or by nobody any more."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if b"graders.cage.child" in command and parent in (1, os.getpid()):
            found.append(f"{folder.name}: {command!r:.80}")
    return found


def test_a_killed_grader_leaves_nothing() -> None:
    code = (
        "from gangpao.evaluate.graders.cage import parent as c\n"
        "print('go', flush=True)\n"
        "c._run(c.Program('while True: pass', '', ()), c.Limits(seconds=30))"
    )
    grader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert grader.stdout is not None
    assert grader.stdout.readline() == b"go\n"
    time.sleep(0.5)
    grader.kill()
    grader.communicate()  # ends when nobody holds the other end
    until = time.monotonic() + 5
    while left_over() and time.monotonic() < until:
        time.sleep(0.05)
    assert left_over() == []


HONEST = {
    "plain": ("def f(x): return x + 1", "assert f(1) == 2"),
    "values keep their types": (
        "def f(x): return x",
        "import math, decimal, fractions, datetime\n"
        "day = datetime.datetime(2026, 11, 29, 1, 2, 3)\n"
        "for x in (None, True, 3, -2**70, 1.5, -0.0, math.inf, 2j, 'a', '\\ud800', b'ab', bytearray(b'c'), [1, [2]],\n"
        "          (1,), {1, 2}, frozenset({3}), {1: 'a', (2, 3): [4]}, range(3), decimal.Decimal('0.1'), int, str,\n"
        "          fractions.Fraction(1, 3), day, day.date(), day.time(), day - datetime.datetime(2026, 1, 1)):\n"
        "    y = f(x)\n    assert type(y) is type(x) and y == x and repr(y) == repr(x), x\n"
        "assert math.isnan(f(math.nan)) and f(10**5000) == 10**5000",
    ),
    "subclasses arrive as plain values": (
        "import collections, enum\nclass E(enum.IntEnum):\n    A = 1\nP = collections.namedtuple('P', 'x y')\n"
        "def f(): return [E.A, P(1, 2), collections.Counter('aa'), collections.defaultdict(int, {1: 2})]",
        "assert f() == [1, (1, 2), {'a': 2}, {1: 2}]",
    ),
    "iterators": ("def f(): return map(abs, [-1, 2])", "assert list(f()) == [1, 2]\nassert f() != [1, 2]"),
    "objects stay": (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
        "def f(n): return n.v + (f(n.next) if n.next else 0)",
        "a = Node(1)\na.next = Node(2)\na.next.next = Node(3)\nassert f(a) == 6 and a.next.v == 2 and f(n=a) == 6\n"
        "assert f([Node(4)][0]) == 4 and Node(1) != Node(1) and a.next != a",
    ),
    "exceptions": (
        "def f(x):\n    if x: raise KeyError('k')\n    raise type('Own', (Exception,), {})('o')",
        "try:\n    f(1)\n    assert False\nexcept KeyError: pass\ntry:\n    f(0)\n    assert False\nexcept RuntimeError: pass",
    ),
    "standard library": (
        "import re, math, heapq, collections, itertools, functools, hashlib, sqlite3, ctypes, typing, dataclasses, random, json\n"
        "def f(s): return hashlib.md5(s).hexdigest()",
        "assert f(b'x') == '9dd4e461268c8034f5c8564e155c67a6'",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f():\n    with ThreadPoolExecutor(2) as pool: return list(pool.map(abs, [-1, -2]))",
        "assert f() == [1, 2]",
    ),
    "main is not run": ("f = lambda: 1\nif __name__ == '__main__':\n    raise SystemExit", "assert f() == 1"),
    "deep recursion": ("def f(n): return 0 if n == 0 else 1 + f(n - 1)", "assert f(900) == 900"),
}  # fmt: skip


def test_honest_programs_pass() -> None:
    names = {"objects stay": ("f", "Node")}
    programs = [cage.Program(code, tests, names.get(name, ("f",))) for name, (code, tests) in HONEST.items()]
    found = zip(HONEST, cage.run_all(programs, run_code=True), strict=True)
    assert {name: o.why for name, o in found if not o.passed} == {}


def test_the_helpers_of_a_prompt_are_its_own() -> None:
    """What the tests need beside the function under test comes from the prompt, whatever the program makes of it."""
    prelude = "import math\n\ndef error(x):\n    return abs(x - math.pi)\n\ndef pi():\n    '''The number.'''\n"
    tests = "assert error(pi()) < 1e-3"
    cheat = cage.Program("def error(x): return 0\ndef pi(): return 7", tests, ("pi",), prelude)
    right = cage.Program("def pi(): return 3.14159", tests, ("pi",), prelude)
    assert [o.passed for o in cage.run_all([cheat, right], run_code=True)] == [False, True]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def add(a, b) return", "does not load: SyntaxError: expected"),
        ("def sub(a, b): return a - b", "NameError: the program defines no add"),
        ("def add(a, b): return a / 0", "ZeroDivisionError: division by zero (line 1 of the tests)"),
        ("def add(a, b): return a - b", "AssertionError (line 1 of the tests)"),
        ("import ctypes\ndef add(a, b): return ctypes.string_at(1)", "Segmentation fault"),
        ("def add(a, b):\n    raise KeyboardInterrupt", "RuntimeError: KeyboardInterrupt"),
        ("import nothing_like_it", "does not load: ModuleNotFoundError"),
        ("", "the program defines no add"),
        ("x = '\x00'", "does not load"),
    ],
)
def test_the_reason_is_said(code: str, why: str) -> None:
    outcome = cage.run(program(code), run_code=True)
    assert not outcome.passed
    assert why in outcome.why


def test_code_must_be_asked_for() -> None:
    with pytest.raises(ValueError, match=r"--run-code"):
        cage.run_all([program("")], run_code=False)


def test_without_namespaces_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    cage._problem.cache_clear()
    monkeypatch.setattr(cage, "_run", lambda *_: (_ for _ in ()).throw(cage.CageError("new namespaces: EPERM")))
    try:
        with pytest.raises(cage.CageError, match=r"new namespaces: EPERM.*never run without a cage.*Ways out"):
            cage.run(program(f"open({str(canary)!r}, 'w')"), run_code=True)
    finally:
        cage._problem.cache_clear()
    assert not canary.exists()


def test_a_strict_umask_and_a_library_path_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    code = "import os, hashlib\ndef add(a, b): return a + b + len(os.environ)"
    before = os.umask(0o077)
    try:
        assert cage.run(program(code), run_code=True).why == "passed"
    finally:
        os.umask(before)


@pytest.mark.slow
def test_many_at_a_time_are_judged_as_one_at_a_time() -> None:
    codes = [f"def add(a, b): return a + b + {n % 3}" for n in range(150)]
    found = list(cage.run_all(map(program, codes), run_code=True, workers=8))
    assert [o.passed for o in found] == [n % 3 == 0 for n in range(150)]
    assert left_over() == []


ASK = "from gangpao.evaluate.graders.cage import parent as c; print(c._problem())"


def in_container(*before: str) -> str:
    """What a Python says of the cage that runs as the only user, root, of a user namespace, as in a container."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("the program unshare is not installed")
    script = " && ".join([*before, 'exec "$0" -c "$1"'])
    command = [unshare, "--user", "--map-root-user", "sh", "-c", script, sys.executable, ASK]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"no user namespace for a test: {done.stderr[-200:]}")
    return done.stdout.strip()


def test_the_root_of_a_container_has_a_cage_too() -> None:
    assert in_container() == ""


def test_a_system_that_forbids_namespaces_is_named() -> None:
    said = in_container("echo 0 > /proc/sys/user/max_user_namespaces")
    assert "no cage for programs can be built here" in said
    assert "user.max_user_namespaces is 0: sudo sysctl -w user.max_user_namespaces=10000" in said
    assert "Ways out" in said


def test_a_step_that_fails_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cage, "_system", lambda: {"folders": ["/nowhere"], "links": {}, "masks": []})
    with pytest.raises(cage.CageError, match="/nowhere"):
        cage._run(program(""), cage.Limits())


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for attribute, value, said in (("platform", "darwin", "needs Linux"), ("platform", "win32", "needs Linux")):
        cage._problem.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(sys, attribute, value)
            assert said in cage._problem()
    cage._problem.cache_clear()


def test_every_machine_of_the_table_has_a_filter() -> None:
    for machine in ("x86_64", "aarch64"):
        steps = syscalls.program(machine)
        assert len(steps) % 8 == 0
        assert 100 < len(steps) // 8 < 4096
    assert syscalls.program("riscv64") == b""
