"""The rules of this repository that a machine can check: sizes, imports, forbidden calls, documentation.

Each rule reads the files of the checkout (what git tracks, and new files that it does not ignore), not the installed
package, except where a rule is about what happens when the package runs.
"""

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_ROOM_FILES = 14  # at the door of a room, without its __init__.py
MAX_FLOORS = 8

BASE = {
    "config",
    "progress",
    "units",
    "cost",
    "catalog",
    "pull",
    "machine",
    "atomic",
    "options",
    "page",
    "openai_client",
    "optional",
    "validation",
    "long_command",
}
LAB = {"model", "data", "sandbox", "train", "tune", "compress", "evaluate", "deploy", "forge"}
_TRAIN = {"model", "data", "evaluate"}
GROUND = {"kernels", "formats"}  # import nothing of ours; formats may be imported by BASE, too
# room: the rooms it may import besides itself and BASE (which GROUND may not). docs/decisions.md has each change.
ALLOWED = {
    "kernels": set(),
    "text": set(),
    "formats": set(),
    "images": {"formats"},
    "engine": {"formats", "kernels", "text", "images"},
    "commands": {
        "serve",
        "engine",
        "text",
        "kernels",
        "formats",
        "deploy",
        "evaluate",
        "train",
        "tune",
        "compress",
        "images",
    },
    "serve": {"engine", "text", "kernels", "formats", "images"},
    "model": {"formats", "images", "kernels"},
    "data": {"text", "images"},
    "evaluate": {"engine", "model", "data", "text", "formats", "kernels", "images"},
    "train": _TRAIN,
    "tune": {"train", "text", "formats", "kernels", "engine", "images"} | _TRAIN,
    "compress": {"tune", "train", "deploy", "text", "formats", "kernels", "engine"} | _TRAIN,
    "sandbox": {"train"} | _TRAIN,
    "deploy": {"model", "engine", "text", "formats", "kernels", "images"},
    # Its check asks the engine what a server should answer, its pages draw what training wrote, in evaluation's blocks.
    # Configurations are read as each room's command reads them, before anything runs.
    "forge": {"commands", "engine", "text", "sandbox", "train", "evaluate", "data", "tune", "compress", "formats"},
}


@cache
def tracked() -> list[Path]:
    """Files of the checkout, without what git ignores and what is about to be deleted."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:  # an unpacked archive
        return sorted(p for p in ROOT.rglob("*") if p.is_file() and not {".venv", "build"} & set(p.parts))
    return sorted(p for name in listed.stdout.split("\0") if name and (p := ROOT / name).is_file())


def sources(*suffixes: str, under: str = "") -> list[Path]:
    return [p for p in tracked() if p.suffix in suffixes and p.is_relative_to(ROOT / under)]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""
    return f"{path.relative_to(ROOT)}{line}"


def test_files_are_short() -> None:
    code = sources(".py", ".cpp", ".h", ".hpp", ".c")
    assert len(code) > 20
    lines = {where(p): len(p.read_text(encoding="utf-8").splitlines()) for p in code}
    assert {name: n for name, n in lines.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{where(path, node)} {node.name}": node.end_lineno - node.lineno + 1
        for path in sources(".py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    }
    assert long == {}


def test_every_module_says_what_it_is() -> None:
    modules = sources(".py", under="gangpao") + sources(".py", under="benchmarks")
    assert [where(p) for p in modules if not ast.get_docstring(tree(p))] == []


def test_a_test_replaces_clocks_and_the_like_for_one_module_only() -> None:
    """Servers of other tests live in threads of the same process: tests/seams.py replaces nothing for them."""
    whole = re.compile(
        r"setattr\((\w+\.)*(time|shutil|os), *\"(sleep|time|monotonic|perf_counter|times|fsync|pwrite|rmtree|which)"
    )
    found = [where(p) for p in sources(".py", under="tests") if whole.search(p.read_text(encoding="utf-8"))]
    assert found == []


# --- imports


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(p): p for p in sources(".py", under="gangpao")}


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """(absolute module name, statement) of every import in a file, lazy ones too. `from a import b` gives a.b where
    that is a module of ours, else a."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [start, node.module]))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in modules() else base), node


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_imports_follow_the_design() -> None:
    wrong = []
    for name, path in modules().items():
        mine = room(name)
        if mine in ("", "cli", "__main__"):
            continue
        allowed = {mine, ""} | (BASE | {"formats"} if mine in BASE else set())
        if mine not in BASE:
            assert mine in ALLOWED, (
                f"{where(path)}: the design has no room '{mine}'; write it into ALLOWED and the docs"
            )
            allowed |= ALLOWED[mine] | (set() if mine in GROUND else BASE)
        wrong += [
            f"{where(path, node)}: {mine} imports {target}"
            for target, node in imports(path)
            if target.split(".")[0] == "gangpao" and room(target) not in allowed
        ]
    assert wrong == []


