"""docs/environment.md against the code: every variable that is read or set is in the table, and the table has no other."""

import ast
import re
from pathlib import Path

import pytest

from gangpao.pull.refs import PREFERENCE

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*|npm_config_registry")
PAGES = ["docs/environment.md", "docs/environment.zh.md"]


def variables(path: Path) -> set[str]:
    """Names in statements that touch the environment, and whatever begins with GANGPAO_."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
    }
    found = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"GANGPAO_[A-Z_]+", node.value)
        ):
            found.add(node.value)
        if isinstance(node, ast.stmt) and not hasattr(node, "body") and "os.environ" in ast.unparse(node):
            values = [node, *(constants[n.id] for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in constants)]
            texts = [n.value for value in values for n in ast.walk(value) if isinstance(n, ast.Constant)]
            found |= {text for text in texts if isinstance(text, str) and NAME.fullmatch(text)}
        elif isinstance(node, ast.If | ast.While) and "os.environ" in ast.unparse(node.test):
            texts = [n.value for n in ast.walk(node.test) if isinstance(n, ast.Constant)]
            found |= {text for text in texts if isinstance(text, str) and NAME.fullmatch(text)}
    return found


def in_code() -> set[str]:
    files = [*(ROOT / "gangpao").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    return set().union(*(variables(path) for path in files))


@pytest.mark.parametrize("page", PAGES)
def test_the_table_is_what_the_code_reads(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert told == in_code()


def test_the_search_finds_what_is_read():
    assert {
        "HF_TOKEN",
        "GANGPAO_HOME",
        "NO_COLOR",
        "RANK",
        "VLLM_API_KEY",
        "npm_config_registry",
    } <= in_code()


def test_native_code_reads_none():
    sources = [*(ROOT / "gangpao").rglob("*.cpp"), *(ROOT / "gangpao").rglob("*.h")]
    assert [path for path in sources if "getenv" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("page", ["docs/models.md", "docs/models.zh.md"])
def test_the_preference_of_quantizations_is_as_documented(page):
    words = re.findall(r"\b(?:[IT]?Q\d_[A-Z0-9_]+|B?F16|F32|Q\dK?)\b", (ROOT / page).read_text(encoding="utf-8"))
    start = next(i for i in range(len(words)) if words[i : i + 2] == list(PREFERENCE[:2]))
    assert tuple(words[start : start + len(PREFERENCE)]) == PREFERENCE
