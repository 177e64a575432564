"""Rows of data sets, as whoever published them wrote them, to docs of one form.

A doc has "query", and "choices" with "gold" (a number) or a "target". "subject" is there where the set has subjects. Files of the
same set differ by where they are from, in names and in how an answer is written, so each function takes all the forms that are
known and says which fields it found where it knows none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Doc = dict[str, Any]

LETTERS = "ABCDEFGHIJ"


def _text(row: Row, *names: str) -> str:
    for name in names:
        if isinstance(row.get(name), str):
            return str(row[name])
    raise ValueError(f"no text under {' or '.join(names)}; the row has {', '.join(map(str, row))}")


def _gold(answer: Any, choices: list[str]) -> int:
    """A letter, a number of a choice, that number as text, or the choice itself."""
    if isinstance(answer, str):
        answer = answer.strip()
        if answer in LETTERS and len(answer) == 1:
            answer = LETTERS.index(answer)
        elif answer.isdigit():
            answer = int(answer)
        elif answer in choices:
            answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"the answer {answer!r:.40} is none of the {len(choices)} choices")
    return answer


def cleaned(text: str) -> str:
    """HellaSwag's WikiHow part has marks in brackets; lm-eval takes them out like this, in this order."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


_LAST_SENTENCE = re.compile(r"""^(.*[.!?]["')]? )([a-z][^.!?]*)$""", re.DOTALL)


def hellaswag(row: Row) -> Doc:
    """Where only the joined text is there, its unfinished last sentence gets the capital that lm-eval gives it.

    `capitalize` also makes the rest of that sentence small; published scores were measured so.
    """
    if "ctx_b" in row:
        query = cleaned(f"{row['activity_label']}: {row['ctx_a']} {str(row['ctx_b']).capitalize()}")
    else:
        query = cleaned(_text(row, "ctx"))
        if parts := _LAST_SENTENCE.match(query):
            query = parts[1] + parts[2].capitalize()
    choices = [cleaned(ending) for ending in row["endings"]]
    return {"query": query, "choices": choices, "gold": _gold(row["label"], choices)}


def arc(row: Row) -> Doc:
    """AI2's own form has labels beside the texts, which are letters or numbers from 1."""
    if isinstance(row.get("choices"), Mapping):
        choices = list(row["choices"]["text"])
        return {
            "query": row["question"],
            "choices": choices,
            "gold": list(row["choices"]["label"]).index(row["answerKey"]),
        }
    query = _text(row, "query", "question").removeprefix("Question: ").removesuffix("\nAnswer:")
    choices = list(row["choices"])
    return {"query": query, "choices": choices, "gold": _gold(row["gold"], choices)}


def piqa(row: Row) -> Doc:
    """Goal and two ways."""
    choices = [row["sol1"], row["sol2"]] if "sol1" in row else list(row["choices"])
    query = _text(row, "goal", "query").removeprefix("Question: ").removesuffix("\nAnswer:")
    return {"query": query, "choices": choices, "gold": _gold(row["label"] if "sol1" in row else row["gold"], choices)}


def winogrande(row: Row) -> Doc:
    """Two beginnings (choices) of one end (target): what is scored is the end."""
    if "sentence" in row:
        before, _, after = row["sentence"].partition("_")
        choices = [before + row["option1"], before + row["option2"]]
        return {"query": "", "choices": choices, "gold": int(row["answer"]) - 1, "target": after.strip()}
    choices = list(row["context_options"])
    return {"query": "", "choices": choices, "gold": _gold(row["gold"], choices), "target": row["continuation"].strip()}


def mmlu(row: Row) -> Doc:
    """Four choices of a subject; also C-Eval (A, B, C, D as fields) and CMMLU (both forms)."""
    if "choices" in row:
        choices = [str(choice) for choice in row["choices"]]
    elif "choice0" in row:
        choices = [str(row[f"choice{i}"]) for i in range(4)]
    else:
        choices = [str(row[letter]) for letter in "ABCD"]
    doc: Doc = {"query": _text(row, "question", "Question").strip(), "choices": choices}
    doc["gold"] = _gold(row["answer"] if "answer" in row else row["Answer"], choices)
    return doc | ({"subject": row["subject"]} if row.get("subject") else {})


def lambada(row: Row) -> Doc:
    """A text and its last word."""
    if "continuation" in row:
        return {"query": row["context"], "target": row["continuation"]}
    query, _, word = _text(row, "text").rstrip().rpartition(" ")
    return {"query": query, "target": word}


def gsm8k(row: Row) -> Doc:
    """The reasoning with its calculator notes taken out, and the number behind ####."""
    answer = re.sub(r"<<[^>]*>>", "", _text(row, "answer"))
    reasoning, mark, number = answer.rpartition("####")
    if not mark:
        raise ValueError("the answer has no ####")
    return {"query": _text(row, "question").strip(), "reasoning": reasoning.strip(), "target": number.strip()}


def maths(row: Row) -> Doc:
    """MATH: the problem, and its answer or the solution in which the answer is boxed."""
    doc = {"query": _text(row, "problem", "context").strip(), "solution": _text(row, "solution", "chain_of_thought")}
    if row.get("answer") is not None:
        doc["target"] = str(row["answer"])
    subject = row.get("category") or row.get("type") or row.get("subject")
    return doc | ({"subject": str(subject)} if subject else {})


def bbh(row: Row) -> Doc:
    """A question of one of 27 kinds."""
    return {"query": _text(row, "input"), "target": _text(row, "target"), "subject": _text(row, "task", "subject")}


def bbh_examples(row: Row) -> Doc:
    """Three worked examples of a kind, as one text whose head is a warning to whoever trains on it."""
    text = _text(row, "prompt")
    return {"subject": _text(row, "task", "subject"), "query": text.partition("-----\n")[2] or text, "target": ""}


def humaneval(row: Row) -> Doc:
    """A function's head, and the tests that its name is put into."""
    fields = ("prompt", "test", "entry_point", "canonical_solution", "task_id")
    doc = {name: _text(row, name) for name in fields}
    return doc | {"query": doc["prompt"], "target": doc["canonical_solution"]}


def mbpp(row: Row) -> Doc:
    """A sentence, tests, and a solution; lines end as Windows writes them in some copies."""
    return {
        "query": _text(row, "text", "prompt").replace("\r\n", "\n"),
        "tests": [str(test).replace("\r\n", "\n") for test in row["test_list"]],
        "setup": str(row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])).replace("\r\n", "\n"),
        "target": _text(row, "code").replace("\r\n", "\n"),
        "number": int(row["task_id"]),
    }


Reader = Callable[[Row], Doc]
