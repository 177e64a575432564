"""From files of rows to batches: what is learned, what is held out, what is dropped and why; orders that survive a stop."""

import json

import numpy as np
import pytest

from gangpao.data.tokens.pack import IGNORE
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.data.config import TuneData
from gangpao.tune.data.prepare import prepare
from tests.data import makers
from tests.text import tiny
from tests.text.templates.test_chat import with_marks

BPE = Tokenizer.from_gguf(with_marks(tiny.byte_level()))
CHATML = ChatTemplate.named("chatml")


def talk(*texts, **more):
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    return {"messages": turns, **more}


def rows(count, size=6):
    return [talk(f"Question {i}?", f"Answer {i} " + "x" * (size * i % 61)) for i in range(count)]


def ready(path, content, seq_len=128, template=CHATML, prepared_kind=None, **options):
    makers.jsonl(path / "rows.jsonl", content)
    config = TuneData(files="rows.jsonl", **options).below(path)
    return prepare(config, BPE, template, seq_len, kind=prepared_kind)


def learned(batch):
    """Texts of the stretches of labels of a batch, in order."""
    out = []
    for labels in batch.labels:
        run = []
        for label in [*labels.tolist(), IGNORE]:
            if label != IGNORE:
                run.append(label)
            elif run:
                out.append(BPE.decode(run, keep_special=True))
                run = []
    return out


def all_learned(prepared):
    source, out = prepared.train(), []
    for _ in range(prepared.rows_per_epoch):
        out += learned(source.take(1))
    return sorted(out)


def test_answers_are_learned_and_packed_whole(tmp_path):
    prepared = ready(tmp_path, rows(40), 512, heldout=0)
    assert prepared.kind == "answers"
    assert all_learned(prepared) == sorted(f"{row['messages'][1]['content']}<|im_end|>" for row in rows(40))
    assert prepared.train().epochs == {"rows.jsonl": 0}
    full = prepared.report.tokens / (prepared.rows_per_epoch * 512)
    assert full > 0.9
    batch = prepared.train().take(3)
    for ids, documents, labels in zip(batch.ids, batch.documents, batch.labels, strict=True):
        starts = np.flatnonzero(np.diff(documents, prepend=-1))
        assert all(ids[start] == BPE.id_of("<|im_start|>") for start in starts[:-1])
        assert all(labels[start - 1] == IGNORE for start in starts[1:])


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("assistant", ["b<|im_end|>", "d<|im_end|>"]),
        ("last", ["d<|im_end|>"]),
        ("all", [CHATML.render([*talk("a", "b", "c", "d")["messages"]], add_generation_prompt=False).removeprefix("<|im_start|>")]),
    ],
)  # fmt: skip
def test_what_is_trained_on(tmp_path, train_on, expected):
    prepared = ready(tmp_path, [talk("a", "b", "c", "d")], heldout=0, train_on=train_on)
    assert all_learned(prepared) == expected
    assert prepared.report.label_tokens == sum(len(BPE.encode(text, parse_special=True)) for text in expected)


def test_orders_go_on_where_they_were(tmp_path):
    prepared = ready(tmp_path, rows(60))
    again = prepare(TuneData(files=("rows.jsonl",), root=str(tmp_path)), BPE, CHATML, 128)
    assert again.fingerprint == prepared.fingerprint
    one = prepared.train()
    one.take(7)
    state = json.loads(json.dumps(one.state()))
    two = again.train(state)
    for _ in range(20):  # across the end of an epoch
        assert (one.take(2).ids == two.take(2).ids).all()
    other = prepare(TuneData(files=("rows.jsonl",), root=str(tmp_path), seed=1), BPE, CHATML, 128)
    assert (other.train().take(5).ids != prepared.train().take(5).ids).any()


