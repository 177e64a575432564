"""The kernels on 64-bit ARM: what every instruction set must offer, sources that compile, and (slow) the bits under qemu-user."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.formats.gguf_maker import random_model
from tests.kernels import every_result
from tests.kernels.random_blocks import SHAPES
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "gangpao" / "kernels" / "src"
LAYERS = ("portable", "avx2", "avx512", "neon")
PROCESSORS = ("cortex-a72", "neoverse-n1", "max")
FLAGS = {
    "neon": ["-march=armv8-a"], "dotprod": ["-march=armv8.2-a+dotprod"], "i8mm": ["-march=armv8.2-a+dotprod+i8mm"],
}  # fmt: skip


def offered(layer: str) -> set[str]:
    """Names of the functions, types and constants of a SIMD layer that the kernels' common files use."""
    text = (SOURCES / f"simd_{layer}.h").read_text(encoding="utf-8")
    functions = re.findall(r"^(?:template <[^>]*> )?(?:static inline|constexpr) [\w: <>]+?\b(\w+)\(", text, flags=re.M)
    types = re.findall(r"^(?:struct|using) (\w+)", text, flags=re.M)
    constants = re.findall(r"^constexpr int (\w+) =", text, flags=re.M)
    return {*functions, *types, *constants}


def used() -> set[str]:
    """Every word of the files that are compiled for each instruction set."""
    common = [
        p
        for p in SOURCES.glob("*.h")
        if not p.name.startswith("simd_") and p.name not in ("amx.h", "amx_k.h", "many_neon.h")
    ]
    return set(re.findall(r"\w+", " ".join(p.read_text(encoding="utf-8") for p in common)))


def test_every_instruction_set_offers_the_same():
    wanted = offered("portable") & used()
    assert len(wanted) > 40
    for layer in LAYERS:
        assert wanted - offered(layer) == set(), f"simd_{layer}.h lacks what the others have"


def test_every_instruction_set_is_built_and_chosen():
    """A file isa_*.cpp that CMake or the choice at run time does not know would never run."""
    build = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    choice = (SOURCES / "runtime.cpp").read_text(encoding="utf-8")
    for path in [*SOURCES.glob("isa_*.cpp"), *SOURCES.glob("recurrent_*.cpp")]:
        assert f"/{path.name}" in build, path.name
    for path in SOURCES.glob("isa_*.cpp"):
        name = path.stem.removeprefix("isa_")
        assert choice.count(f'"{name}"') >= 2, f"{name}: a name in kIsaNames and a line in find_kernels"
        assert f"&{name}_kernels" in choice


def arm_compiler() -> tuple[list[str], dict[str, str]]:
    """A command that compiles for 64-bit ARM and its environment, or a skip; nothing is fetched."""
    arm64 = load("arm64")
    if shutil.which("aarch64-linux-gnu-g++") or (arm64.root() / "host").exists():
        return [str(arm64.program("aarch64-linux-gnu-g++")), *arm64.sysroot()], arm64.tool_environment()
    if found := shutil.which("clang++"):
        command = [found, "--target=aarch64-linux-gnu"]
        text = "#include <vector>\n#include <arm_neon.h>\n"
        probe = [*command, "-x", "c++", "-fsyntax-only", "-"]
        if subprocess.run(probe, input=text, text=True, capture_output=True, check=False).returncode == 0:
            return command, dict(os.environ)
    pytest.skip("no compiler for ARM here (Debian: g++-aarch64-linux-gnu)")


@pytest.mark.parametrize("name", ["isa_neon", "isa_dotprod", "isa_i8mm", "recurrent_neon", "runtime"])
def test_arm_sources_compile_without_warnings(name):
    compiler, env = arm_compiler()
    flags = FLAGS.get(name.removeprefix("isa_"), FLAGS["neon"])
    command = [*compiler, "-std=c++17", "-O0", *flags, "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    done = subprocess.run(
        [*command, str(SOURCES / f"{name}.cpp")], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-4000:]


# --- under qemu -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arm64() -> ModuleType:
    """The script, where it can work."""
    module = load("arm64")
    if why := module.missing():
        pytest.skip(why)
    return module