def test_imports_have_no_cycle() -> None:
    graph = {
        name: {t for t, _ in imports(path) if t in modules() and t not in ("gangpao", name)}
        for name, path in modules().items()
        if name != "gangpao.cli"
    }
    while graph:  # take away what imports nothing that is left, or what nothing left imports; a circle remains
        targets = set().union(*graph.values())
        loose = [name for name, mine in graph.items() if not mine & graph.keys() or name not in targets]
        if not loose:
            break
        for name in loose:
            del graph[name]
    left = [f"{name} imports {target}" for name, mine in graph.items() for target in sorted(mine & graph.keys())]
    assert left == [], "these modules import each other in a circle"


def members(package: str) -> dict[str, set[str]]:
    """What stands at the door of a room, files and rooms in it, and which of the others each of them imports."""
    level, arrows = package.count(".") + 1, {}
    inside = {n: p for n, p in modules().items() if n.startswith(package + ".")}
    for name, path in inside.items():
        mine = arrows.setdefault(name.split(".")[level], set())
        mine |= {t.split(".")[level] for t, _ in imports(path) if t in inside} - {name.split(".")[level]}
    return arrows


def floors(arrows: dict[str, set[str]]) -> int:
    """The longest way of imports through a room; its members must not form a circle."""

    @cache
    def height(member: str) -> int:
        return 1 + max(map(height, arrows[member]), default=0)

    return max(map(height, arrows), default=0)


ROOMS = sorted({module_name(p) for p in sources(".py", under="gangpao") if p.name == "__init__.py"} - {"gangpao"})


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_can_be_taken_in_at_a_glance(package: str) -> None:
    files = [n for n in modules() if n.rpartition(".")[0] == package and modules()[n].name != "__init__.py"]
    assert len(files) <= MAX_ROOM_FILES, sorted(files)
    assert floors(members(package)) <= MAX_FLOORS


def test_the_device_half_does_not_know_torch() -> None:
    device = {name: p for name, p in modules().items() if room(name) not in LAB}
    assert [
        where(p, node)
        for p in device.values()
        for t, node in imports(p)
        if t.split(".")[0] in {"torch", "optuna", "matplotlib", "pyarrow"}
    ] == []


def test_the_command_line_imports_lazily() -> None:
    eager = [
        name
        for node in tree(ROOT / "gangpao/cli.py").body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.startswith("gangpao.") or (isinstance(node, ast.ImportFrom) and name == "gangpao")
    ]
    assert eager == []


READ_A_HEADER = r"""
import sys
sys.modules["gangpao.kernels._native"] = None
from gangpao.formats import gguf
print(sorted(name for name in sys.modules if name.startswith("gangpao.") and not name.startswith("gangpao.formats")))
with gguf.GGUF.open(sys.argv[1]) as model:
    print(model.metadata["general.architecture"])
"""


def test_a_header_is_read_without_compiled_code(tmp_path: Path) -> None:
    from gangpao.formats import gguf_write

    fields = {"general.architecture": "llama"}
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_write.header([], gguf_write.metadata(fields), len(fields)))
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ_A_HEADER, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.splitlines(), done.stderr) == (["['gangpao.kernels._native']", "llama"], "")


IMPORT_ALL = r"""
import json, os, sys, threading
for name in ("torch", "optuna", "matplotlib"):
    sys.modules[name] = None
import numpy, typer, rich.progress, pydantic, jinja2, tokenizers, httpx2  # noqa: what they do is their business
visible = []
package = os.path.join(os.path.dirname(__import__("gangpao").__file__), "")
def watch(event, args):
    if event == "open":
        path, _, flags = args
        name = os.fspath(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
        name = os.fsdecode(name)
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        reads_data = name.startswith(package) and not name.endswith((".py", ".pyc", ".so"))
        if (writes and name != os.devnull) or reads_data:
            visible.append(f"opens {name}")
    elif event in ("socket.connect", "subprocess.Popen", "os.system", "os.mkdir", "os.remove", "os.rename"):
        visible.append(event)
tasks = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
before = tasks()
sys.addaudithook(watch)
import importlib
for name in sys.argv[1:]:
    seen = len(visible)
    importlib.import_module(name)
    visible[seen:] = [f"{name}: {what}" for what in visible[seen:]]
if tasks() != before:
    visible.append(f"threads: {before} before, {tasks()} after")
print(json.dumps(visible))
"""


