"""Do the graders find every published reference answer right? HumanEval, MBPP, GSM8K, MATH and BBH, as far as a folder has them.

    python benchmarks/grade_references.py FOLDER [--only humaneval]

FOLDER holds humaneval.jsonl, mbpp.jsonl, gsm8k_test.jsonl, math_test.jsonl, bbh.jsonl with the fields as published, plain or .zst.
Programs run in the cage (Linux). Each wrong one is listed; one JSON line with the counts comes last.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gangpao.evaluate.graders import code
from gangpao.evaluate.graders.cage import parent as cage
from gangpao.evaluate.graders.grade import Grade

LIMITS = cage.Limits(seconds=60, cpu_seconds=60)  # MBPP 123 takes seconds


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a file; none where it is not there."""
    if (path := folder / f"{name}.jsonl").exists():
        text = path.read_text(encoding="utf-8")
    elif (path := folder / f"{name}.jsonl.zst").exists():
        import zstandard

        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), encoding="utf-8").read()
    else:
        return []
    return [json.loads(line) for line in text.split("\n") if line]


def humaneval(problems: list[dict[str, Any]]) -> Iterator[tuple[str, Grade]]:
    """Each solution as a completion and as a block in a chat answer."""
    asked = [(p["prompt"], p["test"], p["entry_point"]) for p in problems]
    whole = [f"```python\n{p['prompt']}{p['canonical_solution']}```" for p in problems]
    programs = [code.humaneval(p["canonical_solution"], *a, chat=False) for p, a in zip(problems, asked, strict=True)]
    programs += [code.humaneval(text, *a, chat=True) for text, a in zip(whole, asked, strict=True)]
    names = [f"{p['task_id']} {mode}" for mode in ("completion", "chat") for p in problems]
    yield from zip(names, code.grade_all(programs, run_code=True, limits=LIMITS), strict=True)


def mbpp(problems: list[dict[str, Any]]) -> Iterator[tuple[str, Grade]]:
    """Each reference in a block of a chat answer; a completion would be cut at stop strings that some references hold."""
    programs = [
        code.mbpp(f"```python\n{p['code']}\n```", p["code"], p["test_list"], p["test_setup_code"], chat=True)
        for p in problems
    ]
    names = [f"MBPP/{p['task_id']}" for p in problems]
    yield from zip(names, code.grade_all(programs, run_code=True, limits=LIMITS), strict=True)


GRADED: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Iterator[tuple[str, Grade]]]]] = {
    "humaneval": ("humaneval", humaneval),
    "mbpp": ("mbpp", mbpp),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Grade, list, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where the rows are.")
    parser.add_argument("--only", choices=GRADED, help="One of them.")
    arguments = parser.parse_args(argv)
    counts: dict[str, Any] = {}
    for name, (file, grade) in GRADED.items():
        if arguments.only not in (None, name):
            continue
        started = time.monotonic()
        grades = list(grade(rows(arguments.folder, file)))
        for item, found in grades:
            if not found.correct:
                print(f"{item}: {found.why}; took {found.extracted!r:.200}")
        counts[name] = {"right": sum(g.correct for _, g in grades), "of": len(grades)}
        counts[name]["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(counts))
    return int(any(c["right"] < c["of"] for c in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
