"""The same computation in a process where numpy has only the instructions that every processor has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def printed_by(file: str, function: str) -> str:
    """What `function()` of a test file returns there. Skips where numpy has one set of instructions anyway."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    there = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    if not there:
        pytest.skip("numpy has one set of instructions here")
    root = str(Path(__file__).resolve().parents[2])
    code = f"import runpy, sys; sys.path.append({root!r}); print(runpy.run_path({file!r})[{function!r}]())"
    env = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(there)}
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
