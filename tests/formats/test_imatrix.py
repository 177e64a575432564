"""Importance matrices: both forms there and back, what llama.cpp's own files hold, and damaged files refused with the reason."""

import struct

import numpy as np
import pytest

from gangpao.formats.gguf import GGUF
from gangpao.formats.imatrix import Importance, read_imatrix, write_imatrix
from tests.formats.gguf_maker import tensor_bytes, write_gguf

RNG = np.random.default_rng(5)
DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"


def importance() -> Importance:
    sums = {DENSE: RNG.random(8, np.float32) * 4096, EXPERTS: RNG.random((3, 4), np.float32) * 512}
    counts = {DENSE: np.array([1024]), EXPERTS: np.array([512, 0, 90])}
    return Importance(sums, counts, 2, ("zh, en, code", "mine.txt"), 512)


def test_means_are_sums_over_counts_and_ones_where_no_token_came() -> None:
    given = importance()
    assert np.array_equal(given.of(DENSE), given.sums[DENSE] / np.float32(1024))
    means = given.of(EXPERTS)
    assert np.array_equal(means[1], np.ones(4, np.float32))
    assert np.array_equal(means[2], given.sums[EXPERTS][2] / np.float32(90))
    assert given.of("blk.1.attn_q.weight") is None


def test_the_form_in_gguf_gives_back_everything(tmp_path) -> None:
    given = importance()
    write_imatrix(tmp_path / "i.gguf", given)
    found = read_imatrix(tmp_path / "i.gguf")
    assert (found.chunks, found.datasets, found.chunk_size) == (2, given.datasets, 512)
    for name in given.sums:
        assert np.array_equal(found.sums[name], given.sums[name])
        assert np.array_equal(found.counts[name], given.counts[name])
    with GGUF.open(tmp_path / "i.gguf") as file:
        assert file.metadata["general.type"] == "imatrix"
        assert file.tensors[f"{EXPERTS}.in_sum2"].shape == (3, 4)
        assert file.tensors[f"{EXPERTS}.counts"].shape == (3, 1)


def test_the_form_before_gives_back_the_means(tmp_path) -> None:
    given = importance()
    write_imatrix(tmp_path / "i.dat", given, "dat")
    found = read_imatrix(tmp_path / "i.dat")
    assert (found.chunks, found.datasets) == (2, ("zh, en, code, mine.txt",))
    assert found.counts[DENSE].tolist() == [2]  # calls of 512 tokens
    for name in given.sums:
        np.testing.assert_allclose(found.of(name), given.of(name).reshape(-1), rtol=3e-7)
    write_imatrix(tmp_path / "again.gguf", found)
    np.testing.assert_allclose(read_imatrix(tmp_path / "again.gguf").of(DENSE), given.of(DENSE), rtol=3e-7)


def test_tensors_besides_sums_and_counts_are_left_aside(tmp_path) -> None:
    def f32(*shape: int) -> tuple[str, tuple[int, ...], bytes]:
        return "F32", shape, tensor_bytes("F32", np.ones(shape))

    name = "output.weight"
    tensors = {
        f"{name}.in_sum2": f32(1, 4),
        f"{name}.counts": f32(1, 1),
        f"{name}.in_sum": f32(1, 4),
        f"{name}.stats": f32(12),
    }
    found = read_imatrix(write_gguf(tmp_path / "i.gguf", {"imatrix.chunk_count": 1}, tensors))
    assert found.of(name).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("sums", "counts", "kind", "reason"),
    [
        ([[1, -1]], [[1]], "F32", "negative"), ([[1, np.nan]], [[1]], "F32", "no numbers"),
        ([[1, 2]], [[-1]], "F32", "number of tokens"), ([[1, 2]], [[np.inf]], "F32", "number of tokens"),
        ([[1, 2, 3]], [[1], [2]], "F32", "do not fit"), ([[1, 2]], [[1]], "F16", "must be F32"),
        ([[1, 2]], None, "F32", "no counts"),
    ],
)  # fmt: skip
def test_wrong_entries_are_refused(tmp_path, sums, counts, kind, reason) -> None:
    tensors = {"x.in_sum2": (kind, np.shape(sums), tensor_bytes(kind, np.array(sums, np.float32)))}
    if counts is not None:
        tensors["x.counts"] = ("F32", np.shape(counts), tensor_bytes("F32", np.array(counts, np.float32)))
    with pytest.raises(ValueError, match=reason):
        read_imatrix(write_gguf(tmp_path / "i.gguf", {}, tensors))


def test_a_model_is_no_importance_matrix(tmp_path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"x.weight": ("F32", (2,), bytes(8))})
    with pytest.raises(ValueError, match=r"no tensor of it is called NAME\.in_sum2"):
        read_imatrix(path)


def test_every_damage_of_the_old_form_is_one_error(tmp_path) -> None:
    whole = tmp_path / "i.dat"
    write_imatrix(whole, importance(), "dat")
    raw, bad = whole.read_bytes(), tmp_path / "bad.dat"
    rng = np.random.default_rng(0)
    for cut in range(len(raw)):
        bad.write_bytes(raw[:cut])
        _read_or_refuse(bad)
    for _ in range(2000):
        damaged = bytearray(raw)
        at = int(rng.integers(0, len(raw) - 4))
        values = [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, int(rng.integers(2**32))]
        damaged[at : at + 4] = int(rng.choice(values)).to_bytes(4, "little")
        bad.write_bytes(damaged)
        _read_or_refuse(bad)


def _read_or_refuse(path) -> None:
    try:
        found = read_imatrix(path)
    except ValueError as refused:
        message = str(refused)
    else:
        message = str(path)
        assert sum(sums.nbytes for sums in found.sums.values()) <= path.stat().st_size
    assert str(path) in message


def test_counts_that_would_need_more_memory_than_the_file_are_refused(tmp_path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(struct.pack("<iii", 1, 1, 0) + b"x" + struct.pack("<ii", 1, 2**31 - 1))
    with pytest.raises(ValueError, match="damaged"):
        read_imatrix(path)
    with pytest.raises(ValueError, match="nothing to write"):
        write_imatrix(path, Importance({}, {}))
