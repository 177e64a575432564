"""ARM without an ARM machine: our kernels cross-compiled for 64-bit ARM and run by qemu-user, one process at a time.

What it needs comes from Debian's packages and PyPI, without root, into $XDG_CACHE_HOME/gangpao/arm64: a cross compiler and
qemu-user where the machine has none, an arm64 Python, and wheels for it. apt-get and dpkg-deb must be there, so this works on
Debian and what is made of it. A processor is a name that qemu knows: cortex-a72 has neither dotprod nor i8mm, neoverse-n1 has
dotprod, max has both. Speed under qemu says nothing about a phone; bits and numbers of instructions do.

`python benchmarks/arm64.py` fetches and builds everything and prints which kernels each processor gets.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROCESSORS = {"cortex-a72": "neon", "neoverse-n1": "dotprod", "max": "i8mm"}  # and the kernels that it should get
TRIPLE = "aarch64-linux-gnu"
HOST_PACKAGES = ("qemu-user", f"g++-{TRIPLE}")
ARM_PACKAGES = ("python3", "libpython3-dev", "libstdc++6")
WHEELS = ("numpy", "pytest", "gguf")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def missing() -> str:
    """Why nothing of this works here, in one sentence; empty where it does."""
    absent = [name for name in ("apt-get", "dpkg-deb", "cmake") if shutil.which(name) is None]
    return f"cross-compiling for ARM needs {' and '.join(absent)} (Debian: apt, dpkg, cmake)" if absent else ""


def root() -> Path:
    """The folder of all that is fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gangpao" / "arm64"


