"""The device half lives without torch and without the lab: every module of it imports where both are forbidden."""

import json
import subprocess
import sys
from pathlib import Path

from tests.child import environment
from tests.engine.tiny import write_tiny

ROOT = Path(__file__).parent.parent
# The lab's folders, from docs/layout.md; what is not here is the device half.
LAB = {"model", "data", "sandbox", "train", "tune", "compress", "evaluate", "deploy"}
# Evaluation measures both halves: prices are there on a device, and the command that asks questions is the lab's.
BOTH = {"evaluate"}
LAB_COMMANDS = {
    "gangpao.commands.eval",
    "gangpao.commands.compress.quantize",
    "gangpao.commands.compress.compare",
    "gangpao.commands.compress.imatrix",
}

FORBID = f"""
import sys
class Forbid:
    lab = {sorted(LAB - BOTH)!r}
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        ours = parts[1] if parts[0] == "gangpao" and len(parts) > 1 else ""
        if parts[0] in ("torch", "transformers", "safetensors") or ours in self.lab:
            raise ImportError(f"{{name}} is not on the device")
sys.meta_path.insert(0, Forbid())
"""


def device_modules() -> list[str]:
    out = []
    for path in sorted((ROOT / "gangpao").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if len(parts) > 1 and parts[1] in LAB:
            continue
        out.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in out if name not in LAB_COMMANDS]


def run(code: str) -> str:
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORBID + code],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_the_prohibition_works():
    assert run("try:\n import torch\nexcept ImportError as e: print(e)") == "torch is not on the device\n"


def test_every_device_module_imports():
    modules = device_modules()
    assert {"gangpao.cli", "gangpao.engine.generate", "gangpao.commands.chat"} <= set(modules)
    run(f"import importlib\nfor name in {modules!r}: importlib.import_module(name)")


def test_importing_does_nothing():
    """No output, no thread, no file: importing the whole device half leaves nothing behind but modules."""
    out = run(
        f"import importlib, threading, os\nbefore = os.listdir('.')\n"
        f"for name in {device_modules()!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1 and os.listdir('.') == before"
    )
    assert out == ""


def test_a_model_answers(tmp_path):
    """Random weights, real files: load, chat template, sampling and text, all of it without torch."""
    path = write_tiny(tmp_path / "tiny.gguf")
    out = run(
        "from gangpao import cli\n"
        f"sys.exit(cli.main(['run', '-m', {str(path)!r}, '--json', '--max-tokens', '8', '--seed', '1', '你好']))"
    )
    answer = json.loads(out)
    assert answer["completion_tokens"] == 8 or answer["finish_reason"] == "stop"
    assert answer["model"] == "tiny"


def test_a_checkpoint_names_the_lab(tmp_path):
    """Where the lab's rooms cannot even be imported, a Hugging Face folder is refused with the command that brings them."""
    (tmp_path / "config.json").write_text("{}")
    out = run(
        "import contextlib, io\nfrom gangpao import cli\nerr = io.StringIO()\n"
        f"with contextlib.redirect_stderr(err): code = cli.main(['run', '-m', {str(tmp_path)!r}, 'hi'])\n"
        "print(code, err.getvalue())"
    )
    assert out.startswith("2 error: ")
    assert "pip install 'gangpao[lab]'" in out