def test_importing_does_nothing_visible() -> None:
    device = [name for name in modules() if room(name) not in LAB and not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-P", "-B", "-c", IMPORT_ALL, *device],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout), done.stderr) == ([], "")


# --- forbidden calls (S2)

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "os.system", "os.popen"}


def offences(path: Path) -> Iterator[str]:
    for target, node in imports(path):
        if target.split(".")[0] in UNPICKLERS:
            yield f"{where(path, node)}: imports {target}"
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS | {"eval", "exec", "builtins.eval", "builtins.exec"}:
            yield f"{where(path, node)}: calls {name}"
        for keyword in node.keywords:
            if keyword.arg in ("shell", "allow_pickle") and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                yield f"{where(path, node)}: {name} with {keyword.arg}"


def test_nothing_unpickles_or_evaluates() -> None:
    assert list(itertools.chain.from_iterable(map(offences, sources(".py")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "eval('1')", "exec('1')", "import os; os.system('x')",
        "import subprocess; subprocess.run('x', shell=True)", "yaml.load(f)", "torch.load(f)",
        "numpy.load(f, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_search_for_forbidden_calls_finds_them(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "gangpao" / "sample_of_a_test.py"
    monkeypatch.setitem(globals(), "tree", lambda _: ast.parse(code))
    assert len(list(offences(path))) == 1


# --- texts

# Brackets around one letter, so that this file does not match itself.
ONE_MACHINE = re.compile(r"(?<![\w.~-])/(?:wor[k]/|far[m]/|roo[t]/|tmp/[w]/|home/[a-z]+/|Users/[a-z]+/)")
# Packages come from wherever the user's own pip and npm settings say.
# One address stands for "no setting at all": parts are fetched without npm, which would know it.
DEFAULT_REGISTRY = "gangpao/serve/pages/libraries.py: npm" + "js.org"
REGISTRY = re.compile(r"pypi[.]org|pythonhosted[.]org|npmjs[.](?:org|com)|--(?:extra-)?index-ur[l]|--trusted-hos[t]")


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture


@pytest.mark.parametrize("pattern", [ONE_MACHINE, REGISTRY], ids=["paths of one machine", "registry hosts"])
def test_no_file_names_one_machine(pattern: re.Pattern[str]) -> None:
    allowed = [DEFAULT_REGISTRY] if pattern is REGISTRY else []
    assert [f"{where(p)}: {m.group()}" for p, text in texts() for m in pattern.finditer(text)] == allowed


def headings(path: Path) -> list[int]:
    """Levels of the headings of a Markdown file, code blocks left out."""
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [len(mark) for mark in re.findall(r"^(#{1,6}) ", text, flags=re.M)]


def test_both_readmes_have_the_same_headings() -> None:
    english, chinese = headings(ROOT / "README.md"), headings(ROOT / "README.zh.md")
    assert english[0] == 1
    assert english == chinese


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]$", text, flags=re.M)


def test_links_between_our_documents_lead_somewhere() -> None:
    broken = []
    for path in sources(".md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if not re.match(r"\w+:|#", target) and not (path.parent / target.partition("#")[0]).exists():
                broken.append(f"{where(path)}: {target}")
    assert broken == []


def test_decisions_and_log_are_dated() -> None:
    for name in ("docs/decisions.md", "docs/log.md"):
        titles = re.findall(r"^## (.+)$", (ROOT / name).read_text(encoding="utf-8"), flags=re.M)
        assert titles
        assert [t for t in titles if not re.match(r"20\d\d-\d\d-\d\d: ", t)] == [], name


# --- commands, options and versions


def test_every_command_exists_and_every_option_is_explained() -> None:
    import typer
    from typer.main import get_command

    from gangpao import cli

    group = get_command(cli.app)
    context = typer.Context(group)
    silent = []
    for name in cli.COMMANDS:
        command = group.get_command(context, name)
        assert command is not None, name
        silent += [f"{name} {p.name}" for p in command.params if not (getattr(p, "help", None) or "").strip()]
    assert silent == []


def test_the_version_is_written_twice_and_equal() -> None:
    import gangpao

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert gangpao.__version__ == project["version"]


def test_every_dependency_is_pinned_for_development() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *itertools.chain.from_iterable(project["project"].get("optional-dependencies", {}).values()),
    ]
    names = {re.match(r"[\w.-]+", w).group().lower() for w in wanted} - {"gangpao"}
    pins = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M))
    assert names - pins == set()


def test_make_lists_its_targets_and_ci_runs_one_of_them() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    shown = subprocess.run([make], cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    targets = re.findall(r"^make (\w+) ", shown, flags=re.M)
    assert {"chat", "test", "check", "bench"} <= set(targets)
    assert re.findall(r"make (\w+)", (ROOT / ".ci/run").read_text(encoding="utf-8")) == ["test"]
