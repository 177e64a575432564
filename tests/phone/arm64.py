"""An arm64 system to start a wheel in: Python 3.11 from Debian's packages and qemu's user mode, unpacked into a folder.

Nothing is installed on this machine: apt gets state and lists of its own in that folder, and needs no root. The folder is kept, as
fetching takes a minute.
"""

import compileall
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.child import ROOT

FOLDER = ROOT / "build" / "arm64"
# Python, and what it and compiled packages are linked to.
PACKAGES = (
    "libc6", "libgcc-s1", "gcc-12-base", "libstdc++6", "python3.11-minimal", "libpython3.11-minimal", "python3.11",
    "libpython3.11-stdlib", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1",
    "libncursesw6", "libtinfo6", "libreadline8", "libcrypt1", "libdb5.3", "media-types",
)  # fmt: skip
EMULATOR = "qemu-user-static"


def shell(*command: str, seconds: int = 600, **more: str) -> subprocess.CompletedProcess[str]:
    """A command with its output."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env={**os.environ, **more}, check=False
    )


class System:
    """The emulator, and a folder with an arm64 system."""

    def __init__(self, root: Path, emulator: Path) -> None:
        self._root, self._emulator = root, emulator

    def python(self, site: Path, *args: str, seconds: int = 600) -> str:
        """What arm64's Python prints, with the packages in `site`."""
        given = {
            "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1",
            "OPENBLAS_NUM_THREADS": "1", "QEMU_CPU": "cortex-a72",
        }  # fmt: skip
        program = str(self._root / "usr" / "bin" / "python3.11")
        done = shell(str(self._emulator), "-L", str(self._root), program, *args, seconds=seconds, **given)
        assert done.returncode == 0, done.stderr
        return done.stdout


def system() -> System:
    """The system, fetched if need be; skips the test, by name, where it cannot be had."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no apt-get here, which fetches an arm64 Python and qemu")
    root, emulator = FOLDER / "root", FOLDER / "qemu-aarch64-static"
    if not emulator.exists():
        (file,) = _apt("", EMULATOR)
        member = "./usr/bin/qemu-aarch64-static"
        done = shell(
            "sh", "-c", f'dpkg-deb --fsys-tarfile "{file}" | tar -x -C "{FOLDER}" --strip-components=3 {member}'
        )
        assert done.returncode == 0, done.stderr
        file.unlink()
    if not (root / "usr" / "bin" / "python3.11").exists():
        _unpack(_apt("arm64", *PACKAGES), root)
        if sys.version_info[:2] == (3, 11):  # bytecode is the same on both, and compiling under qemu takes a minute
            compileall.compile_dir(root / "usr" / "lib" / "python3.11", quiet=2)
    return System(root, emulator)


def _apt(architecture: str, *packages: str) -> list[Path]:
    """The packages' files. architecture: "" is this machine's."""
    state, files = FOLDER / f"apt-{architecture or 'own'}", FOLDER / f"deb-{architecture or 'own'}"
    for folder in (state / "lists" / "partial", state / "archives" / "partial", files):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "Dir::State": state, "Dir::State::lists": state / "lists", "Dir::State::status": state / "status", "Dir::Cache": state,
        "APT::Sandbox::User": "",
    }  # fmt: skip
    if architecture:
        options |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    apt = ["apt-get", *(f"-o{name}={value}" for name, value in options.items())]
    for command in ("update",), ("download", *packages):
        done = subprocess.run([*apt, *command], cwd=files, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(f"apt-get {command[0]} gets no {' '.join(packages)[:40]} here: {done.stderr[-200:]}")
    return sorted(files.glob("*.deb"))


def _unpack(files: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        done = shell("dpkg-deb", "-x", str(file), str(folder))
        assert done.returncode == 0, done.stderr
        file.unlink()


def wheel(name: str, out: Path) -> Path:
    """The wheel of a target of tools/wheels.py; skips where its tools cannot be fetched."""
    done = shell(sys.executable, "-P", str(ROOT / "tools" / "wheels.py"), "--out", str(out), name, seconds=1800)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("pip gets no ziglang here")
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl")
    return made


def site_of(made: Path, folder: Path, packages: Iterable[str]) -> Path:
    """A folder with the wheel and these packages and what they ask for, for Python 3.11 on an arm64 Linux."""
    platforms = [f"--platform={tag}_aarch64" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(folder),
    ]
    only = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *platforms]
    done = shell(*pip, *only, *packages)
    if done.returncode:
        pytest.skip(f"pip gets no arm64 packages here: {done.stderr[-200:]}")
    done = shell(*pip, *only, "--no-deps", str(made))
    assert done.returncode == 0, done.stderr
    return folder
