"""Programs: how one is cut out of an answer, how it is run against the tests of HumanEval and MBPP, and pass@k.

Two modes. In completion the answer goes on where the prompt ended, up to the first stop string. In chat the answer is prose with
fenced blocks: the first block that defines what is asked for is taken, with the imports and helpers of the blocks before it, and
without the examples below it (`print`, `main()`, `assert`, `if __name__ ...` at the left margin), which are no part of the answer.

What it gives up: packages beside the standard library, which the cage does not show.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import prod

from gangpao.evaluate.graders.cage import parent as cage
from gangpao.evaluate.graders.grade import Grade
from gangpao.evaluate.statistics import mean_error

NAME, VERSION = "gangpao-code", 2  # 2: what a limit cut off behind a whole function costs no point
GRADER = f"{NAME} {VERSION}"

STOP_VERSION = 1
# Where a completion ends: what follows at the left margin is another function, a test or a new problem.
STOPS: dict[str, tuple[str, ...]] = {
    "humaneval": ("\nclass ", "\ndef ", "\n@", "\n#", "\nif ", "\nprint", "\nassert ", "\nimport ", "\nfrom ", "\n```"),
    "mbpp": ("[DONE]", '\n"""', "\nassert ", "\nprint", "\nif __name__", "\n#", "\n```"),
}

_FENCE = re.compile(r"^(?P<margin>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n", re.M)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.S)  # where nobody has taken it off
_MAX_LINES = 600  # of an answer without fences; the rest is not read
_OTHER_LANGUAGES = {
    "bash",
    "sh",
    "shell",
    "console",
    "text",
    "txt",
    "json",
    "java",
    "javascript",
    "js",
    "c",
    "cpp",
    "c++",
    "sql",
}


def unix(text: str) -> str:
    """Lines end in a line feed, as Python and stop strings want them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cut(text: str, stops: Iterable[str]) -> str:
    """The text before the first of the stop strings."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def _parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "invalid escape sequence" in what a model wrote
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module defines at its left margin."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found


def blocks(answer: str) -> Iterator[str]:
    """The fenced blocks of an answer that may hold Python; one that is not closed reaches to the end."""
    place = 0
    while opening := _FENCE.search(answer, place):
        closing = re.compile(rf"^[ \t]*{re.escape(opening['mark'])}[ \t]*$", re.M).search(answer, opening.end())
        body = answer[opening.end() : closing.start() if closing else len(answer)]
        place = closing.end() if closing else len(answer)
        if opening["language"].lower() not in _OTHER_LANGUAGES:
            yield _without_prompts(textwrap.dedent(body)).strip("\n") + "\n"


def _without_prompts(text: str) -> str:
    """A session of the interpreter as a program: what stands behind >>> and ..."""
    if not re.match(r"\s*>>> ", text):
        return text
    return "\n".join(line[4:] for line in text.split("\n") if line.startswith((">>> ", "... ")))


def _is_example(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.If):
        return any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("print", "main")


def without_examples(text: str) -> str:
    """A program without what it would print or assert when loaded; as it is where it cannot be read."""
    tree = _parsed(text)
    lines = text.split("\n")
    body = tree.body if tree else []
    ends = [0, *(node.end_lineno or node.lineno for node in body)]
    starts = [*(node.lineno for node in body), len(lines) + 1]
    for number in reversed(range(len(body))):
        first, last = starts[number], ends[number + 1]
        if (
            _is_example(body[number]) and ends[number] < first and last < starts[number + 1]
        ):  # nothing else on its lines
            del lines[first - 1 : last]
    return "\n".join(lines)


def _without_fences(answer: str, names: Sequence[str]) -> str:
    """Python in prose: from the first line that begins a definition or an import, as far as it can be read."""
    lines = answer.split("\n")[:_MAX_LINES]
    begin = re.compile(r"(from|import|def|class|async|@)\b|@")
    starts = [n for n, line in enumerate(lines) if begin.match(line)]
    for start in starts[:4]:
        ends = [n for n in range(start + 1, len(lines)) if lines[n][:1].strip()] + [len(lines)]
        for end in reversed(ends[:60]):
            tree = _parsed("\n".join(lines[start:end]))
            if tree is not None and set(names) <= _defined(tree):
                return "\n".join(lines[start:end]) + "\n"
    return "\n".join(lines[starts[0] :]) if starts else answer


def _returns(node: ast.AST) -> bool:
    """Whether a function returns something itself, and not only a function in it."""
    inner = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    below = [child for child in ast.iter_child_nodes(node) if not isinstance(child, inner)]
    return isinstance(node, ast.Return) or any(map(_returns, below))


