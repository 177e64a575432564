"""What a teacher said on the disk: found by row, whole or merged, resumed, and refused when it is of something else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gangpao.compress.distil import store as module
from gangpao.compress.distil.logits import Spec, distilled
from gangpao.compress.distil.store import About, Store, likeliest
from gangpao.compress.distil.teacher import Working, labelled
from gangpao.data.tokens.pack import Batch
from gangpao.model.transformer import Transformer
from gangpao.train.step.loss import hidden_states
from tests.model.tiny import tiny

ABOUT = About("t" * 64, "data", 16, 320, 1.0, "float32")


@pytest.fixture(scope="module")
def teacher():
    model = Transformer.build(tiny("llama"), seed=2).requires_grad_(False)
    return Working(model, torch.float32, torch.device("cpu"))


def batch(seed, rows=4):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 320, (rows, 10))
    labels = np.where(rng.random((rows, 10)) < 0.8, np.roll(ids, -1, 1), -100)
    return Batch(ids, labels, np.zeros((rows, 10), np.int64))


def test_all_other_tokens_have_exactly_what_is_left():
    logp = torch.log_softmax(torch.randn(7, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), -1)
    ids, kept = likeliest(logp, 5)
    torch.testing.assert_close(kept.exp().sum(-1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(kept[:, :5], logp.gather(1, ids))
    assert likeliest(logp, 50)[1].shape == (7, 50)


@pytest.mark.parametrize(("k", "words"), [(320, 320), (16, 320), (16, 100_000)])
def test_rows_are_found_in_another_order_and_give_the_same_loss(teacher, tmp_path, monkeypatch, k, words):
    monkeypatch.setattr(module, "PART_ROWS", 3)
    store = Store(tmp_path / "s", replace(ABOUT, k=k, words=words))
    store.fill([batch(0), batch(1)], teacher)
    store = Store(tmp_path / "s", replace(ABOUT, k=k, words=words))  # read again
    assert len(store) == 8
    other = batch(0)
    mixed = Batch(other.ids[::-1], other.labels[::-1], other.documents[::-1])
    answers = store.lesson(mixed, 1.0).answers
    hidden, _ = hidden_states(teacher.model, mixed, dtype=None, recompute=False)
    rows = labelled(hidden, mixed)
    labels = torch.from_numpy(np.ascontiguousarray(mixed.labels[mixed.labels != -100]))
    weight = teacher.model.lm_head.weight
    if words == 320:
        found = distilled(rows, weight, labels, answers, Spec())
        assert float(found.divergence) == pytest.approx(0, abs=1e-4)
        assert int(found.agree) == len(labels)
    said = answers.rows(0, len(labels), rows)
    logp = torch.log_softmax(rows @ weight.T, -1)
    torch.testing.assert_close(said.logp[:, :16], logp.gather(1, said.ids[:, :16]), rtol=1e-4, atol=1e-4)


def test_filling_goes_on_and_says_nothing_twice(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 2)
    asked = []

    class Counting:
        def lesson(self, rows, temperature):
            asked.append(len(rows.ids))
            if len(asked) == 2:
                raise KeyboardInterrupt
            return teacher.lesson(rows, temperature)

    store = Store(tmp_path, ABOUT)
    with pytest.raises(KeyboardInterrupt):
        store.fill([batch(0), batch(1)], Counting())
    store = Store(tmp_path, ABOUT)
    assert len(store) == 4
    assert store.fill([batch(0), batch(1), batch(1)], Counting()) == 8
    assert asked == [4, 4, 4]


def test_of_something_else_or_damaged_is_refused(teacher, tmp_path):
    store = Store(tmp_path, ABOUT)
    store.fill([batch(0)], teacher)
    with pytest.raises(ValueError, match=r"something else \(teacher tttttttttttttttt, now u"):
        Store(tmp_path, replace(ABOUT, teacher="u" * 64))
    with pytest.raises(ValueError, match="row 0 of a batch is not among the 4"):
        store.lesson(batch(1), 1.0)
    with pytest.raises(ValueError, match="at temperature 1, not 2"):
        store.lesson(batch(0), 2.0)
    part = tmp_path / "part-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="not those that were written"):
        Store(tmp_path, ABOUT)
