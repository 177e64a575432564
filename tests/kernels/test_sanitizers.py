"""The kernels under AddressSanitizer and UBSan: built apart from the installed ones, then put through their own tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    runtime = run([compiler, "-print-file-name=libasan.so"]).strip()
    if not Path(runtime).is_absolute():
        pytest.skip("this compiler has no AddressSanitizer runtime (Debian: libasan, comes with g++)")
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-DGANGPAO_SANITIZE=ON"]
    run([*configure, f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CXX_COMPILER={compiler}"])
    run(["cmake", "--build", str(tmp_path / "build"), "-j2"])
    shutil.copytree(ROOT / "gangpao", tmp_path / "gangpao", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for built in (tmp_path / "build").glob("_native*.so"):
        shutil.copy(built, tmp_path / "gangpao" / "kernels")
    env = os.environ | {
        # The C++ library first in line too: else the sanitizer cannot find what throws exceptions.
        "LD_PRELOAD": f"{runtime} {run([compiler, '-print-file-name=libstdc++.so']).strip()}",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself never frees everything
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(tmp_path),
    }
    # An editable install puts its own finder before the path; out with it.
    start = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]; "
    where = start + "import gangpao.kernels._native as n; print(n.__file__)"
    assert str(tmp_path) in run([sys.executable, "-c", where], cwd=tmp_path, env=env)
    tests = [
        "tests/kernels/test_kernels.py",
        "tests/kernels/test_dequantize.py",
        "tests/kernels/test_candidates.py",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
    ]
    command = start + f"import pytest; sys.exit(pytest.main({tests!r}))"
    assert "passed" in run([sys.executable, "-c", command], cwd=tmp_path, env=env)
