"""Wheels for other systems, cross-compiled here with nothing but pip: python tools/wheels.py [--out dist] [TARGET ...]

The compiler is the package ziglang (clang with libc++, and the C libraries of many systems). It links libc++ into the kernels, so a
wheel needs nothing but a system's C library. Every wheel is opened again: machine, needed libraries and versions of glibc's symbols
must be those that its name says. With Python 3.12 or newer one wheel is for all from 3.12 on (abi3); with 3.11 it is
for 3.11.

    python tools/wheels.py --list                          the targets
    python tools/wheels.py manylinux-aarch64               one wheel
    python3.12 tools/wheels.py --out dist                  all that can be built here

What it gives up: a wheel for Android needs the NDK's C library and Termux's libpython, which no package registry has; there the
source is compiled on the phone (docs/phone.md). For Windows the kernels are compiled and no wheel is linked.
"""

import argparse
import os
import struct
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("ziglang", "scikit-build-core", "nanobind", "cmake", "ninja", "wheel")
PYTHON = f"{sys.version_info.major}{sys.version_info.minor}"


@dataclass(frozen=True)
class Target:
    """zig: its name there; system, processor: CMake's; tag: the platform of the wheel, empty where only the kernels are compiled;
    soabi: the end of a module's name that this Python looks for there."""

    zig: str
    system: str
    processor: str
    tag: str = ""
    soabi: str = ""


TARGETS = {
    "manylinux-x86_64": Target("x86_64-linux-gnu.2.17", "Linux", "x86_64", "manylinux_2_17_x86_64", "x86_64-linux-gnu"),
    "manylinux-aarch64": Target(
        "aarch64-linux-gnu.2.17", "Linux", "aarch64", "manylinux_2_17_aarch64", "aarch64-linux-gnu"
    ),
    "musllinux-x86_64": Target("x86_64-linux-musl", "Linux", "x86_64", "musllinux_1_2_x86_64", "x86_64-linux-musl"),
    "musllinux-aarch64": Target(
        "aarch64-linux-musl", "Linux", "aarch64", "musllinux_1_2_aarch64", "aarch64-linux-musl"
    ),
    "macos-arm64": Target("aarch64-macos.11.0", "Darwin", "arm64"),
    "windows-x64": Target("x86_64-windows-gnu", "Windows", "AMD64"),
}  # fmt: skip


# --- building


def tools(folder: Path) -> Path:
    """A Python with the build tools of constraints.txt in it; made once."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"fetching the build tools into {folder}: {', '.join(TOOLS)}", flush=True)
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "-c", str(ROOT / "constraints.txt"), *TOOLS])
    return python


def run(command: list[str], **more: str) -> None:
    """A command that must succeed; its output is shown where it does not."""
    done = subprocess.run(command, env={**os.environ, **more}, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-6000:]}\nerror: that failed")


def compiler(python: Path, target: Target, folder: Path) -> dict[str, str]:
    """Environment in which tools/zig.cmake finds a compiler for the target."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in (("c++", f"c++ -target {target.zig} -g0 -fPIC"), ("ar", "ar"), ("ranlib", "ranlib")):
        program = folder / f"zig-{name}"
        program.write_text(f'#!/bin/sh\nexec "{python}" -m ziglang {words} "$@"\n')
        program.chmod(0o755)
    return {
        "GANGPAO_ZIG": str(folder),
        "GANGPAO_ZIG_SYSTEM": target.system,
        "GANGPAO_ZIG_PROCESSOR": target.processor,
        "ZIG_GLOBAL_CACHE_DIR": str(folder.parent / "zig-cache"),
        "ZIG_LOCAL_CACHE_DIR": str(folder.parent / "zig-cache"),
        "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
    }


def wheel(name: str, python: Path, work: Path, out: Path) -> Path:
    """The wheel of a target in `out`, checked."""
    target = TARGETS[name]
    build = work / f"{name}-cp{PYTHON}"
    more = compiler(python, target, work / f"zig-{name}")
    more |= {
        "CMAKE_TOOLCHAIN_FILE": str(ROOT / "tools" / "zig.cmake"),
        "_PYTHON_HOST_PLATFORM": f"linux-{target.processor}",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{PYTHON}-{target.soabi}.so",
    }
    fresh = build / "wheel"
    for old in fresh.glob("*.whl"):
        old.unlink()
    command = [str(python), "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run(
        [
            *command,
            "--no-build-isolation",
            "-Cinstall.strip=false",
            f"-Cbuild-dir={build}/cmake",
            "-w",
            str(fresh),
            ".",
        ],
        **more,
    )
    (made,) = fresh.glob("*.whl")
    run([str(python), "-m", "wheel", "tags", "--remove", f"--platform-tag={target.tag}", str(made)])
    (made,) = fresh.glob("*.whl")
    check(made, target)
    out.mkdir(parents=True, exist_ok=True)
    return made.replace(out / made.name)