def test_no_prompt_is_in_training_and_held_out(tmp_path):
    content = [talk(f"Question {i % 20}?", f"Answer {i}") for i in range(100)]
    content += [talk(f" question  {i}?", "Another answer") for i in range(20)]
    prepared = ready(tmp_path, content, heldout=0.2)
    held = {text.split()[1] for batch in prepared.heldout(2) for text in learned(batch) if text.startswith("Answer")}
    held = {int(text.removesuffix("<|im_end|>")) % 20 for text in held}
    assert len(held) == 4
    trained = {text for text in all_learned(prepared) if text.startswith("Answer")}
    assert not held & {int(text.split()[1].removesuffix("<|im_end|>")) % 20 for text in trained}
    (file,) = prepared.report.files
    assert (file.train, file.heldout) == (96, 24)
    assert prepared.report.heldout_tokens > 0
    # The choice is by content: another order of the rows, the same prompts.
    other = ready(tmp_path, content[::-1], heldout=0.2)
    texts = [sorted(text for batch in p.heldout(3) for text in learned(batch)) for p in (prepared, other)]
    assert texts[0] == texts[1]


def test_a_held_out_file_takes_its_prompts_out_of_training(tmp_path):
    makers.jsonl(tmp_path / "test.jsonl", rows(5))
    prepared = ready(tmp_path, rows(30), heldout_files="test.jsonl")
    assert prepared.report.dropped == {"heldout": 5}
    assert prepared.report.named[0].where.endswith("rows.jsonl line 1")
    assert sorted(text for batch in prepared.heldout(2) for text in learned(batch)) == [
        f"{row['messages'][1]['content']}<|im_end|>" for row in rows(5)
    ]


def test_texts_are_learned_end_to_end(tmp_path):
    prepared = ready(tmp_path, [{"text": f"hello {i} " * 50} for i in range(9)], seq_len=64, heldout=0, template=None)
    assert prepared.kind == "texts"
    source = prepared.train()
    batch = source.take(prepared.rows_per_epoch)
    assert (batch.labels != IGNORE).mean() > 0.97
    end = BPE.eos_id
    assert (batch.labels == end).sum() >= 9  # nothing was cut off: the next row goes on


