"""Rows of a set in all the forms in which it is published become the same doc."""

import json

import pytest

from gangpao.evaluate.tasks import docs, prompts
from gangpao.evaluate.tasks.build import ask, docs_of, limited
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.table import LIMITS, SUITES, TASKS
from tests.evaluate import samples

HELLASWAG = {
    "activity_label": "Boiling eggs", "ctx_a": "A cook puts eggs [title] into a pot.", "ctx_b": "then SHE", "label": "3",
    "endings": ["waits [step] a bit.", "b", "c", " d "],
}  # fmt: skip
SAME = {
    docs.hellaswag: [
        HELLASWAG,
        {"ctx": "Boiling eggs: A cook puts eggs.  into a pot. then SHE", "label": 3, "endings": ["waits a bit.", "b", "c", "d"]},
    ],
    docs.arc: [
        {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        {"query": "Question: Why?", "choices": ["x", "y"], "gold": 1},
        {"query": "Question: Why?\nAnswer:", "choices": ["x", "y"], "gold": 1},
    ],
    docs.piqa: [
        {"goal": "g", "sol1": "x", "sol2": "y", "label": 1},
        {"query": "Question: g", "choices": ["x", "y"], "gold": 1},
    ],
    docs.mmlu: [
        {"subject": "s", "question": "q ", "choices": ["w", "x", "y", "z"], "answer": 2},
        {"subject": "s", "question": "q", "choice0": "w", "choice1": "x", "choice2": "y", "choice3": "z", "answer": "2"},
        {"subject": "s", "question": "q", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "C"},
        {"subject": "s", "Question": "q", "A": "w", "B": "x", "C": "y", "D": "z", "Answer": "C"},
    ],
    docs.winogrande: [
        {"sentence": "The _ broke , loudly.", "option1": "car", "option2": "egg", "answer": "2"},
        {"context_options": ["The car", "The egg"], "continuation": "broke , loudly.", "gold": 1},
    ],
    docs.lambada: [{"text": "one two three"}, {"context": "one two", "continuation": "three"}],
}  # fmt: skip


@pytest.mark.parametrize("read", SAME, ids=lambda read: read.__name__)
def test_forms_of_a_set_give_one_doc(read):
    first, *others = (read(row) for row in SAME[read])
    assert all(other == first for other in others)


def test_hellaswag_is_what_lm_eval_makes_of_it():
    from lm_eval.tasks.hellaswag.utils import preprocess

    ctx = HELLASWAG["ctx_a"] + " " + HELLASWAG["ctx_b"].capitalize()
    doc = docs.hellaswag(HELLASWAG)
    assert doc["query"] == preprocess(HELLASWAG["activity_label"] + ": " + ctx)
    assert doc["choices"] == [preprocess(ending) for ending in HELLASWAG["endings"]]


@pytest.mark.parametrize(
    ("read", "row", "words"),
    [
        (docs.mmlu, {"question": "q", "choices": ["a", "b"], "answer": "E"}, "none of the 2 choices"),
        (docs.mmlu, {"question": "q", "choices": ["a", "b"], "answer": True}, "none of the 2"),
        (docs.gsm8k, {"question": "q", "answer": "no mark"}, "no ####"),
        (docs.lambada, {"body": "q"}, "no text under text; the row has body"),
    ],
)
def test_a_row_that_is_something_else_says_so(read, row, words):
    with pytest.raises(ValueError, match=words):
        read(row)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return DataSource(samples.write(tmp_path_factory.mktemp("data")))


def test_examples_are_the_subject_s_own_and_stand_in_front(source):
    asked = ask(TASKS["mmlu"], source)
    doc = asked.docs[7]
    assert doc["subject"] == "maps"
    head = "The following are multiple choice questions (with answers) about maps.\n\n"
    assert doc["prompt"].startswith(head + "Example 0?\nA. north\nB. south\nC. east\nD. west\nAnswer: A\n\nExample 1?")
    assert doc["prompt"].endswith("Answer: A\n\nWhich way is number 1?\nA. north\nB. south\nC. east\nD. west\nAnswer:")
    assert ask(TASKS["mmlu"], source, shots=0).docs[7]["prompt"].startswith(head + "Which way")
    assert "答案：A\n\n例1" in ask(TASKS["cmmlu"], source).docs[0]["prompt"]


def test_shots_that_are_not_there_are_refused(source):
    with pytest.raises(ValueError, match="mmlu: 6 examples wanted and 5 there"):
        ask(TASKS["mmlu"], source, shots=6)
    with pytest.raises(ValueError, match="no examples for it"):
        ask(TASKS["arc_easy"], source, shots=1)


def test_calculator_notes_are_taken_out(source):
    asked = ask(TASKS["gsm8k"], source)
    assert asked.docs[0]["reasoning"] == "It is 2."
    assert asked.docs[0]["prompt"].count("####") == 8


def test_a_limit_takes_some_of_each_subject():
    many = [{"subject": s, "n": n} for s in "abc" for n in range(5)]
    assert [(at, doc["subject"]) for at, doc in limited(many, 4)] == [(0, "a"), (1, "a"), (5, "b"), (10, "c")]
    assert [at for at, _ in limited([{"n": n} for n in range(9)], 3)] == [0, 1, 2]
    assert len(limited(many, None)) == len(limited(many, 99)) == 15


def test_a_kind_s_worked_examples_lose_their_work():
    first = "Q: 1 + 1?\nA: Let's think step by step.\nIt is 2. So the answer is 2."
    text = f"What is it?\n\n{first}\n\nQ: b?\nA: Let's. So the answer is (B)."
    assert prompts.bbh_direct_examples(text) == "What is it?\n\nQ: 1 + 1?\nA: 2\n\nQ: b?\nA: (B)"


def test_suites_name_tasks_that_there_are():
    assert {task for suite in SUITES.values() for task in suite} <= set(TASKS)
    assert all(set(limits) <= set(SUITES[suite]) for suite, limits in LIMITS.items())


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"piqa \(test\) is not there: piqa\.jsonl\[\.zst\], or a copy of baber/piqa"):
        DataSource(tmp_path).rows("piqa")
    with pytest.raises(ValueError, match="which data"):
        DataSource(None).rows("piqa")
    with pytest.raises(ValueError, match="no such folder"):
        DataSource(tmp_path / "no").rows("piqa")
    with pytest.raises(ValueError, match="on no hub"):
        DataSource("modelscope").rows("lambada")
    (tmp_path / "piqa.jsonl").write_text('{"goal": "g", "sol1": "a", "sol2": "b", "label": 7}\n')
    with pytest.raises(ValueError, match=r"piqa\.jsonl:1: not a row of piqa: the answer 7"):
        DataSource(tmp_path).rows("piqa")