def kernels(name: str, python: Path, work: Path) -> Path:
    """The library of the kernels, compiled for a target without Python."""
    target, build = TARGETS[name], work / name
    more = compiler(python, target, work / f"zig-{name}")
    cmake = str(python.with_name("cmake"))
    run([cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DGANGPAO_KERNELS_ONLY=ON",
         f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/tools/zig.cmake"], **more)  # fmt: skip
    run([cmake, "--build", str(build)], **more)
    return next(path for path in build.iterdir() if path.suffix in (".a", ".lib"))


# --- checking

_MACHINES = {"x86_64": 62, "aarch64": 183}
# What every system of a tag has (PEP 513, 656); the dynamic loader counts as part of the C library.
_LIBRARIES = {
    "manylinux": {
        "libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
    },
    "musllinux": {"libc.so"},
}  # fmt: skip


@dataclass(frozen=True)
class Shared:
    """What a shared library of ELF says of itself. versions: library -> names of the versions of symbols it wants."""

    machine: int
    needed: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]


def read_elf(data: bytes) -> Shared:
    """The header, DT_NEEDED and the version needs of a 64-bit little-endian ELF file."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]

    def at(address: int) -> int:
        for kind, _, offset, start, _, length in segments:
            if kind == 1 and start <= address < start + length:
                return offset + address - start
        raise ValueError(f"no segment holds the address {address:#x}")

    (dynamic,) = [(s[2], s[5]) for s in segments if s[0] == 2]
    entries = [struct.unpack_from("<qQ", data, dynamic[0] + i) for i in range(0, dynamic[1], 16)]
    tags = dict(entries)
    strings = at(tags[5])

    def text(place: int) -> str:
        begin = strings + place
        return data[begin : data.index(b"\0", begin)].decode()

    needed = tuple(text(value) for tag, value in entries if tag == 1)
    versions = {}
    if 0x6FFFFFFE in tags:
        versions = {text(file): tuple(map(text, names)) for file, names in _needs(data, at(tags[0x6FFFFFFE]))}
    return Shared(machine, needed, versions)


def _needs(data: bytes, place: int) -> Iterator[tuple[int, list[int]]]:
    """(file, names) of the version needs as places in the string table."""
    while True:
        _, count, file, first, following = struct.unpack_from("<HHIII", data, place)
        names, at = [], place + first
        for _ in range(count):
            _, _, _, name, step = struct.unpack_from("<IHHII", data, at)
            names.append(name)
            at += step
        yield file, names
        if not following:
            return
        place += following


def check(made: Path, target: Target) -> None:
    """SystemExit where a wheel's module is not what its name says."""
    with zipfile.ZipFile(made) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        if len(modules) != 1:
            raise SystemExit(f"{made.name}: one module was expected, and there are {modules}")
        found = read_elf(archive.read(modules[0]))
    family = target.tag.partition("_")[0]
    wrong = [f"a module for machine {found.machine}"] * (found.machine != _MACHINES[target.processor])
    wrong += [f"needs {library}" for library in found.needed if library not in _LIBRARIES[family]]
    most = tuple(map(int, target.tag.split("_")[1:3]))
    for library, names in found.versions.items():
        for name in names:
            label, _, number = name.partition("_")
            if family != "manylinux" or label != "GLIBC" or tuple(map(int, number.split("."))) > most:
                wrong.append(f"wants {name} of {library}")
    if wrong:
        raise SystemExit(f"{made.name}: {'; '.join(wrong)}")


def main() -> None:
    """Build what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="what to build for; all without one")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels (dist)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "wheels", help="folder of tools and objects, kept"
    )
    parser.add_argument("--list", action="store_true", help="say what there is to build for")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{name:18} {t.tag or 'kernels only'}" for name, t in TARGETS.items()))
        return
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        raise SystemExit(f"error: {', '.join(unknown)}: no such target; there are {', '.join(TARGETS)}")
    if sysconfig.get_config_var("SIZEOF_LONG") != 8 or sys.byteorder != "little":
        raise SystemExit("error: the headers of this Python are not those of a 64-bit little-endian system")
    python = tools(given.work.resolve() / f"tools-cp{PYTHON}")
    for name in given.targets or TARGETS:
        build = (
            wheel(name, python, given.work.resolve(), given.out.resolve())
            if TARGETS[name].tag
            else kernels(name, python, given.work.resolve())
        )
        print(f"{name:18} {build} ({build.stat().st_size / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    main()
