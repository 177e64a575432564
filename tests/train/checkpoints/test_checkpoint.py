"""Checkpoints: read back to the bit by the library too, every flipped bit found, a write that fails changes nothing."""

import json
import random
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gangpao.atomic import locked
from gangpao.train.checkpoints import checkpoint
from gangpao.train.pretrain import BUSY

TENSORS = {
    "model": {
        "a": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,  # not contiguous
        "b": torch.tensor(3.5),
        "c": torch.zeros(0, 5),
        "d": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    },
    "rng": {"cpu": torch.arange(9, dtype=torch.uint8), "step": torch.tensor([7], dtype=torch.int64)},
}


def test_what_is_saved_comes_back(tmp_path):
    path = checkpoint.save(tmp_path, 7, TENSORS, {"step": 7, "π": 0.1 + 0.2})
    found = checkpoint.Checkpoint(path)
    assert (path.name, found.step, found.record) == ("step-00000007", 7, {"step": 7, "π": 0.1 + 0.2})
    for kind, tensors in TENSORS.items():
        library = load_file(path / f"{kind}.safetensors")
        assert found.has(kind)
        for name, t in tensors.items():
            for other in (found.tensors(kind)[name], library[name]):
                assert other.dtype == t.dtype
                assert torch.equal(other, t)
    assert not found.has("average")


def flip(path, rng):
    """One bit of one file of a checkpoint; how to take it back."""
    file = rng.choice(sorted(p for p in path.iterdir()))
    data = bytearray(file.read_bytes())
    where = rng.randrange(len(data))
    data[where] ^= 1 << rng.randrange(8)
    before = file.read_bytes()
    file.write_bytes(data)
    return file, before


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found(tmp_path, count):
    path = checkpoint.save(tmp_path, 3, TENSORS, {"step": 3, "recent": [0.25, 1.5], "source": None})
    rng = random.Random(count)
    for _ in range(count):
        file, before = flip(path, rng)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.Checkpoint(path)
        file.write_bytes(before)
    checkpoint.Checkpoint(path)


def test_missing_added_cut_and_renamed_files_are_found(tmp_path):
    whole = checkpoint.save(tmp_path, 3, TENSORS, {"step": 3})
    damages = [
        lambda p: (p / "rng.safetensors").unlink(),
        lambda p: (p / "more").write_text(""),
        lambda p: (p / "model.safetensors").write_bytes(b""),
        lambda p: (p / "rng.safetensors").rename(p / "average.safetensors"),
        lambda p: (p / checkpoint.MANIFEST).unlink(),
        lambda p: (p / checkpoint.MANIFEST).write_text("[" * 100_000),
        lambda p: (p / checkpoint.MANIFEST).write_text(json.dumps({"files": {}})),
    ]
    for i, damage in enumerate(damages):
        copy = tmp_path / str(i) / whole.name
        shutil.copytree(whole, copy)
        damage(copy)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.Checkpoint(copy)
    with pytest.raises(checkpoint.Damaged, match="step"):  # the name is part of what is checked
        checkpoint.Checkpoint(whole.rename(tmp_path / checkpoint.name_of(4)))


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    notes = []
    assert checkpoint.latest(tmp_path / "none", notes.append) is None
    paths = [checkpoint.save(tmp_path, step, TENSORS, {"step": step}) for step in (1, 2, 10)]
    assert checkpoint.latest(tmp_path, notes.append).step == 10
    flip(paths[2], random.Random(0))
    assert checkpoint.latest(tmp_path, notes.append).step == 2
    assert len(notes) == 1
    assert "step-00000010" in notes[0]
    for path in paths[:2]:
        flip(path, random.Random(1))
    with pytest.raises(checkpoint.Damaged, match="all 3 checkpoints are damaged"):
        checkpoint.latest(tmp_path, notes.append)


def test_saving_again_keeps_a_whole_one_and_replaces_a_damaged_one(tmp_path):
    path = checkpoint.save(tmp_path, 1, TENSORS, {"step": 1, "first": True})
    checkpoint.save(tmp_path, 1, TENSORS, {"step": 1, "first": False})
    assert checkpoint.Checkpoint(path).record["first"]
    flip(path, random.Random(2))
    checkpoint.save(tmp_path, 1, TENSORS, {"step": 1, "first": False})
    assert not checkpoint.Checkpoint(path).record["first"]


def test_a_write_that_fails_leaves_the_old_ones_and_no_rubbish(tmp_path):
    old = checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"model": {"a": torch.zeros(100_000)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the kernel refuses to write on, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path, 2, big, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert checkpoint.latest(tmp_path, print).step == 1
    assert checkpoint.save(tmp_path, 2, big, {"step": 2}).is_dir()


def test_prune_keeps_the_last_and_the_protected(tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, {"rng": TENSORS["rng"]}, {"step": step})
    checkpoint.prune(tmp_path, keep_last=2, protected={2})
    assert [checkpoint.step_of(p) for p in checkpoint.checkpoints(tmp_path)] == [2, 5, 6]
    (tmp_path / ".tmp-step-00000009").mkdir()
    (tmp_path / ".gone-step-00000001").mkdir()
    checkpoint.clean(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_one_process_a_run(tmp_path):
    busy = pytest.raises(ValueError, match="another process is training here")
    with locked(tmp_path, BUSY), busy, locked(tmp_path, BUSY):
        pass
    with locked(tmp_path, BUSY):
        pass
