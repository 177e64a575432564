"""Small data sets in the forms in which they are published, written by us."""

import json
from pathlib import Path

PLACES = ["north", "south", "east", "west"]


def rows() -> dict[str, list[dict]]:
    """By name of the file."""
    return {
        "hellaswag_val": [
            {
                "ctx": f"Boiling eggs: A cook puts {n} eggs into a pot. she",
                "label": n % 4,
                "endings": [f"waits {n} minutes.", "paints a door.", f"counts {n} stars and goes home.", "sings "],
            }
            for n in range(2, 12)
        ],
        "arc_easy": [
            {"query": f"Question: Which is {n} more than 3?", "choices": [str(n), str(n + 3), str(n + 4), "none"], "gold": 1}
            for n in range(12)
        ],
        "winogrande": [
            {"context_options": [f"The {a} hit the {b} so the {x}" for x in (a, b)], "continuation": "broke.", "gold": 1}
            for a, b in [("ball", "vase"), ("stone", "window"), ("car", "egg")]
        ],
        "lambada": [{"context": f"He had {n} keys. One of the {n}", "continuation": "keys"} for n in range(3, 8)],
        "mmlu_test": [_exam(subject, f"Which way is number {n}?", n) for subject in ("sailing", "maps") for n in range(6)],
        "mmlu_dev": [_exam(subject, f"Example {n}?", n) for subject in ("sailing", "maps") for n in range(5)],
        "cmmlu_test": [_exam_zh(f"第{n}题的方向是", n) for n in range(4)],
        "cmmlu_dev": [_exam_zh(f"例{n}", n) for n in range(5)],
        "gsm8k_test": [{"question": f"{n} + 2?", "answer": f"It is <<{n}+2={n + 2}>>{n + 2}.\n#### {n + 2}"} for n in range(4)],
        "gsm8k_train": [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(9)],
    }  # fmt: skip


def _exam(subject: str, question: str, n: int) -> dict:
    return {
        "subject": subject,
        "question": question,
        **{f"choice{i}": PLACES[i] for i in range(4)},
        "answer": str(n % 4),
    }


def _exam_zh(question: str, n: int) -> dict:
    return {"subject": "地理", "question": question, "choices": ["东", "南", "西", "北"], "answer": "ABCD"[n % 4]}


def write(folder: Path) -> Path:
    """All of it into a folder, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in rows().items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
