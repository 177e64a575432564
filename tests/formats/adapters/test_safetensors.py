"""The reader of safetensors: what the package writes, and what a liar writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gangpao.formats.adapters import safetensors as ours

theirs = pytest.importorskip("safetensors.torch")


def test_we_read_what_the_package_writes_and_the_other_way_round(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        f"t.{i}": torch.randn(3, i + 1).to(kind)
        for i, kind in enumerate((torch.float32, torch.float16, torch.bfloat16, torch.float64))
    }
    theirs.save_file(tensors, tmp_path / "theirs.safetensors")
    read = ours.read(tmp_path / "theirs.safetensors")
    assert {name: values.tolist() for name, values in read.items()} == {
        n: t.float().tolist() for n, t in tensors.items()
    }
    ours.write(tmp_path / "ours.safetensors", read)
    back = theirs.load_file(tmp_path / "ours.safetensors")
    assert {name: t.tolist() for name, t in back.items()} == {name: values.tolist() for name, values in read.items()}


def file_of(path: Path, header: Any, data: bytes = bytes(16), length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(kind: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


LIES: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "not JSON"),
    "a list": ([], "no object"),
    "deep": (b"[" * 100_000, "not JSON"),
    "an entry of text": ({"x": "y"}, "described by a str"),
    "integers": ({"x": entry("I64")}, "holds 'I64'"),
    "no type": ({"x": {}}, "holds None"),
    "a list as type": ({"x": entry(["F32"])}, "holds .'F32'"),
    "negative": ({"x": entry(shape=[-4])}, "has the shape"),
    "a fraction": ({"x": entry(shape=[4.0])}, "has the shape"),
    "truth as a number": ({"x": entry(shape=[True])}, "has the shape"),
    "huge": ({"x": entry(shape=[1 << 39, 1 << 39])}, "lies at"),
    "past the end": ({"x": entry(offsets=[4, 20])}, "lies at"),
    "backwards": ({"x": entry(shape=[0], offsets=[16, 0])}, "lies at"),
    "three offsets": ({"x": entry(offsets=[0, 8, 16])}, "has the shape"),
    "overlap": ({"x": entry(), "y": entry(shape=[1], offsets=[12, 16])}, "x and y overlap"),
    "a name for terminals": ({"x\x1b[2J": entry()}, "no name of a tensor"),
    "a long name": ({"x" * 1000: entry()}, "no name of a tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("header", "words"), LIES.values(), ids=LIES)
def test_a_lie_in_the_header_is_told(tmp_path: Path, header: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ours.read(file_of(tmp_path / "x.safetensors", header))


def test_lengths_past_the_file_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its header would have"):
        ours.read(file_of(tmp_path / "x", {}, length=1 << 60))
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(ValueError, match="its header would have"):
        ours.read(tmp_path / "short")
    values = np.array([1, np.inf, 0, 0], np.float32).tobytes()
    with pytest.raises(ValueError, match="x holds a value that is no finite number"):
        ours.read(file_of(tmp_path / "y", {"x": entry()}, values))


def test_cut_at_any_byte_it_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    whole = (Path(__file__).parent.parent.parent / "fixtures/adapters/peft/adapter_model.safetensors").read_bytes()
    for size in range(0, len(whole), 37):
        (tmp_path / "x").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged or not safetensors"):
            ours.read(tmp_path / "x")
