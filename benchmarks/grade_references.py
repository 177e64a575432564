"""Do the graders find every published reference answer right? HumanEval, MBPP, GSM8K, MATH and BBH, as far as a folder has them.

    python benchmarks/grade_references.py FOLDER [--only humaneval]

FOLDER holds humaneval.jsonl, mbpp.jsonl, gsm8k_test.jsonl, math_test.jsonl, bbh.jsonl with the fields as published, plain or .zst.
Programs run in the cage (Linux). Each wrong one is listed; one JSON line with the counts comes last.
"""

import argparse
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gangpao.evaluate.graders import bbh, code, maths, values
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


def gsm8k(problems: list[dict[str, Any]]) -> Iterator[tuple[str, Grade]]:
    """Each reference, read strictly, and as the last number of its text without the mark."""
    for number, p in enumerate(problems):
        yield f"GSM8K/{number} strict", maths.gsm8k(p["answer"], p["answer"], strict=True)
        yield f"GSM8K/{number} flexible", maths.gsm8k(p["answer"].replace("####", "The answer is"), p["answer"])


def rewritten(answer: str) -> Iterator[str]:
    """The same answer as another would write it."""
    yield f"${answer}$"
    yield answer + "."
    yield re.sub(r"\\[dt]?frac(?![a-zA-Z])", r"\\dfrac", answer)
    yield answer.replace(r"^\circ", "°").replace(r"\%", "%").replace(r"\$", "$")
    yield re.sub(r"(\d)\s*\\(sqrt|pi)", r"\1 \\cdot \\\2", answer)
    if re.fullmatch(r"\d{4,}", answer):
        yield f"{int(answer):,}"
    if not re.match(r"\d+\s*\\", answer):
        yield re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", answer)


def math(problems: list[dict[str, Any]]) -> Iterator[tuple[str, Grade]]:
    """Each solution, each answer in Minerva's sentence, and each answer against its rewritten forms."""
    for number, p in enumerate(problems):
        answer, name = p["answer"], f"MATH/{number}"
        yield f"{name} solution", maths.math(p["chain_of_thought"], answer)
        sentence = f"Final Answer: The final answer is ${answer}$. I hope it is correct."
        yield f"{name} sentence", maths.math(sentence, answer)
        for form in rewritten(answer):
            yield f"{name} {form}", Grade(values.same(form, answer), form, f"not {answer}")


def big_bench(problems: list[dict[str, Any]]) -> Iterator[tuple[str, Grade]]:
    """Each target in the sentence of the prompts, and alone."""
    for number, p in enumerate(problems):
        sentence = f"We count: 1, 2. So the answer is {p['target']}.\n\nQ: next"
        yield f"{p['task']}/{number} sentence", bbh.grade(sentence, p["target"])
        yield f"{p['task']}/{number} direct", bbh.grade(f" {p['target']}\n", p["target"], direct=True)


GRADED: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Iterator[tuple[str, Grade]]]]] = {
    "humaneval": ("humaneval", humaneval),
    "mbpp": ("mbpp", mbpp),
    "gsm8k": ("gsm8k_test", gsm8k),
    "math": ("math_test", math),
    "bbh": ("bbh", big_bench),
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
