"""An older gangpao, built from its commit, to be measured beside this one.

The engine name `gangpao@COMMIT` means the tree of that commit (git archive), built with the compiler at hand into
$XDG_CACHE_HOME/gangpao/builds/<commit>, once; some minutes. It runs with this Python and this Python's packages, so what
differs is gangpao alone. Both are run as a user runs them: `gangpao bench`, in processes of their own.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import peers

ROOT = Path(__file__).resolve().parent.parent
MARK = "gangpao@"


def is_build(engine: str) -> bool:
    """Whether an engine's name means an older gangpao."""
    return engine.startswith(MARK)


def folder(engine: str) -> Path:
    """What has to be first on PYTHONPATH for `gangpao@COMMIT`; built if need be. Raises ValueError for an unknown commit."""
    commit = commit_of(engine)
    home = peers.root().with_name("builds") / f"{commit[:12]}-{sys.implementation.cache_tag}"
    if not home.exists():
        build(commit, home)
    return home


def commit_of(engine: str) -> str:
    """The full hash of the commit that an engine's name means."""
    name = engine.removeprefix(MARK)
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise ValueError(f"{engine}: this repository has no commit {name!r}; fetch it, or name another")
    return found.stdout.strip()


def build(commit: str, home: Path) -> None:
    """Unpack, compile, and make visible at `home` by one rename."""
    peers.say(f"building gangpao of {commit[:12]} once, for this machine; some minutes")
    home.parent.mkdir(parents=True, exist_ok=True)
    work = home.with_name(home.name + ".building")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    archive, log = work / "source.tar", work.with_suffix(".log")
    peers.run(["git", "-C", str(ROOT), "archive", "--output", str(archive), commit], log)
    with tarfile.open(archive) as tar:
        tar.extractall(work / "source", filter="data")
    # Without the packages that build it, pip fetches them.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("scikit_build_core") else []
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        *isolation,
        "--target",
        str(work / "done"),
    ]
    peers.run([*command, str(work / "source")], log)
    (work / "done").rename(home)
    shutil.rmtree(work)
    log.unlink()


def environment(engine: str) -> dict[str, str]:
    """The variables under which Python imports that gangpao, or this one."""
    own = {"PYTHONPATH": str(folder(engine))} if is_build(engine) else {}
    return {**os.environ, **own}