def header(prompt: str, name: str) -> str:
    """What a prompt has before the function that is asked for: imports and helpers."""
    found = re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\b", prompt, re.M)
    return prompt[: found.start()] if found else ""


def from_chat(answer: str, names: Sequence[str], prompt: str = "") -> str:
    """The program in a chat answer that defines `names`; prompt: what it was to complete, for its imports and for bodies alone."""
    answer = _THOUGHT.sub("", unix(answer))
    found = list(blocks(answer))
    before = header(unix(prompt), names[0]) if prompt and names else ""
    helpers: list[str] = []
    for block in found:
        tree = _parsed(block)
        if tree is None:
            continue
        if set(names) <= _defined(tree):
            return "".join([before, *helpers, without_examples(block)])
        definitions = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Assign
        if all(isinstance(node, definitions) for node in tree.body):
            helpers.append(block)
    for body in [*found, answer] if prompt else []:
        whole = unix(prompt) + textwrap.indent(textwrap.dedent(body), "    ")
        if (tree := _parsed(whole)) and any(_returns(n) for n in tree.body if getattr(n, "name", "") == names[0]):
            return whole
    return before + without_examples(_without_fences(found[0] if found else answer, names))


def humaneval(answer: str, prompt: str, test: str, entry_point: str, *, chat: bool) -> cage.Program:
    """A problem of HumanEval. prompt: as published, whatever stood around it when it was asked."""
    if chat:
        code = from_chat(answer, [entry_point], prompt)
    else:
        code = unix(prompt) + cut(unix(answer), STOPS["humaneval"]) + "\n"
    return cage.Program(code, f"{unix(test)}\n\ncheck({entry_point})\n", (entry_point,), unix(prompt))


def mbpp(answer: str, reference: str, tests: Sequence[str], setup: str = "", *, chat: bool) -> cage.Program:
    """A problem of MBPP. reference: its solution, of which the names are used; setup: test_setup_code."""
    asserts = unix("\n".join([setup, *tests])) + "\n"
    names = mbpp_names(reference, asserts)
    code = from_chat(answer, names) if chat else cut(unix(answer), STOPS["mbpp"]) + "\n"
    used = _used(asserts) - set(names)
    imports = sorted(used & sys.stdlib_module_names - set(dir(builtins)))
    return cage.Program(code, asserts, tuple(names), "".join(f"import {name}\n" for name in imports))


def _used(text: str) -> set[str]:
    tree = _parsed(text)
    if tree is None:
        raise ValueError(f"the tests are not Python: {text[:80]!r}; the row of the data set is damaged")
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {n.id for n in names} - {n.id for n in names if isinstance(n.ctx, ast.Store)}


def mbpp_names(reference: str, tests: str) -> list[str]:
    """What the tests call and the reference defines, the function before its classes: it may have the name of a builtin."""
    tree = _parsed(unix(reference))
    if tree is None:
        raise ValueError(f"the reference is not Python: {reference[:80]!r}; the row of the data set is damaged")
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    modules = {a.asname or a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    return sorted(_used(tests) & _defined(tree) - modules, key=lambda name: (name in classes, name))


def grade_all(
    programs: Iterable[cage.Program], *, run_code: bool, limits: cage.Limits | None = None, workers: int | None = None
) -> Iterator[Grade]:
    """Run programs and say of each whether it passed. Raises ValueError as cage.run_all does."""
    programs = list(programs)
    outcomes = cage.run_all(programs, run_code=run_code, limits=limits, workers=workers)
    return (Grade(o.passed, p.code or None, o.why) for p, o in zip(programs, outcomes, strict=True))


def grade(program: cage.Program, *, run_code: bool, limits: cage.Limits | None = None) -> Grade:
    """One program. Raises ValueError as cage.run_all does."""
    return next(grade_all([program], run_code=run_code, limits=limits, workers=1))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that of k answers drawn from `samples`, of which `passed` are right, at least one is right (Chen et al. 2021)."""
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} needs at least {k} answers a problem, here {samples}, of them {passed} right")
    wrong = samples - passed
    return 1.0 - prod((wrong - i) / (samples - i) for i in range(k))


def pass_at_k_mean(counts: Sequence[tuple[int, int]], k: int) -> tuple[float, float | None]:
    """Mean of pass@k over problems given as (samples, passed), and its standard error (None for one problem)."""
    if not counts:
        raise ValueError("pass@k of no problems")
    values = [pass_at_k(samples, passed, k) for samples, passed in counts]
    return sum(values) / len(values), mean_error(values)
