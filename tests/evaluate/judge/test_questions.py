"""Questions and answers as they are published, and our own few."""

import json

import pytest

from gangpao.evaluate.judge import prompts, questions
from gangpao.evaluate.judge.questions import WITH_REFERENCE, load, read_answers


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def published(number, category="math", turns=2):
    return {
        "question_id": number,
        "category": category,
        "turns": [f"{number} {t}" for t in range(turns)],
        "reference": ["x", "y"],
    }


def right(number):
    return {"question_id": number, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["right 1", "right 2"]}]}


def test_our_own_set_is_whole():
    found = load(None)
    assert found.name == "judge_sample"
    assert [q.category for q in found.questions] == list(dict.fromkeys(questions.TEMPERATURES)) or len(
        found.questions
    ) == 8
    assert {q.category for q in found.questions} == set(questions.TEMPERATURES)
    assert all(len(q.turns) == 2 and bool(q.reference) == (q.category in WITH_REFERENCE) for q in found.questions)
    chinese = [q for q in found.questions if any("\u4e00" <= c <= "\u9fff" for c in q.turns[0])]
    assert len(chinese) == 4


def test_mt_bench_in_a_folder(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    rows = [published(101), published(81, "writing"), published(102)]
    raw = write(tmp_path / "rows", *rows).read_bytes()
    (tmp_path / "mt_bench.jsonl.zst").write_bytes(zstandard.compress(raw))
    write(tmp_path / "mt_bench_reference.jsonl", right(101))
    found = load(tmp_path)
    assert (found.name, found.whole) == ("mt_bench", 3)
    assert [(q.id, q.temperature, q.reference) for q in found.questions] == [
        ("101", 0.0, ("right 1", "right 2")), ("81", 0.7, ()), ("102", 0.0, ()),
    ]  # fmt: skip
    assert [q.id for q in found.limited(2).questions] == ["101", "81"]
    assert found.limited(2).whole == 3
    other = load(tmp_path / "mt_bench.jsonl.zst", write(tmp_path / "other.jsonl", right(102)))
    assert [bool(q.reference) for q in other.questions] == [False, False, True]
    assert other.source != found.source


def test_prompts_of_an_arena(tmp_path):
    file = write(
        tmp_path / "hard.jsonl",
        {"uid": "a1", "category": "hard_prompt", "prompt": "Do it."},
        {"question_id": "b2", "category": "arena-hard-v0.1", "turns": [{"content": "Do that."}]},
        {"prompt": "And this."},
    )
    found = load(file)
    assert [(q.id, q.turns, q.temperature) for q in found.questions] == [
        ("a1", ("Do it.",), 0.0), ("b2", ("Do that.",), 0.0), ("3", ("And this.",), 0.0),
    ]  # fmt: skip
    assert found.name == "hard"


def test_answers_of_others(tmp_path):
    file = write(
        tmp_path / "answers.jsonl",
        right(81),
        {
            "uid": "a1",
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": {"answer": "yes"}}],
        },
        {"question_id": "b2", "choices": [{"turns": [{"content": "so"}]}]},
    )
    expected = {"81": ("right 1", "right 2"), "a1": ("yes",), "b2": ("so",)}
    assert read_answers(file) == read_answers(tmp_path) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question_id": 1}, r"rows.jsonl:1: a question has one or two texts"),
        ({"question_id": 1, "turns": ["a", "b", "c"]}, "one or two texts"),
        ({"question_id": 1, "turns": ["a", 3]}, "one or two texts"),
        ([1], r"rows.jsonl:1: is no JSON object"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, said):
    with pytest.raises(ValueError, match=said):
        load(write(tmp_path / "rows.jsonl", row))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no questions there; they are in mt_bench.jsonl or question.jsonl"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no question in it"):
        load(write(tmp_path / "q.jsonl"))
    with pytest.raises(ValueError, match="question 5 is there twice"):
        load(write(tmp_path / "q.jsonl", published(5), published(5)))
    write(tmp_path / "reference.jsonl", {"question_id": 5, "choices": [{"turns": ["one"]}]})
    with pytest.raises(ValueError, match="reference to question 5 has 1 of 2 turns"):
        load(write(tmp_path / "q.jsonl", published(5)))
    with pytest.raises(ValueError, match="no answers there"):
        read_answers(tmp_path)
    with pytest.raises(ValueError, match="an answer has question_id"):
        read_answers(write(tmp_path / "a.jsonl", {"question_id": 1}))


# --- prompts of judges

TEXTS = {"question_1": "What is {answer}?", "answer_1": "{question_1}", "ref_answer_1": "R"}


def test_texts_are_put_in_once():
    own = prompts.load()
    section = own.named("single", second=False, reference=True)
    said = section.messages(TEXTS)[-1]["content"]
    assert "What is {answer}?" in said
    assert "<answer>\n{question_1}\n</answer>" in said
    assert own.named("pair", second=True, reference=False) == own.pair_second


def test_prompts_of_a_user(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('version = "mine-1"\n[single]\nsystem = ""\nuser = "Q {question} A {answer}"\n')
    mine, own = prompts.load(file), prompts.load()
    assert mine.single.messages(TEXTS) == [{"role": "user", "content": "Q What is {answer}? A {question_1}"}]
    assert mine.pair == own.pair
    assert mine.digest != own.digest
    for text, said in (
        ('[single]\nuser = "Q {question} A {answer}"', "version is missing"),
        ('version = "m"\n[single]\nuser = "{question}"', "single: {answer} is missing"),
        ('version = "m"\n[single]\nuser = "{question} {anwser}"', "no place is called {anwser}"),
        ('version = "m"\n[singel]\nuser = "x"', "singel"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            prompts.load(file)
    with pytest.raises(ValueError, match="no such file"):
        prompts.load(tmp_path / "none.toml")