@pytest.fixture(scope="module")
def folder(arm64: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to start the arm64 Python in, with the kernels and their tests."""
    return arm64.stage(tmp_path_factory.mktemp("arm64"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Random models that hold every weight type, with experts and without."""
    out, kinds = tmp_path_factory.mktemp("models"), list(SHAPES)
    sizes = {"hidden_size": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "intermediate_size": 512}
    return [
        random_model(out / "qwen3.gguf", "qwen3", kind=kinds, num_layers=4, largest=0.005, **sizes),
        random_model(out / "llama.gguf", "llama", kind=["Q4_K", "Q6_K", "F16"], largest=0.005, tied=False, **sizes),
        random_model(out / "experts.gguf", "llama", kind="Q4_0", experts=(4, 2), **sizes),
    ]


@pytest.fixture(scope="module")
def here(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The results of this machine, which must have one value for all of its instruction sets."""
    path = tmp_path_factory.mktemp("here") / "results.npz"
    code = "import runpy; runpy.run_module('tests.kernels.every_result', run_name='__main__')"
    subprocess.run(installed(code, str(path), *map(str, models)), check=True)
    return one_of_all(dict(np.load(path)))


def installed(code: str, *arguments: str) -> list[str]:
    """A command of the installed gangpao, with the tests of this checkout behind it."""
    return [sys.executable, "-P", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}", *arguments]


def one_of_all(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Results by name; those of several instruction sets have the same bits."""
    out: dict[str, np.ndarray] = {}
    for name, value in found.items():
        isa, _, case = name.partition("/")
        assert same(out.setdefault(case, value), value), f"{case} differs on {isa}"
    return out


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_results_hold_every_kernel():
    """A kernel that is not among the results would be compared with nothing."""
    words = set(re.findall(r"kernels\.(\w+)\(", Path(every_result.__file__).read_text(encoding="utf-8")))
    text = "".join((ROOT / "tests" / "kernels" / f"test_{name}.py").read_text(encoding="utf-8")
                   for name in ("kernels", "candidates", "low_rank", "gated_delta", "sparse", "vision"))  # fmt: skip
    words |= set(re.findall(r"kernels\.(\w+)\(", text)) | {"exp_totals"}
    interface = (ROOT / "gangpao" / "kernels" / "_native.pyi").read_text(encoding="utf-8")
    computing = set(re.findall(r"^def (\w+)\(", interface, flags=re.M)) - {
        "set_num_threads", "num_threads", "isa_name", "set_isa", "available_isas", "read_bandwidth", "count_time", "counted_time",
            "multiply_add_peak",
    }  # fmt: skip
    assert computing - words == set()


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_arm_gives_the_bits_of_this_machine(processor, arm64, folder, models, here, tmp_path):
    out = tmp_path / "results.npz"
    arm64.python(processor, folder, ["-m", "tests.kernels.every_result", str(out), *map(str, models)])
    found = dict(np.load(out))
    assert {name.partition("/")[0] for name in found} == {*expected_kernels(processor), "portable"}
    there = one_of_all(found)
    assert there.keys() == here.keys()
    assert [name for name in here if not same(here[name], there[name])] == []


def expected_kernels(processor: str) -> list[str]:
    return ["neon", "dotprod", "i8mm"][: PROCESSORS.index(processor) + 1]


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_tests_of_kernels_pass_on_arm(processor, arm64, folder):
    command = ["-m", "pytest", "tests/kernels", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder),
               "-m", "not slow", "-W", "ignore", "--deselect", "tests/kernels/test_arm64.py"]  # fmt: skip
    assert "passed" in arm64.python(processor, folder, command)


@pytest.mark.slow
def test_a_real_model_has_the_same_logits_on_arm(arm64, folder, model_path, tmp_path):
    path, code = (
        model_path("smollm2-135m"),
        (
            "import sys, numpy as np; from pathlib import Path; from tests.kernels.every_result import model; "
            "np.savez(sys.argv[1], **dict(model(Path(sys.argv[2]), 4, 2)))"
        ),
    )
    here = tmp_path / "here.npz"
    subprocess.run(installed(code, str(here), str(path)), check=True)
    there = tmp_path / "there.npz"
    arm64.python("neoverse-n1", folder, ["-c", code, str(there), str(path)])
    a, b = dict(np.load(here)), dict(np.load(there))
    assert a.keys() == b.keys()
    assert all(same(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_the_table_of_instructions_is_what_the_compiler_makes(arm64):
    """docs/kernels.md, to a tenth: its figures are those of one compiler."""
    if "12.2" not in subprocess.run(["g++", "--version"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("the table was counted with g++ 12.2")
    counts = load("panel_instructions")
    written, twin = (
        (ROOT / "docs" / name).read_text(encoding="utf-8").partition("| | Q4_0 decode |")[2].partition("\n\n")[0]
        for name in ("kernels.md", "kernels.zh.md")
    )
    assert written == twin
    for line in counts.table():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        row = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", written, flags=re.M)
        assert row, line
        for ours, theirs in zip(cells, row[1].split("|"), strict=True):
            if re.fullmatch(r"[\d.]+", ours):
                assert float(theirs) == pytest.approx(float(ours), rel=0.1), line
