"""A whole measurement: parts and languages, resuming, divergence against plain formulas, and what is refused."""

import json
import math

import numpy as np
import pytest

from gangpao.evaluate import results
from gangpao.evaluate.perplexity import run as running
from gangpao.evaluate.perplexity.run import run_perplexity
from gangpao.evaluate.perplexity.windows import Windowing
from tests.evaluate.perplexity.conftest import RIVER

SMALL = Windowing(24, 12)
ENGLISH = "The river was the only way to the town, and there was not a boat that they would have been able to row. "
CHINESE = "河水从山上流下来，经过平原，一直流到大海。那里有很多人，他们都在等待船只。"
PROGRAM = "def add(a, b):\n    return a[0] + b[0]\n\nfor x in range(10):\n    print(add([x], [x * 2]))\n"


def scores(result):
    return {task.metric: task.value for task in result.tasks}


def by_hand(scorer, text, windowing):
    """(nll, tokens) of a text, from all logits of each window."""
    ids = list(text.encode())
    model, nll, count = scorer._engine.model, 0.0, 0
    for begin, end, first in windowing.spans(len(ids)):
        logits = model.forward(ids[begin:end], model.new_cache(512), all_logits=True).astype(np.float64)
        levels = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
        for at in range(first, end):
            nll += levels[at - begin - 1] - logits[at - begin - 1, ids[at]]
            count += 1
    return nll, count


