"""The wheel for arm64, started on an arm64 Linux under qemu: the answer of this machine, with all packages and a phone's few."""

import json
import sys
from pathlib import Path

import pytest

from tests.phone import arm64, small

ARGS = (
    "run", "--json", "--raw", "--max-tokens", "4", "--temperature", "0", "--threads", "1", "--context", "64",
    "The capital of France is",
)  # fmt: skip
COMPILED = """
import importlib.util, platform
print(platform.machine(), [n for n in ("tokenizers", "pydantic", "llguidance", "PIL") if importlib.util.find_spec(n)])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("Debian's arm64 Python is 3.11, and a wheel is for the Python that builds it")
    return arm64.wheel("manylinux-aarch64", tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    ("system", "compiled"), [("linux", ["tokenizers", "pydantic", "llguidance", "PIL"]), ("android", [])]
)
def test_it_answers_as_this_machine_does(
    wheel: Path, tmp_path: Path, model_path, system: str, compiled: list[str]
) -> None:
    """With what the wheel asks for on a PC, and with what it asks for on Android."""
    emulated = arm64.system()
    site = arm64.site_of(wheel, tmp_path / "site", small.asked_for(system))
    assert emulated.python(site, "-c", COMPILED) == f"aarch64 {compiled}\n"
    model = ("-m", str(model_path("smollm2-135m")))
    here = json.loads(small.command(*ARGS, *model, small=False))
    there = json.loads(emulated.python(site, "-m", "gangpao.cli", *ARGS, *model))
    assert there["text"] == here["text"] != ""
    assert there["prompt_tokens"] == here["prompt_tokens"]
