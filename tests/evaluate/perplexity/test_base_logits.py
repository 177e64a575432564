"""llama.cpp's file: llama-perplexity's own is read, and ours has the same bytes up to a step of rounding.

llama_perplexity.kld was written by llama-perplexity (llama.cpp b11549) from the tiny model and the text of conftest.py with
`-c 16 -b 16 --chunks 3 -t 1`; it said PPL = 354104.9552, and 328253.8104 where the model wants BOS. A model of random weights is
that surprised, and its logits are far apart, so roundings show more than in a real one (test_real.py). That llama-perplexity
reads our files was tried by hand (docs/log.md): it needs a compiler.
"""

from pathlib import Path

import numpy as np
import pytest

from gangpao.evaluate.perplexity.base_logits import BaseLogits, BaseLogitsWriter, Shape, packed, unpacked
from gangpao.evaluate.perplexity.run import run_perplexity
from gangpao.evaluate.perplexity.scorers import norms
from gangpao.evaluate.perplexity.windows import Windowing
from gangpao.progress import Silent
from tests.evaluate.perplexity.conftest import RIVER

THEIRS = Path(__file__).with_name("llama_perplexity.kld")
THEIR_PPL = {False: 354104.9552, True: 328253.8104}
CONTEXT = 16


def scores(result):
    return {task.metric: task.value for task in result.tasks}


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_is_llama_perplexity_s(scorer, river, bos):
    scorer.tokenizer.vocabulary.adds_bos = bos
    result = run_perplexity(scorer, [river], windowing=Windowing(CONTEXT), limit=3)
    assert scores(result)["perplexity"] == pytest.approx(THEIR_PPL[bos], rel=0.01)


class Shown(Silent):
    """Remembers how much there was to do and how much was done."""

    total = done = 0

    def start(self, label: str, total: int, done: int = 0) -> None:
        self.total = total

    def update(self, done: int) -> None:
        self.done = done


def test_their_file_is_read(scorer, river):
    base = BaseLogits(THEIRS)
    assert base.shape == Shape(CONTEXT, 259, 3)
    assert base.ids.ravel().tolist() == list(RIVER.encode()[: 3 * CONTEXT])
    for texts in ([], [river]):  # the file's own ids, and the same text, which goes on behind them
        shown = Shown()
        found = scores(run_perplexity(scorer, texts, against=THEIRS, progress=shown))
        assert (shown.total, shown.done) == (3 * 7, 3 * 7)
        assert abs(found["kl_divergence"]) < 1e-4
        assert found["same_top"] == 1.0
        assert found["perplexity"] == pytest.approx(THEIR_PPL[False], rel=0.01)


def test_our_file_is_theirs(scorer, river, tmp_path):
    run_perplexity(scorer, [river], windowing=Windowing(CONTEXT), limit=3, save=tmp_path / "ours.kld")
    ours, theirs = BaseLogits(tmp_path / "ours.kld"), BaseLogits(THEIRS)
    assert (ours.shape, ours.ids.tolist()) == (theirs.shape, theirs.ids.tolist())
    assert (tmp_path / "ours.kld").stat().st_size == THEIRS.stat().st_size
    for window in range(3):
        for a, b in zip(ours.rows(window), theirs.rows(window), strict=True):
            x, y = unpacked(a, 259), unpacked(b, 259)
            assert np.abs(x - y).max() < 0.2  # both round activations to 8 bits, each in its way
            assert np.abs(x - y).mean() < 0.05


def as_they_do(logits):
    """A row in plain floats, step by step as log_softmax of perplexity.cpp has it."""
    peak, low = float(logits.max()), float(max(logits.min(), np.float32(logits.max() - np.float32(16))))
    log_sum = float(np.log(np.exp(logits.astype(np.float64) - peak).sum()))
    scale = np.float32((peak - low) / 65535)
    values = (
        [int(np.rint((x - low) / scale)) if x > low else 0 for x in logits.astype(np.float64)]
        if scale
        else [0] * len(logits)
    )
    return scale, np.float32(low - peak - log_sum), values