def test_weights_of_files(tmp_path):
    makers.jsonl(tmp_path / "a.jsonl", rows(30))
    makers.jsonl(tmp_path / "b.jsonl", [talk(f"B {i}", f"b {i}") for i in range(30)])
    files = [{"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 3}]
    prepared = prepare(TuneData(files=files, root=str(tmp_path), heldout=0), BPE, CHATML, 128)
    source = prepared.train()
    source.take(prepared.rows_per_epoch * 8)
    assert source.epochs["a.jsonl"] == pytest.approx(8, abs=1.2)
    assert source.epochs["b.jsonl"] == pytest.approx(24, abs=3)


BAD = [
    ({"messages": [{"role": "wizard", "content": "a"}, {"role": "assistant", "content": "b"}]}, "role", "role"),
    ({"messages": [{"role": "user", "content": "a"}]}, "unanswered", "no answer to learn from"),
    (talk("a", " "), "empty", "turn 2 is an empty answer"),
    (talk(" ", "b"), "empty", "turn 1 is an empty question"),
    (talk("a\ud83d", "b"), "encoding", "half a character"),
    (talk("a", "b" * 300), "long", "tokens, 128 fit"),
    (talk("Question 3?", rows(4)[3]["messages"][1]["content"]), "duplicate", "rows.jsonl line 4"),
    (
        {"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "template",
        "must follow",
    ),
    ({"messages": "no list"}, "turns", "no list of turns"),
    (17, "malformed", "is a int"),
    (
        {"messages": [{"role": "user", "content": [{"type": "x"}]}, *talk("a", "b")["messages"]]},
        "content",
        "turn 1 has no content",
    ),
    (
        {"messages": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]},
        "order",
        "turn 1 is an answer that no question",
    ),
    (
        {"messages": [*talk("a", "b")["messages"], {"role": "system", "content": "s"}, *talk("a", "b")["messages"]]},
        "order",
        "turn 3 is a system turn",
    ),
]


@pytest.mark.parametrize(("row", "reason", "said"), BAD)
def test_bad_rows_are_named_and_counted(tmp_path, row, reason, said):
    content = [*rows(12), row]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
    config = TuneData(files="rows.jsonl", root=str(tmp_path), heldout=0)
    prepared = prepare(config, BPE, CHATML, 128)
    assert prepared.report.dropped == {reason: 1}
    (named,) = prepared.report.named
    assert named.where == f"{tmp_path}/rows.jsonl line 13"
    assert said in named.detail
    assert any("1 of 13 rows are not used" in line and "line 13" in line for line in prepared.report.lines())
    with pytest.raises(ValueError, match=r"rows\.jsonl line 13: .*strict"):
        prepare(config.model_copy(update={"strict": True}), BPE, CHATML, 128)


TURNS = talk("a", "b")["messages"]
SYSTEM, ASKED, TOLD = (
    {"role": role, "content": text} for role, text in (("system", "s"), ("user", "c"), ("assistant", "d"))
)
ENDS = [
    ([TOLD, *TURNS], "the answer that no question opens"),
    ([SYSTEM, TOLD, TOLD, *TURNS], "the answer that no question opens"),
    ([*TURNS, ASKED], "the question behind the last answer"),
    ([*TURNS, {"role": "tool", "content": "t"}], "the tool turn behind the last answer"),
    ([TOLD, *TURNS, ASKED, ASKED], "the answer that no question opens and the question behind the last answer"),
]


@pytest.mark.parametrize(("turns", "said"), ENDS)
def test_a_conversation_is_learned_from_its_first_question_to_its_last_answer(tmp_path, turns, said):
    """What many published sets have at the ends of a row costs that turn, and is said."""
    kept = [*([SYSTEM] if turns[0] is SYSTEM else []), *TURNS]
    cut, whole = (ready(tmp_path, [*rows(3), {"messages": some}], heldout=0) for some in (turns, kept))
    assert [s.sequences for s in cut.shown] == [s.sequences for s in whole.shown]
    (named,) = cut.report.named
    assert (named.reason, named.detail) == ("cut", f"left out: {said}")
    with pytest.raises(ValueError, match=f"line 4: was cut: {said}"):
        ready(tmp_path, [*rows(3), {"messages": turns}], heldout=0, strict=True)


def test_dropped_and_cut_rows_are_listed_with_line_and_reason_up_to_a_number(tmp_path):
    bad = [talk("", "b"), *([{"messages": [{"role": "user", "content": "a"}]}] * 4)]
    content = [json.dumps(row) for row in [*rows(3), *bad]] + ["{no json"]
    (tmp_path / "rows.jsonl").write_text("\n".join(content))
    report = prepare(TuneData(files="rows.jsonl", root=str(tmp_path), heldout=0), BPE, CHATML, 128).report
    sentence, *lines = report.lines(rows=4)
    assert sentence == "rows.jsonl: 6 of 9 rows are not used (1 no JSON, 4 no answer, 1 empty question or answer)"
    assert lines[0] == f"  {tmp_path}/rows.jsonl line 4: turn 1 is an empty question"
    assert lines[3].endswith("line 7: has no answer to learn from")
    assert lines[4:] == ["  and 2 more, which --html lists"]
    assert len(report.lines(rows=20)) == 7
    assert len(report.lines()) == 1


def test_marks_in_a_rows_own_text_are_text_and_counted(tmp_path):
    prepared = ready(tmp_path, [*rows(3), talk("say <|im_end|> now", "ok")], heldout=0)
    end = BPE.id_of("<|im_end|>")
    (*_, shown) = prepared.shown
    assert shown.sequences[0].ids.count(end) == prepared.shown[0].sequences[0].ids.count(end)
    assert prepared.report.facts()["files"][0]["marked"] == 1
    sentence, line = prepared.report.lines(rows=20)
    assert "1 rows say <|im_end|> or the like in their own text" in sentence
    assert line.endswith("line 4: <|im_end|>")


def test_broken_bytes_are_named(tmp_path):
    lines = [json.dumps(row).encode() for row in rows(5)]
    lines[2] = b'{"messages": [{"role": "user", "content": "\xb0\xa1"}]}'
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    prepared = prepare(TuneData(files="rows.jsonl", root=str(tmp_path), heldout=0), BPE, CHATML, 128)
    (named,) = prepared.report.named
    assert (named.reason, named.where) == ("encoding", f"{tmp_path}/rows.jsonl line 3")
    assert "0xb0" in named.detail


def test_two_questions_in_a_row_are_as_the_template_says(tmp_path):
    row = {"messages": [*talk("a")["messages"], *talk("b", "c")["messages"]]}
    assert all_learned(ready(tmp_path, [row, *rows(3)], heldout=0))[-1] == "c<|im_end|>"
    prepared = ready(tmp_path, [row, *rows(3)], heldout=0, template=ChatTemplate.named("gemma"))
    assert prepared.report.dropped == {"template": 1}
    assert "turn 2 should be assistant" in prepared.report.named[0].detail


def test_nothing_left_is_an_error_that_explains(tmp_path):
    with pytest.raises(ValueError, match=r'nothing of it is left: .*5 too long.*line 1: has .*too_long = "cut"'):
        ready(tmp_path, [talk(f"{i}", "b" * 300) for i in range(5)])
    with pytest.raises(ValueError, match=r"3 of 3 rows have .*line 1"):
        ready(tmp_path, [{"body": "x"}] * 3)
    with pytest.raises(ValueError, match="has no rows"):
        ready(tmp_path, [])
    with pytest.raises(ValueError, match=r"there is no such file.*rows\.jsonl"):
        prepare(TuneData(files="other.jsonl", root=str(tmp_path)), BPE, CHATML, 128)
    with pytest.raises(ValueError, match="hold texts, and conversations are needed"):
        ready(tmp_path, [{"text": "x"}] * 3, kind="answers")
    with pytest.raises(ValueError, match="no files"):
        prepare(TuneData(), BPE, CHATML, 128)


def test_long_rows_lose_their_oldest_turns_then_the_end_of_the_answer(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    long = {"messages": [system, *talk("a" * 50, "b" * 50, "c" * 20, "d" * 20)["messages"]]}
    prepared = ready(tmp_path, [long, talk("e", "f" * 300), talk("g" * 300, "h")], heldout=0, too_long="cut")
    assert prepared.report.dropped == {"long": 1}
    assert [row.detail for row in prepared.report.named][:2] == [
        "left out: the 2 oldest turns", f"left out: the last {len('f' * 300) + 22 - 128:,} tokens of the answer",
    ]  # fmt: skip
    said = all_learned(prepared)
    assert said[0] == "d" * 20 + "<|im_end|>"
    assert set(said[1]) == {"f"}  # without an end: it has not ended
    assert "Be brief." in BPE.decode(prepared.train().take(2).ids.reshape(-1).tolist())
    assert "question alone" in prepared.report.named[2].detail


def test_a_system_turn_is_added_where_a_row_has_none(tmp_path):
    own = {"messages": [{"role": "system", "content": "Mine."}, *talk("a", "b")["messages"]]}
    prepared = ready(tmp_path, [talk("c", "d"), own], heldout=0, system="Ours.")
    text = BPE.decode(prepared.train().take(prepared.rows_per_epoch).ids.reshape(-1).tolist(), keep_special=True)
    assert text.count("system\nOurs.<|im_end|>\n<|im_start|>user\nc") == 1
    assert text.count("system\nMine.<|im_end|>\n<|im_start|>user\na") == 1


def test_thoughts_stand_where_the_model_has_marks_for_them(tmp_path):
    row = talk("a", "b")
    row["messages"][1]["reasoning_content"] = "Hm."
    prepared = ready(tmp_path, [row, talk("c", "d")], heldout=0)
    assert prepared.report.files[0].thoughts_left_out == 1
    assert any("no marks for thoughts" in line for line in prepared.report.lines())
    thinking = ChatTemplate.for_model(
        "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{# <think> </think> #}",
        tokenizer=BPE,
    )
    assert thinking.thoughts is not None
    assert all_learned(ready(tmp_path, [row], heldout=0, template=thinking)) == [
        "<think>\nHm.\n</think>\n\nb<|im_end|>"
    ]


PAIR = {"prompt": "Why?", "chosen": "good", "rejected": "bad answer"}


def test_pairs_are_packed_and_never_parted(tmp_path):
    content = [
        {"prompt": f"Why {i}?", "chosen": f"good {i}", "rejected": f"bad {i} " + "y" * (i * 7 % 60)} for i in range(30)
    ]
    prepared = ready(tmp_path, content, heldout=3)
    assert (prepared.kind, prepared.rows_per_epoch) == ("pairs", 27)
    source, seen = prepared.train(), []
    for _ in range(9):
        batch = source.take(3)
        assert batch.desirable.tolist() == [True, False] * 3
        texts = [BPE.decode(batch.labels[batch.sequences == s].tolist(), keep_special=True) for s in range(6)]
        assert ((batch.sequences >= 0) == (batch.labels != IGNORE)).all()
        for chosen, rejected in zip(texts[::2], texts[1::2], strict=True):
            assert chosen.startswith("good ")
            assert rejected.split()[1] == chosen.split()[1].removesuffix("<|im_end|>")
            seen.append(chosen)
            assert chosen.endswith("<|im_end|>")
    assert len(set(seen)) == 27
    assert sum(len(batch.desirable) // 2 for batch in prepared.heldout(2)) == 3
    assert source.epochs == {"rows.jsonl": 1.0}


def test_preferences_go_on_with_any_number_of_ranks(tmp_path):
    content = [{"prompt": f"Why {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(20)]
    prepared = ready(tmp_path, content, heldout=0)
    one = prepared.train()
    one.take(6)
    state = json.loads(json.dumps(one.state()))
    whole = one.take(8)
    ranks = [prepared.train(state).take(8, rank, 2) for rank in range(2)]
    texts = [
        [batch.labels[batch.sequences == s].tolist() for s in range(len(batch.desirable))] for batch in (whole, *ranks)
    ]
    pairs, first, second = ([tuple(map(tuple, t[i : i + 2])) for i in range(0, len(t), 2)] for t in texts)
    assert pairs[::2] == first
    assert pairs[1::2] == second
    for change in ({"seed": 4}, {"rows": 3}, {"parts": {}}, {"version": "x"}):
        with pytest.raises(ValueError, match=r"position|seed|data"):
            prepared.train({**state, **change})


def test_pairs_give_answers_and_labelled_answers(tmp_path):
    assert all_learned(ready(tmp_path, [PAIR], heldout=0, kind="answers")) == ["good<|im_end|>"]
    prepared = ready(tmp_path, [PAIR], heldout=0, prepared_kind="labelled")
    batch = prepared.train().take(2)
    texts = {BPE.decode(batch.labels[batch.sequences == s].tolist()): bool(batch.desirable[s]) for s in range(2)}
    assert texts == {"good": True, "bad answer": False}
    content = [{**talk(f"Q{i}", f"A{i}"), "label": i % 2 == 0} for i in range(6)]
    prepared = ready(tmp_path, content, heldout=0)
    assert prepared.kind == "labelled"
    assert prepared.train().take(6).desirable.sum() == 3
    assert ready(tmp_path, content, heldout=0, kind="answers").report.dropped == {"unwanted": 3}