def test_folders_of_a_repository_name_subjects(tmp_path):
    """C-Eval as its repository has it: a folder a subject, rows without one."""
    row = {"id": 0, "question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "B", "explanation": ""}
    for subject in ("law", "accountant"):
        for name in ("val-00000-of-00001", "dev-00000-of-00001"):
            file = tmp_path / "ceval-exam" / subject / f"{name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text((json.dumps(row) + "\n") * 5)
    asked = ask(TASKS["ceval"], DataSource(tmp_path))
    assert [doc["subject"] for doc in asked.docs] == ["accountant"] * 5 + ["law"] * 5
    assert asked.docs[0]["prompt"].startswith("以下是关于accountant的")
    assert asked.origin.startswith("2 files, sha256 ")


def test_places_are_those_of_what_a_task_can_ask(tmp_path):
    """MBPP's file begins with examples: what a corpus holds is looked for among the questions, and found under the same place."""
    rows = [
        {"task_id": n, "text": f"Do {n}.", "code": f"def f{n}(): pass", "test_list": [f"f{n}()"], "test_setup_code": ""}
        for n in range(1, 14)
    ]
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(tmp_path)
    asked, docs = ask(TASKS["mbpp"], source), docs_of(TASKS["mbpp"], source)
    assert [doc["number"] for doc in asked.docs] == [11, 12, 13]
    assert [docs[doc["place"]]["number"] for doc in asked.docs] == [11, 12, 13]
    assert asked.of == 3


def test_so_many_of_a_kind_s_worked_examples_as_are_asked_for(tmp_path):
    text = (
        "canary\n-----\nWhat is it?"
        + "".join(f"\n\nQ: {n}?\nA: Let's see. So the answer is {n}." for n in range(3))
        + "\n"
    )
    (tmp_path / "bbh.jsonl").write_text(json.dumps({"task": "t", "input": "9?", "target": "9"}) + "\n")
    (tmp_path / "bbh_cot_prompts.jsonl").write_text(json.dumps({"task": "t", "prompt": text}) + "\n")
    source = DataSource(tmp_path)
    asked = {n: ask(TASKS["bbh"], source, shots=n) for n in (0, 1, 3)}
    assert asked[0].docs[0]["prompt"] == "Q: 9?\nA:"
    assert asked[1].docs[0]["prompt"] == "What is it?\n\nQ: 0?\nA: 0\n\nQ: 9?\nA:"
    assert asked[3].docs[0]["prompt"].count("Q: ") == 4
    steps = ask(TASKS["bbh_steps"], source).docs[0]["prompt"]
    assert steps == text.partition("-----\n")[2].strip() + "\n\nQ: 9?\nA: Let's think step by step.\n"
    with pytest.raises(ValueError, match="4 examples wanted and 3 there"):
        ask(TASKS["bbh"], source, shots=4)