def run(command: Sequence[str | Path], timeout: float | None = None, **options: object) -> str:
    """The output of a command. Raises ValueError with the end of what it said when it fails."""
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=timeout, errors="replace", **options,
    )  # fmt: skip
    if done.returncode != 0:
        raise ValueError(f"{' '.join(map(str, command))[:300]} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


# --- what is fetched ----------------------------------------------------------------------------------------------


def program(name: str) -> Path:
    """A program for this machine: the one on the PATH, or one unpacked from Debian's packages."""
    found = shutil.which(name)
    return Path(found) if found else debian(HOST_PACKAGES, "host") / "usr" / "bin" / name


def tool_environment() -> dict[str, str]:
    """This process's environment, in which the programs of `program` find their libraries."""
    unpacked = root() / "host" / "usr" / "lib"
    libraries = [str(path) for path in sorted(unpacked.glob("*-linux-gnu")) if path.name != TRIPLE]
    return os.environ | ({"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {})


def arm_root() -> Path:
    """A folder with an arm64 Python and the libraries that it needs."""
    return debian(ARM_PACKAGES, "root", architecture="arm64")


def debian(packages: Sequence[str], name: str, architecture: str = "") -> Path:
    """Packages of this Debian with all that they need and this machine lacks, unpacked into one folder. The machine's own
    package data base is only read; for another architecture an empty one of our own is used."""
    target = root() / name
    if target.exists():
        return target
    say(f"fetching {', '.join(packages)} from Debian")
    work = target.with_name(f"{name}.{os.getpid()}.part")
    apt = ["apt-get", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]
    try:
        for folder in ("lists/partial", "cache/archives/partial", "deb", "tree"):
            (work / folder).mkdir(parents=True)
        if architecture:
            (work / "status").touch()
            apt += [f"-oAPT::Architecture={architecture}", f"-oAPT::Architectures={architecture}"]
            apt += [f"-oDir::State::status={work / 'status'}"]
        apt += [f"-oDir::State::lists={work / 'lists'}", f"-oDir::Cache={work / 'cache'}"]
        run([*apt, "update"])
        planned = run([*apt, "install", "--simulate", "--no-install-recommends", *packages])
        names = [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]
        run([*apt, "download", *names], cwd=work / "deb")
        for package in sorted((work / "deb").glob("*.deb")):
            run(["dpkg-deb", "-x", package, work / "tree"])
        put(work / "tree", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def put(folder: Path, target: Path) -> None:
    """Make a finished folder visible, unless another process did so meanwhile."""
    try:
        folder.rename(target)
    except OSError:
        if not target.exists():
            raise


def python_version() -> str:
    """Of the arm64 Python, as 3.11."""
    return (arm_root() / "usr" / "bin" / "python3").readlink().name.removeprefix("python")


def site() -> Path:
    """A folder with wheels for the arm64 Python."""
    target = root() / "site"
    if target.exists():
        return target
    version, work = python_version(), root() / f"site.{os.getpid()}.part"
    say(f"fetching wheels of {', '.join(WHEELS)} for Python {version} on arm64")
    try:
        wheels = work / "wheels"
        run([
            sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--python-version", version,
            "--implementation", "cp", "--abi", f"cp{version.replace('.', '')}", "--abi", "abi3", "--abi", "none",
            *(f"--platform={name}" for name in PLATFORMS), "--dest", wheels, *WHEELS,
        ])  # fmt: skip
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(work / "site")
        put(work / "site", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


# --- what is built ------------------------------------------------------------------------------------------------


def build_kernels(checkout: Path = ROOT) -> Path:
    """The extension of a checkout for the arm64 Python, built by its own CMakeLists.txt; only what changed is compiled."""
    key = hashlib.sha256(str(checkout).encode()).hexdigest()[:12]
    folder, tree = root() / f"build-{key}", arm_root()
    include = tree / "usr" / "include"
    run([
        "cmake", "-S", checkout, "-B", folder, "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={program(f'{TRIPLE}-g++')}", f"-DCMAKE_CXX_FLAGS={' '.join(compiler_flags())}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DPython_INCLUDE_DIR={include / f'python{python_version()}'}",
        *(["-G", "Ninja"] if shutil.which("ninja") else []),
    ], env=tool_environment())  # fmt: skip
    say("compiling the kernels for ARM")
    run(["cmake", "--build", folder, "-j", str(len(os.sched_getaffinity(0)))], env=tool_environment())
    return next(iter(folder.glob("_native*.so")))


def compiler_flags() -> list[str]:
    """What the cross compiler has to be told: headers that Python's own include, and where it was unpacked itself."""
    return [f"-idirafter{arm_root() / 'usr' / 'include'}", *sysroot()]


def sysroot() -> list[str]:
    """Where an unpacked cross compiler finds its headers and libraries; an installed one knows."""
    return [] if shutil.which(f"{TRIPLE}-g++") else [f"--sysroot={program(f'{TRIPLE}-g++').parents[2]}"]


def stage(folder: Path, checkout: Path = ROOT) -> Path:
    """`folder` with the package of a checkout, its tests and the extension for ARM: a place to start the arm64 Python in."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("gangpao", "tests"):
        shutil.copytree(checkout / name, folder / name, ignore=ignored, dirs_exist_ok=True)
    shutil.copy(build_kernels(checkout), folder / "gangpao" / "kernels" / "_native.so")
    return folder


def emulated(processor: str, *more: str, arm: bool = True) -> list[str]:
    """The beginning of a command line that runs a program for ARM (or x86) on a processor; more: options of qemu. It needs
    tool_environment(), whose libraries are not for the program."""
    tree = ["-L", str(arm_root())] if arm else []
    return [
        str(program("qemu-aarch64" if arm else "qemu-x86_64")),
        "-U",
        "LD_LIBRARY_PATH",
        "-cpu",
        processor,
        *tree,
        *more,
    ]


def python(
    processor: str, folder: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (), timeout: float | None = None,
) -> str:  # fmt: skip
    """What the arm64 Python says, started in a staged folder with these arguments. Raises ValueError when it fails."""
    command = [*emulated(processor, *options), str(arm_root() / "usr" / "bin" / "python3"), *arguments]
    # The libraries of programs that have only now been unpacked, too.
    env = {k: v for k, v in tool_environment().items() if not k.startswith(("PYTHON", "GANGPAO", "PYTEST"))}
    env |= {"PYTHONPATH": f"{folder}{os.pathsep}{site()}", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= environment or {}
    return run(command, timeout, cwd=folder, env=env)


def say(text: str) -> None:
    """Progress for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Everything fetched and built, and a line for each processor."""
    if why := missing():
        say(f"error: {why}")
        return 2
    try:
        folder = stage(root() / "stage")
        for processor in PROCESSORS:
            started = time.monotonic()
            said = python(processor, folder, ["-c", "from gangpao import kernels; print(kernels.describe())"])
            print(f"{processor:12} {said.strip()} ({time.monotonic() - started:.1f} s)")
    except ValueError as error:
        say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
