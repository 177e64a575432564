"""Runs that nobody ran, with numbers as they might come: for tests of reports, and to look at a page while working on it.

python -m tests.evaluate.report.makers FOLDER     writes two of them there
"""

import random
import shutil
import sys
from pathlib import Path

from gangpao.evaluate.results import (
    Answer,
    Item,
    ModelFacts,
    RunResult,
    Speed,
    TaskResult,
    Thinking,
    write_items,
    write_run,
)

# task, metric, mode, shots, of, share right of the first and of the second run
TASKS = (
    ("hellaswag", "acc_norm", "loglikelihood", 0, 10042, 0.42, 0.47),
    ("arc_easy", "acc", "loglikelihood", 0, 2376, 0.54, 0.62),
    ("arc_challenge", "acc_norm", "loglikelihood", 0, 1172, 0.28, 0.31),
    ("piqa", "acc_norm", "loglikelihood", 0, 1838, 0.67, 0.68),
    ("mmlu", "acc", "loglikelihood", 5, 14042, 0.29, 0.34),
    ("cmmlu", "acc", "loglikelihood", 5, 11582, 0.26, 0.41),
    ("gsm8k", "exact_match", "generation", 8, 1319, 0.02, 0.21),
    ("humaneval", "pass@1", "program", 0, 164, 0.06, 0.58),
)
HOSTILE = "<script>window.hurt = 1</script><img src=x onerror=window.hurt=1>|`*_[x](javascript:alert(1))"


def items_of(task: str, share: float, count: int, seed: int, subjects: int = 0, generated: bool = False) -> list[Item]:
    """Items that both runs have, harder and easier ones; `share` of them right."""
    easy, draw = random.Random(task), random.Random(f"{task} {seed}")
    order = sorted(range(count), key=lambda i: easy.random() + 0.35 * draw.random())
    right = set(order[: round(share * count)])
    out = []
    for i in range(count):
        answers = [Answer(text=f" choice {k}", logprob=-2.0 - (k != 0), tokens=3) for k in range(4)]
        if generated:
            answers = [Answer(text=f"{HOSTILE} #### {i}", tokens=40, finish="stop")]
        out.append(
            Item(
                item=str(i),
                prompt=f"Question {i}: 一加一? {HOSTILE}\nAnswer:",
                answers=answers,
                target=str(i % 4),
                scores={metric_of(task): float(i in right)},
                extra={"subject": f"subject {i % subjects}"} if subjects else {},
            )
        )
    return out


def metric_of(task: str) -> str:
    return next(metric for name, metric, *_ in TASKS if name == task)


def score_of(row: tuple, items: list[Item], **over) -> TaskResult:
    task, metric, mode, shots, of, *_ = row
    values = [item.scores[metric] for item in items]
    subjects = sorted({item.extra["subject"] for item in items if "subject" in item.extra})
    parts = {s: mean([i.scores[metric] for i in items if i.extra["subject"] == s]) for s in subjects}
    share = mean(values)
    facts = {
        "task": task, "metric": metric, "value": share, "stderr": (share * (1 - share) / (len(values) - 1)) ** 0.5,
        "items": len(values), "of": of, "mode": mode, "shots": shots, "parts": parts, "prompt_version": "1",
        "grader": "python 3.11" if mode == "program" else "", "stop": ["\n\n"] if mode != "loglikelihood" else [],
        "data": f"{task}.jsonl sha256 0123abcd",
    }  # fmt: skip
    return TaskResult(**{**facts, **over})


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def a_run(
    folder: Path, name: str, column: int, tasks: tuple = TASKS, count: int = 120, speed: float = 90.0, **over
) -> Path:
    """A folder with results.json and items. column: 5 or 6 of TASKS. count: items of each task."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = []
    for row in tasks:
        items = items_of(
            row[0],
            row[column],
            min(count, row[4]),
            column,
            24 if row[0] in ("mmlu", "cmmlu") else 0,
            row[2] != "loglikelihood",
        )
        write_items(folder, row[0], items)
        scores.append(score_of(row, items))
    model = ModelFacts(
        name=name, kind="gguf", sha256=f"{column}" * 64, bytes=98_362_432 * column, parameters=135_000_000,
        architecture="llama", quantization="Q4_1", context=2048,
    )  # fmt: skip
    facts = {
        "created": "2026-11-29T12:00:00Z", "gangpao": "0.1.0 (abcdef0)", "harness": "lm-eval 0.4.13",
        "hardware": {"cpu": "a processor", "cores": 2, "memory": 25_276_063_744, "kernels": "avx2"},
        "model": model, "suite": "quick",
        "settings": {"bos": "as the tokenizer", "chat_template": False, "seed": 1234},
        "tasks": scores, "speed": Speed(prefill_tps=900, decode_tps=speed, batch_tps=3 * speed, batch=8, rss_mb=300),
        "seconds": 754.0, "tokens": {"prompt": 100_000, "cached": 80_000, "completion": 9000}, "yuan": 0.02,
        "limit": count, "notes": ["A note of the run."],
    }  # fmt: skip
    write_run(folder, RunResult(**{**facts, **over}))
    return folder


def copies(template: Path, folder: Path) -> list[Path]:
    """The runs in a folder, copied where a test may change them."""
    return [shutil.copytree(one, folder / one.name) for one in sorted(template.iterdir())]


def changed(folder: Path, **over) -> Path:
    """The run in a folder with other values for some of its fields."""
    from gangpao.evaluate.results import read_run

    write_run(folder, read_run(folder).model_copy(update=over))
    return folder


def thinking(empty: float) -> Thinking:
    return Thinking(answers=100, mean_tokens=812.5, at_limit=0.21, empty=empty)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    print(
        a_run(out / "small", "smollm2-135m", 5, count=400),
        a_run(out / "large", "qwen2.5-coder-0.5b", 6, count=400, speed=40),
    )
