"""Lanes: the gradient of the whole batch, the same bits however many cores there are, and one thread inside each operation."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from gangpao.model.transformer import Transformer
from gangpao.train.step.lanes import MOST_BYTES, Lanes, lanes_for, split_rows, summed
from gangpao.train.step.loss import NextToken
from tests.train.tiny import Memory, fit, job, same_end, shape


def gradients(lanes, batch, *, passes=1):
    model = Transformer.build(shape(), seed=3)
    parameters = [p for p in model.parameters() if p.requires_grad]
    values = [lanes.backward(NextToken(), model, batch, 0.5, parameters) for _ in range(passes)]
    lanes.close()
    return [p.grad for p in parameters], summed(values)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_lanes_compute_the_gradient_of_the_whole_batch(count):
    batch = Memory().take(7)
    whole, value = gradients(Lanes(1), batch, passes=2)
    parted, sum_of_parts = gradients(Lanes(count), batch, passes=2)
    for one, two in zip(whole, parted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value["loss"], sum_of_parts["loss"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_lanes_are_micro_batches_to_the_bit(count):
    """Adding in the order of the rows is what accumulation over smaller micro-batches does."""
    batch = Memory().take(6)
    parted, _ = gradients(Lanes(count), batch)
    model = Transformer.build(shape(), seed=3)
    for part in split_rows(batch, count):
        NextToken()(model, part, 0.5).loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), parted, strict=True))


@pytest.mark.parametrize(("rows", "count"), [(1, 4), (4, 4), (7, 3), (8, 2)])
def test_rows_are_split_without_loss(rows, count):
    batch = Memory().take(rows)
    parts = split_rows(batch, count)
    assert len(parts) == min(rows, count)
    sizes = [len(part.ids) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for field in dataclasses.fields(batch):
        assert (np.concatenate([getattr(p, field.name) for p in parts]) == getattr(batch, field.name)).all()


def test_lanes_are_threads_with_one_thread_inside_and_leave_the_caller_its_own():
    before = torch.get_num_threads()
    lanes = Lanes(3, inside=1)
    meet = threading.Barrier(3)

    def work(_):
        meet.wait(10)  # all three at once
        return threading.get_ident(), torch.get_num_threads()

    found = lanes.map(work, range(3))
    assert len({ident for ident, _ in found}) == 3
    assert {inside for _, inside in found} == {1}
    assert torch.get_num_threads() == before
    new = []
    child = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    child.start()
    child.join()
    assert new == [before]
    lanes.close()


def test_what_goes_wrong_in_a_lane_is_raised():
    lanes = Lanes(2)
    with pytest.raises(ZeroDivisionError):
        lanes.map(lambda n: 1 // n, [1, 0])
    assert lanes.map(lambda n: n * n, [2, 3]) == [4, 9]
    lanes.close()
    with pytest.raises(ValueError, match="at least 1"):
        Lanes(0)


@pytest.mark.parametrize(
    ("threads", "rows", "size", "separable", "count", "inside"),
    [
        (2, 8, 1000, True, 2, 1),
        (8, 4, 1000, True, 4, 2),
        (4, 1, 1000, True, 1, 4),
        (2, 8, MOST_BYTES + 1, True, 1, 2),
        (2, 8, 1000, False, 1, 2),
        (1, 8, 1000, True, 1, 1),
    ],
)
def test_threads_go_where_they_are_of_use(threads, rows, size, separable, count, inside):
    before = torch.get_num_threads()
    try:
        lanes = lanes_for(threads, rows, size, separable=separable)
        assert lanes.count == count
        assert lanes.map(lambda _: torch.get_num_threads(), [0]) == [inside]
        lanes.close()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_with_lanes_is_the_same_every_time_and_that_of_smaller_micro_batches(tmp_path, optimizer):
    """The same bits whichever lane is done first."""
    for name in ("one", "two"):
        lanes = Lanes(2)
        fit(job(tmp_path / name, optimizer=optimizer, lanes=lanes))
        lanes.close()
    assert same_end(tmp_path / "one", tmp_path / "two")
    fit(job(tmp_path / "small", optimizer=optimizer, micro_rows=2))
    assert same_end(tmp_path / "one", tmp_path / "small")
