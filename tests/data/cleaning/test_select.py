"""How many are held out, and that conversations about one thing are on one side."""

import pytest

from gangpao.data.build import build
from tests.data import makers
from tests.data.sources.test_forms import config, turns
from tests.pull.fakes import Notes

EXAMPLES = "".join(f"Question: {i} and {i}?\nAnswer: {2 * i}\n\n" for i in range(12))


def split(tmp_path, rows, heldout, **options):
    """Numbers of documents in training and held out, and what the build said."""
    notes = Notes()
    makers.jsonl(tmp_path / "s.jsonl", rows)
    settings = config(tmp_path, s={"path": "s.jsonl", "heldout": heldout, **options})
    report = build(settings, tmp_path / "out", progress=notes).report["sources"]["s"]
    said = [text for text in notes.notes if "held out" in text]
    return report["train"]["documents"], report["heldout"]["documents"], said


def chats(first, count=400):
    return [{"messages": turns(*first(i), ("assistant", f"It is {i}."))} for i in range(count)]


BEGINNINGS = {
    "one system prompt": lambda i: [("system", "You are a helpful assistant."), ("user", f"What is {i}?")],
    "a long system prompt": lambda i: [("system", EXAMPLES), ("user", f"What is {i}?")],
    "examples in the question": lambda i: [("user", f"{EXAMPLES}Question: {i}?")],
    "the same question": lambda i: [("user", "Tell me something."), ("assistant", f"{i}"), ("user", f"More of {i}?")],
    "the same greeting": lambda i: [("system", f"Your name is {i}."), ("user", "Hello!")],
    "few kinds of examples": lambda i: [("user", f"{i % 3}{EXAMPLES}Question: {i}?")],
}


@pytest.mark.parametrize(("name", "heldout"), [*((name, 0.3) for name in BEGINNINGS), ("a long system prompt", 100)])
def test_the_share_is_about_what_was_asked_for(tmp_path, name, heldout):
    train, held, said = split(tmp_path, chats(BEGINNINGS[name]), heldout)
    assert train + held == 400
    assert abs(held - (120 if heldout == 0.3 else 100)) < 40
    assert said == []


def test_a_text_with_a_common_beginning_counts_by_itself(tmp_path):
    rows = [{"text": f"{EXAMPLES}\nQuestion: {i}?"} for i in range(400)]
    train, held, said = split(tmp_path, rows, 0.3, dedup="exact")
    assert (train + held, abs(held - 120) < 40, said) == (400, True, [])


def test_questions_about_one_passage_stay_together(tmp_path):
    passage = (
        "The {} bridge was built over the river in the year of the great flood, and it has {} arches of stone. " * 3
    )
    rows = chats(lambda i: [("user", f"{passage.replace('{}', str(i // 5))}Question {i % 5}?")])
    makers.jsonl(tmp_path / "s.jsonl", rows)
    built = build(config(tmp_path, s={"path": "s.jsonl", "heldout": 0.3}), tmp_path / "out")
    assert built.heldout["s"].num_documents % 5 == 0
    assert 60 < built.heldout["s"].num_documents < 180


@pytest.mark.parametrize(
    ("count", "heldout", "said"),
    [
        (20, 0.001, "source s: none of its 20 documents is held out; for a few of them write a whole number, heldout = 5"),
        (20, 20, "source s: all of its 20 documents are held out, and none is left to train on; lower heldout = 20"),
        (20, 0, None),
    ],
)  # fmt: skip
def test_what_came_out_otherwise_is_said(tmp_path, count, heldout, said):
    rows = [{"text": f"Document number {i} says {i}."} for i in range(count)]
    makers.jsonl(tmp_path / "other.jsonl", [{"text": f"Another document {i} with {i} in it."} for i in range(30)])
    makers.jsonl(tmp_path / "s.jsonl", rows)
    notes = Notes()
    sources = {"s": {"path": "s.jsonl", "heldout": heldout}, "other": {"path": "other.jsonl", "heldout": 0}}
    build(config(tmp_path, **sources), tmp_path / "out", progress=notes)
    assert [text for text in notes.notes if "held out" in text] == [said] * (said is not None)
