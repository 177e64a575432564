"""What is counted of answers, and when a smaller model is worth a warning."""

import json
import string

import pytest

from gangpao.compress.compare import answers, judged
from gangpao.compress.compare.answers import Said, common, loops, repeated, summaries
from gangpao.compress.compare.prompts import PROMPTS, read_prompts
from gangpao.compress.compare.run import Comparison, Model
from gangpao.compress.compare.texts import TEXTS
from gangpao.compress.compare.words import WORDS
from gangpao.compress.importance.calibration import TEXTS as TEXTS_OF_CALIBRATION
from gangpao.evaluate.models.protocol import Generated
from gangpao.evaluate.results import ModelFacts


@pytest.mark.parametrize(
    ("ids", "looping"),
    [
        ([7] * 24, True), ([7] * 23, False), (list(range(50)), False), ([*range(30), *[1, 2, 3] * 8], True),
        ([*range(30), *[1, 2, 3] * 8, 1, 2], True),  # cut within the block
        ([*range(30), *list(range(60)) * 3], True), ([*range(30), *list(range(60)) * 2], False), ([], False), ([1, 2], False),
    ],
)  # fmt: skip
def test_a_loop_is_a_block_three_times_at_the_end(ids: list[int], looping: bool) -> None:
    assert loops(ids) is looping


def test_repetition_is_the_share_of_grams_that_were_there() -> None:
    assert repeated([1, 2, 3]) == 0
    assert repeated(list(range(20))) == 0
    assert repeated([5] * 13) == pytest.approx(0.9)  # one of ten grams is new
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([1, 2], [1, 2, 3]) == 2


def said(number: int, *, ended: bool, how: str = "greedy", thought: bool = False, closed: bool = False) -> Said:
    return Said(how, number, 10, ended, not ended, 0.0, False, thought, closed, False, None, "", "")


def model(name: str, answered: list[Said]) -> Model:
    return Model(ModelFacts(name=name, kind="gguf"), (), summaries(answered), answered, None)


def compared(*models: Model) -> Comparison:
    return Comparison(models, {}, {}, True, "")


def test_a_model_that_ends_less_often_is_warned_of() -> None:
    reference = model("big", [said(n, ended=True) for n in range(20)])
    smaller = model("small", [said(n, ended=n >= 8) for n in range(20)])
    (found,) = judged.warnings(compared(reference, smaller))
    assert (found.model, found.what, found.count, found.reference, found.asked) == ("small", "ends", 12, 20, 20)
    text = WORDS["en"]["warn.ends"].format(model="small", count=12, asked=20, reference=20)
    assert text.startswith("Warning: small ends 12 of 20 answers by itself, the reference 20")


def test_what_chance_explains_is_not_warned_of() -> None:
    reference = model("big", [said(n, ended=n != 3) for n in range(20)])
    smaller = model("small", [said(n, ended=n > 1) for n in range(20)])
    assert judged.warnings(compared(reference, smaller)) == []
    assert judged.warnings(compared(smaller, model("none", []))) == []


def test_answers_to_one_prompt_count_as_one_chance() -> None:
    """Three prompts with ten drawn answers each are three cases, not thirty."""
    reference = [said(n, ended=True, how="drawn") for n in range(4) for _ in range(10)]
    smaller = [said(n, ended=n > 0, how="drawn") for n in range(4) for _ in range(10)]
    assert judged.difference(reference, smaller, "ends").word == "cannot tell"


def test_thoughts_that_stay_open_are_warned_of() -> None:
    reference = model("big", [said(n, ended=True, thought=True, closed=True) for n in range(12)])
    smaller = model("small", [said(n, ended=False, thought=True) for n in range(12)])
    assert [w.what for w in judged.warnings(compared(reference, smaller))] == ["ends", "closes"]
    (summary,) = smaller.answers
    assert (summary.thoughts, summary.closed, summary.at_limit) == (12, 0, 12)


class Letters:
    """A tokenizer with an id a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]


def test_an_answer_within_its_thought_is_not_closed() -> None:
    open_ = answers._said("greedy", 0, Generated("", "length", 9, 3, "hm", 9, in_thought=True), Letters(), None)
    assert (open_.thought, open_.closed, open_.empty, open_.ended, open_.at_limit) == (True, False, True, False, True)
    closed = answers._said("greedy", 0, Generated("abX", "stop", 9, 3, "hm", 4), Letters(), open_)
    assert (closed.thought, closed.closed, closed.empty, closed.ended, closed.same) == (True, True, False, True, 2)


def test_prompts_of_a_file(tmp_path) -> None:
    assert len(read_prompts(None)) == len(PROMPTS) == 20
    lines = tmp_path / "prompts.txt"
    lines.write_text("One?\n\n二?\n", encoding="utf-8")
    assert [m[0]["content"] for m in read_prompts(lines)] == ["One?", "二?"]
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(
        '{"prompt": "a"}\n"b"\n{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, '
        '{"role": "assistant", "content": "not shown"}]}\n',
        encoding="utf-8",
    )
    assert [[m["content"] for m in one] for one in read_prompts(rows)] == [["a"], ["b"], ["s", "u"]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "no prompts"), ("{", "prompts.jsonl:1: not JSON"), ('{"x": 1}', "prompts.jsonl:1: neither"),
     ('{"messages": [{"role": "assistant", "content": "a"}]}', "of a user")],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(tmp_path, text: str, reason: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_prompts(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")


def test_both_languages_say_the_same() -> None:
    fields = {
        lang: {n: {f for _, f, _, _ in string.Formatter().parse(w) if f} for n, w in words.items()}
        for lang, words in WORDS.items()
    }
    assert fields["en"] == fields["zh"]
    assert all(len(documents) >= 6 for documents in TEXTS.values())


def test_the_texts_are_held_out() -> None:
    """None of them shares a run of 40 characters with a text that compression looks at a model with."""
    shown = "\n".join(path.read_text(encoding="utf-8") for path in sorted(TEXTS_OF_CALIBRATION.glob("*.jsonl")))
    assert len(shown) > 10_000
    for documents in TEXTS.values():
        for document in documents:
            text = json.dumps(document, ensure_ascii=False)[1:-1]
            assert not [text[i : i + 40] for i in range(0, len(text) - 40, 20) if text[i : i + 40] in shown]