@pytest.mark.parametrize("vocabulary", [2, 259, 260])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_a_row_is_packed_as_they_do(vocabulary, spread):
    rng = np.random.default_rng(vocabulary)
    logits = (rng.standard_normal((5, vocabulary)) * spread + 3).astype(np.float32)
    rows = packed(logits, norms(logits))
    assert rows.shape[1] % 2 == 0
    for row, values in zip(rows, logits, strict=True):
        scale, lowest, expected = as_they_do(values)
        assert row[:4].view("<f4") == pytest.approx([scale, lowest], rel=1e-6)
        assert np.abs(row[4 : 4 + vocabulary].astype(int) - expected).max() <= 1
        exact = values - norms(values[None])[0]
        kept = exact > exact.max() - 16
        assert np.abs(unpacked(row, vocabulary) - exact)[kept].max() <= 16 / 65535


def test_every_byte_that_is_missing_is_noticed(tmp_path):
    data = THEIRS.read_bytes()
    for size, says in (
        (0, "not a file of log-probabilities"), (19, "not a file of log-probabilities"), (100, "rows of 0 of 3 windows"),
        (len(data) - 1, "rows of 2 of 3 windows"),
    ):  # fmt: skip
        path = tmp_path / "cut.kld"
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=says):
            BaseLogits(path)
    path.write_bytes(data + b"x")
    with pytest.raises(ValueError, match="belong"):
        BaseLogits(path)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ((16, -1, 3), "damaged"), ((16, 1 << 30, 3), "damaged"), ((-16, 259, 3), "damaged"), ((16, 259, 0), "damaged"),
        ((1 << 30, 259, 1 << 30), "damaged"),
    ],
)  # fmt: skip
def test_a_head_that_makes_no_sense_is_refused(tmp_path, head, says):
    path = tmp_path / "bad.kld"
    path.write_bytes(b"_logits_" + np.array(head, "<i4").tobytes() + bytes(1000))
    with pytest.raises(ValueError, match=says):
        BaseLogits(path)


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    data = bytearray(THEIRS.read_bytes())
    data[20:24] = np.array([259], "<i4").tobytes()
    (tmp_path / "bad.kld").write_bytes(data)
    with pytest.raises(ValueError, match="ids outside its vocabulary"):
        BaseLogits(tmp_path / "bad.kld")


def test_a_disk_without_room_is_noticed_before(tmp_path, monkeypatch):
    monkeypatch.setattr("gangpao.machine.free_disk", lambda path: 1000)
    with pytest.raises(ValueError, match=r"for 3 windows, and the disk has 1 kB free.*--limit"):
        BaseLogitsWriter(tmp_path / "x.kld", Shape(16, 259, 3))
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_whole(tmp_path):
    shape, theirs = Shape(16, 259, 3), BaseLogits(THEIRS)
    path = tmp_path / "x.kld"
    crc = {}
    writer = BaseLogitsWriter(path, shape)
    for window in (0, 1):
        crc[window] = writer.write(window, theirs.ids[window], theirs.rows(window))
    writer.close()
    assert not path.exists()
    writer = BaseLogitsWriter(path, shape)
    assert [writer.holds(window, crc.get(window, 1)) for window in range(3)] == [True, True, False]
    writer.write(2, theirs.ids[2], theirs.rows(2))
    writer.finish()
    assert path.read_bytes() == THEIRS.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["x.kld"]


@pytest.mark.parametrize(
    ("at", "value"), [(0, np.nan), (0, -1.0), (0, 1.0), (1, np.inf), (1, 5.0), (1, -1e30), (0, np.inf), (1, np.nan)]
)
def test_rows_that_are_damaged_are_refused_by_name(tmp_path, at, value):
    theirs = BaseLogits(THEIRS)
    data = bytearray(THEIRS.read_bytes())
    begin = theirs.shape.rows_begin + theirs.shape.window_bytes + 2 * theirs.shape.row_size + 4 * at
    data[begin : begin + 4] = np.array([value], "<f4").tobytes()
    (tmp_path / "bad.kld").write_bytes(data)
    file = BaseLogits(tmp_path / "bad.kld")
    file.rows(0)
    with pytest.raises(ValueError, match=r"bad.kld: damaged: row 1 of window 1 holds no log-probabilities.*--save"):
        file.rows(1)