def test_numbers_are_the_plain_formula_s(scorer, river):
    nll, count = by_hand(scorer, RIVER, SMALL)
    result = run_perplexity(scorer, [river], windowing=SMALL)
    assert result.tokens == {
        "prompt": sum(end - begin - 1 for begin, end, _ in SMALL.spans(len(RIVER))),
        "counted": count,
    }
    assert scores(result)["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-6)
    assert scores(result)["bits_per_byte"] == pytest.approx(nll / math.log(2) / (len(RIVER) - 1), rel=1e-6)
    assert {t.metric: t.main for t in result.tasks} == {"perplexity": False, "bits_per_byte": True}


@pytest.fixture
def corpus(tmp_path):
    """A folder of an English text, Chinese documents in rows, and a program."""
    import zstandard

    folder = tmp_path / "corpus"
    (folder / "code").mkdir(parents=True)
    (folder / "english.txt").write_text(ENGLISH * 2, encoding="utf-8")
    rows = [CHINESE, "", CHINESE * 2]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows)
    (folder / "chinese.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    (folder / "code" / "add.py").write_text(PROGRAM, encoding="utf-8")
    (folder / ".hidden").write_text("not this")
    return folder


def test_parts_by_file_and_by_language(scorer, corpus):
    result = run_perplexity(scorer, [corpus], windowing=SMALL)
    perplexity, bits, by_language = result.tasks
    assert (perplexity.task, perplexity.left_out) == ("texts", {"too_short": 1})
    assert list(bits.parts) == ["chinese", "add", "english"]
    assert set(by_language.parts) == {"zh", "en", "code"}
    assert by_language.parts["en"] == bits.parts["english"]
    nll, _ = by_hand(scorer, ENGLISH * 2, SMALL)
    assert bits.parts["english"] == pytest.approx(nll / math.log(2) / (len(ENGLISH) * 2 - 1), rel=1e-6)
    one, two = by_hand(scorer, CHINESE, SMALL)[0], by_hand(scorer, CHINESE * 2, SMALL)[0]
    assert bits.parts["chinese"] == pytest.approx((one + two) / math.log(2) / (3 * len(CHINESE.encode()) - 2), rel=1e-6)


def test_names_and_languages_of_one_file(scorer, corpus):
    named = run_perplexity(scorer, [f"a={corpus / 'english.txt'}", f"b={corpus}"], windowing=SMALL, limit=2)
    assert set(named.tasks[1].parts) == {"a", "b"}
    assert named.tasks[1].items == 4
    both = corpus / "both.jsonl"
    both.write_text("\n".join(json.dumps({"text": text}) for text in (ENGLISH, CHINESE)), encoding="utf-8")
    assert set(run_perplexity(scorer, [both], windowing=SMALL).tasks[1].parts) == {"en", "zh"}


def test_standard_errors_are_over_documents_where_there_are_many(scorer, tmp_path):
    texts = [ENGLISH[i : i + 40 + i] for i in range(25)]
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    result = run_perplexity(scorer, [path], windowing=SMALL)
    sums = np.array([by_hand(scorer, text, SMALL) for text in texts])
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    spread = ((sums[:, 0] - mean * sums[:, 1]) ** 2).sum() * 25 / 24
    assert result.tasks[0].stderr == pytest.approx(math.sqrt(spread) / sums[:, 1].sum() * math.exp(mean), rel=1e-4)
    assert "Standard errors are over documents." in result.notes


def test_divergence_is_the_plain_formula_s(scorer, other, river):
    """All numbers from whole distributions in double precision."""
    found = scores(run_perplexity(scorer, [river], windowing=SMALL, against=other))
    ids = list(RIVER.encode())
    kld, dp, same, gap = [], [], [], 0.0

    def log_softmax(one, begin, end):
        x = one._engine.model.forward(ids[begin:end], one._engine.model.new_cache(512), all_logits=True).astype(
            np.float64
        )
        return (
            x
            - x.max(axis=1, keepdims=True)
            - np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        )

    for begin, end, first in SMALL.spans(len(ids)):
        p, q = log_softmax(other, begin, end), log_softmax(scorer, begin, end)
        for at in range(first, end):
            row, token = at - begin - 1, ids[at]
            kld.append(float((np.exp(p[row]) * (p[row] - q[row])).sum()))
            dp.append(math.exp(q[row, token]) - math.exp(p[row, token]))
            same.append(p[row].argmax() == q[row].argmax())
            gap += p[row, token] - q[row, token]
    count = len(kld)
    expected = {
        "kl_divergence": np.mean(kld), "kl_divergence_p50": np.median(kld), "kl_divergence_p90": np.percentile(kld, 90),
        "kl_divergence_p95": np.percentile(kld, 95), "kl_divergence_p99": np.percentile(kld, 99),
        "kl_divergence_p99.9": np.percentile(kld, 99.9), "kl_divergence_max": np.max(kld),
        "ln_perplexity_ratio": gap / count, "delta_p_mean": np.mean(dp), "delta_p_rms": np.sqrt(np.mean(np.square(dp))),
        "same_top": np.mean(same),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert math.log(found["perplexity"] / found["perplexity_base"]) == pytest.approx(gap / count, rel=1e-6)


def test_a_model_and_its_saved_file_are_the_same_base(scorer, other, river, tmp_path):
    """Up to the file's 16 bits and 16 units."""
    windowing = Windowing(24)
    run_perplexity(other, [river], windowing=windowing, save=tmp_path / "base.kld")
    exact = scores(run_perplexity(scorer, [river], windowing=windowing, against=other))
    result = run_perplexity(scorer, [river], against=tmp_path / "base.kld")
    assert any("perplexity_base is a little too low" in note for note in result.notes)
    saved = scores(result)
    for name in ("perplexity", "same_top"):
        assert saved[name] == exact[name]
    assert saved["kl_divergence"] == pytest.approx(exact["kl_divergence"], rel=1e-3)
    itself = scores(run_perplexity(other, [], against=tmp_path / "base.kld"))
    assert abs(itself["kl_divergence"]) < 1e-4


class Stopped(Exception):
    pass


def stop_after(monkeypatch, count):
    """End the process, as it were, behind so many answers."""
    real, seen = running._Computation.answers, []

    def answers(self, pieces):
        for found in real(self, pieces):
            if len(seen) == count:
                raise Stopped
            seen.append(found)
            yield found

    monkeypatch.setattr(running._Computation, "answers", answers)
    return seen


def test_a_killed_run_goes_on_without_computing_anything_twice(scorer, other, river, tmp_path, monkeypatch):
    windowing = Windowing(16)
    options = {"windowing": windowing, "against": other}
    whole = run_perplexity(scorer, [river], out=tmp_path / "whole", save=tmp_path / "whole.kld", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            run_perplexity(scorer, [river], out=tmp_path / "out", save=tmp_path / "parts.kld", **options)
    assert not (tmp_path / "parts.kld").exists()
    with monkeypatch.context() as patch:
        seen = stop_after(patch, 99)
        result = run_perplexity(scorer, [river], out=tmp_path / "out", save=tmp_path / "parts.kld", **options)
    assert len(seen) == whole.tasks[0].items - 3
    assert (tmp_path / "parts.kld").read_bytes() == (tmp_path / "whole.kld").read_bytes()
    assert result.tasks == whole.tasks
    for name in ("whole", "out"):
        assert results.read_run(tmp_path / name).tasks == result.tasks
    items = [list(results.read_items(tmp_path / name, "river")) for name in ("whole", "out")]
    assert items[0] == items[1]
    assert "".join(item.answers[0].text for item in items[0][:2]) == RIVER[9:16] + RIVER[25:32]
    assert items[0][1].ids == list(RIVER.encode()[16:32])


def test_rows_that_a_crash_lost_are_computed_again(scorer, river, tmp_path, monkeypatch):
    options = {"windowing": Windowing(16), "out": tmp_path / "out", "save": tmp_path / "x.kld"}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            run_perplexity(scorer, [river], **options)
    partial = tmp_path / ".x.kld.partial"
    partial.write_bytes(partial.read_bytes()[:3000])
    run_perplexity(scorer, [river], **options)
    run_perplexity(scorer, [river], windowing=Windowing(16), save=tmp_path / "again.kld")
    assert (tmp_path / "x.kld").read_bytes() == (tmp_path / "again.kld").read_bytes()


def test_without_a_folder_nothing_by_half_is_left(scorer, river, tmp_path, monkeypatch):
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        run_perplexity(scorer, [river], windowing=Windowing(16), save=tmp_path / "x.kld")
    assert [path.name for path in tmp_path.iterdir()] == ["river.txt"]


def test_a_run_that_is_refused_leaves_another_s_rows_alone(scorer, river, tmp_path, monkeypatch):
    options = {"windowing": Windowing(16), "out": tmp_path / "out", "save": tmp_path / "x.kld"}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            run_perplexity(scorer, [river], **options)
    before = (tmp_path / ".x.kld.partial").read_bytes()
    with pytest.raises(ValueError, match="limit was None, is 2"):
        run_perplexity(scorer, [river], limit=2, **options)
    assert (tmp_path / ".x.kld.partial").read_bytes() == before


def test_another_text_s_answers_are_refused(scorer, river, tmp_path):
    run_perplexity(scorer, [river], windowing=SMALL, out=tmp_path / "out")
    river.write_text(RIVER + "!", encoding="utf-8")
    with pytest.raises(ValueError, match="texts was"):
        run_perplexity(scorer, [river], windowing=SMALL, out=tmp_path / "out")


def test_what_cannot_be_measured_is_refused(scorer, other, river, tmp_path):
    def refused(says, texts=(river,), model=scorer, **options):
        with pytest.raises(ValueError, match=says):
            run_perplexity(model, texts, **options)

    refused("there is no such file", [tmp_path / "nothing.txt"])
    refused("1 documents, and none has 200 ids", windowing=Windowing(200))
    refused(r"windows of 600 ids, and tiny takes 512", windowing=Windowing(600, 5))
    refused("add --llama-cpp", windowing=SMALL, save=tmp_path / "x.kld")
    run_perplexity(scorer, [river], windowing=Windowing(16), save=tmp_path / "x.kld")
    refused("cannot be written at the same time", against=tmp_path / "x.kld", save=tmp_path / "out" / ".." / "x.kld")
    refused("its windows are llama.cpp's, of 16 ids", windowing=Windowing(32), against=tmp_path / "x.kld")
    (tmp_path / "other.txt").write_text("x" + RIVER[1:])
    refused(
        r"window 0 is not of this text \(other.txt\): id 0 is 84 there and 120 here",
        [tmp_path / "other.txt"],
        against=tmp_path / "x.kld",
    )
    other.vocab_size = 260
    refused("has 259 tokens and that of other 260", model=other, against=tmp_path / "x.kld")
    refused("vocabularies of 260 and 259 tokens", against=other)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "x"}\n{"words": 1}\n', r"a.jsonl, row 2: has no string under \"text\""),
        ("a.jsonl", '{"text": 5}\n', "row 1: has no string"),
        ("a.jsonl", '{"text": "x"}\n[1\n', "row 2: is no JSON"),
        ("a.txt", b"\xff\xfe", "not a text in UTF-8"),
        ("a.jsonl.zst", b"nonsense", "damaged, or not a zstd file"),
        ("empty", None, "a folder without files"),
    ],
)
def test_texts_that_cannot_be_read_are_named(scorer, tmp_path, name, content, says):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=says):
        run_perplexity(scorer, [path], windowing=SMALL)


def test_a_damaged_answer_is_computed_again_and_told(scorer, river, tmp_path):
    first = run_perplexity(scorer, [river], out=tmp_path, windowing=Windowing(16))
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1], lines[2] = b'{"key":"0","answer":{"nll":"x"}}\n', b"\x00\n"
    path.write_bytes(b"".join(lines))
    again = run_perplexity(scorer, [river], out=tmp_path, windowing=Windowing(16))
    assert again.tasks == first.tasks
    assert again.notes[-1].startswith("journal.jsonl has damaged lines: 2.")
