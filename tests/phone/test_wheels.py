"""tools/wheels.py reads what compilers wrote, and refuses a wheel that is not what its name says."""

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gangpao import kernels
from tests.child import ROOT
from tests.phone import arm64

SCRIPT = ROOT / "tools" / "wheels.py"


@pytest.fixture(scope="module")
def wheels() -> Any:
    spec = importlib.util.spec_from_file_location("wheels", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wheels"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def native() -> Path:
    (path,) = Path(kernels.__file__).parent.glob("_native*.so")
    if path.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("this system's modules are not ELF files")
    return path


def test_needed_libraries_and_versions_are_readelfs(wheels: Any, native: Path) -> None:
    try:
        said = subprocess.run(["readelf", "-dVW", native], capture_output=True, text=True, check=True).stdout
    except OSError:
        pytest.skip("no readelf here (binutils)")
    found = wheels.read_elf(native.read_bytes())
    assert list(found.needed) == re.findall(r"NEEDED.*\[(.*)\]", said)
    names = re.findall(r"Name: (\S+)  Flags", said.partition("Version needs section")[2])
    assert sorted(name for names in found.versions.values() for name in names) == sorted(names)


def test_a_wheel_is_what_its_name_says(wheels: Any, native: Path, tmp_path: Path) -> None:
    """g++ links libstdc++, which not every system of the tag has, and a machine's own glibc is newer than 2.17."""
    made = tmp_path / "gangpao-0-cp311-cp311-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.write(native, "gangpao/kernels/_native.so")
    found = wheels.read_elf(native.read_bytes())
    right = "manylinux-x86_64" if found.machine == 62 else "manylinux-aarch64"
    other = "manylinux-aarch64" if found.machine == 62 else "manylinux-x86_64"
    with pytest.raises(SystemExit, match=f"a module for machine {found.machine}"):
        wheels.check(made, wheels.TARGETS[other])
    if "libstdc++.so.6" in found.needed:
        with pytest.raises(SystemExit, match=r"needs libstdc\+\+\.so\.6; .*wants GLIBCXX"):
            wheels.check(made, wheels.TARGETS[right])
    with pytest.raises(SystemExit, match=r"needs libc\.so\.6"):
        wheels.check(made, wheels.TARGETS[right.replace("many", "musl")])


def test_targets_are_told_and_unknown_ones_refused() -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True, check=False)

    assert "manylinux_2_17_aarch64" in run("--list").stdout
    refused = run("amiga")
    assert refused.returncode == 1
    assert "amiga: no such target; there are manylinux-x86_64" in refused.stderr


@pytest.mark.slow
@pytest.mark.network
def test_the_wheel_for_this_system_answers(tmp_path: Path) -> None:
    """Built by the cross compiler, imported by this Python."""
    if sys.platform != "linux" or kernels.isa_name() in ("neon", "dotprod", "i8mm"):
        pytest.skip("not an x86 Linux")
    made = arm64.wheel("manylinux-x86_64", tmp_path / "wheel")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path / "site")
    code = "import sys\nsys.path.insert(0, sys.argv[1])\nfrom gangpao import kernels\nprint(kernels.__file__, kernels.isa_name())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, tmp_path / "site"], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [
        str(tmp_path / "site" / "gangpao" / "kernels" / "__init__.py"),
        kernels.isa_name(),
    ], done.stderr


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("target", ["macos-arm64", "windows-x64"])
def test_the_kernels_compile_for_systems_that_are_not_here(target: str) -> None:
    done = arm64.shell(sys.executable, "-P", str(SCRIPT), target, seconds=1800)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("pip gets no ziglang here")
    assert done.returncode == 0, done.stderr
