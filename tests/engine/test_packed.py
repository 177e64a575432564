"""Packed weights on disk are the packed weights: the same bits, of these weights only, whole, and within a budget."""

import logging
import os
import shutil

import numpy as np
import pytest

from gangpao import cli
from gangpao.engine.generate import Engine
from gangpao.engine.packed import store
from gangpao.engine.packed.store import identity
from gangpao.formats.gguf import GGUF
from tests.formats.gguf_maker import random_model

IDS = [1, 5, 9, 200, 7]
PLENTY = 10**9


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_FREE", 0)
    return tmp_path / "home"


@pytest.fixture
def path(tmp_path):
    return random_model(tmp_path / "m.gguf", "qwen2", kind=["Q4_K", "Q6_K", "Q4_0", "F16"], hidden_size=256, head_dim=64,
                        intermediate_size=512, tied=False)  # fmt: skip


def logits_of(path, packed=0):
    engine = Engine.load(path, context=64, num_threads=1, packed=packed)
    return engine.model.forward(IDS, engine.model.new_cache(64), all_logits=True), engine


def kept():
    return sorted(store.folder().glob("*.panels"))


def test_the_second_start_has_the_same_bits(path):
    expected, engine = logits_of(path)
    assert not kept()
    first, _ = logits_of(path, PLENTY)
    (panels,) = kept()
    assert panels.stat().st_size == engine.model.nbytes + store._END
    second, engine = logits_of(path, PLENTY)
    assert np.array_equal(first, expected)
    assert np.array_equal(second, expected)
    assert engine.model.nbytes + store._END == panels.stat().st_size
    assert len(kept()) == 1


@pytest.mark.parametrize("harm", ["cut", "changed", "no record", "empty record"])
def test_what_is_damaged_goes_and_is_made_anew(path, harm, caplog):
    expected, _ = logits_of(path, PLENTY)
    (panels,) = kept()
    record = panels.with_suffix(".json")
    if harm == "cut":
        os.truncate(panels, panels.stat().st_size - 1)
    elif harm == "changed":
        with panels.open("r+b") as file:
            file.write(b"\xff" * 64)
    else:
        record.unlink() if harm == "no record" else record.write_text("{}")
    with caplog.at_level(logging.WARNING):
        found, _ = logits_of(path, PLENTY)
    assert np.array_equal(found, expected)
    assert "damaged" in caplog.text
    again, _ = logits_of(path, PLENTY)
    assert np.array_equal(again, expected)


def test_other_weights_and_other_ways_to_pack_have_other_names(path, tmp_path, monkeypatch):
    with GGUF.open(path) as gguf:
        name = identity(gguf)
        assert name == identity(gguf)
        assert name != identity(gguf, float32=True)
        monkeypatch.setattr(store, "_layout", lambda: b"another version")
        assert name != identity(gguf)
    monkeypatch.undo()
    same = shutil.copy2(path, tmp_path / "same.gguf")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    shutil.copystat(path, other)
    with GGUF.open(same) as first, GGUF.open(other) as second:
        assert identity(first) == name
        assert identity(second) != name


def test_a_budget_is_kept_and_what_is_longest_unused_goes(path, tmp_path, caplog):
    paths = [path, *(random_model(tmp_path / f"{i}.gguf", "llama", seed=i) for i in range(2))]
    sizes = []
    for i, one in enumerate(paths):
        logits_of(one, PLENTY)
        newest = max(kept(), key=lambda panels: panels.stat().st_mtime_ns)
        sizes.append(newest.stat().st_size)
        os.utime(newest.with_suffix(".json"), (i, i))
    assert len(kept()) == 3
    more = random_model(tmp_path / "more.gguf", "llama", seed=9)
    logits_of(more, sum(sizes[1:]) + sizes[1])
    assert len(kept()) == 3
    assert sizes[0] not in [panels.stat().st_size for panels in kept()]
    with caplog.at_level(logging.WARNING):
        logits_of(random_model(tmp_path / "last.gguf", "llama", seed=10), 1000)
    assert "no room" in caplog.text


def test_rm_takes_them_along(path, home, capsys):
    folder = home / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / ".gangpao.json").write_text('{"file": "mine.gguf"}')
    shutil.copy2(path, folder / "mine.gguf")
    logits_of(folder / "mine.gguf", PLENTY)
    logits_of(path, PLENTY)
    assert len(kept()) == 1  # the same weights: one file for both
    assert cli.main(["rm", "mine"]) == 0
    assert "removed mine" in capsys.readouterr().out
    assert not kept()
    assert path.exists()
