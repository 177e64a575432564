"""Writing: from floats, folders, parts and quantized files; the header; what falls back; memory; whole or not at all."""

import subprocess
import sys

import numpy as np
import pytest

from gangpao.compress.quantize import write as writing
from gangpao.compress.quantize.source import again, open_source
from gangpao.compress.quantize.write import imatrix_fields, plain, write
from gangpao.formats import gguf_split
from gangpao.formats.blocks import quantize
from gangpao.formats.gguf import GGUF
from gangpao.formats.gguf_fields import raw_fields
from gangpao.formats.imatrix import Importance
from tests import child
from tests.compress.quantize.model_shapes import Spec, write_hole
from tests.formats.gguf_maker import random_model, write_gguf

TYPES = {"blk.0.attn_q.weight": "Q8_0", "blk.0.ffn_down.weight": "Q4_0", "token_embd.weight": "F16"}


@pytest.fixture
def source(tmp_path):
    return random_model(tmp_path / "float.gguf", "llama")


def test_a_float_file_gets_the_types_that_were_named(source, tmp_path) -> None:
    done = write(source, tmp_path / "out.gguf", TYPES, fields={"general.file_type": 7})
    with GGUF.open(source) as before, GGUF.open(tmp_path / "out.gguf") as after:
        assert list(after.tensors) == list(before.tensors)
        for name, info in before.tensors.items():
            kind = TYPES.get(name, info.type)
            assert after.tensors[name].type == kind
            values = before.array(name).reshape(-1, info.shape[-1])
            assert np.array_equal(after.raw(name), quantize(values, kind)), name
        assert after.metadata["general.quantization_version"] == 2
        assert after.metadata["general.file_type"] == 7
        changed = {"general.quantization_version", "general.file_type", "general.alignment"}
        old, new = raw_fields(before), raw_fields(after)
        assert {key: raw for key, raw in old.items() if key not in changed} == {
            key: raw for key, raw in new.items() if key not in changed
        }
    assert done.nbytes == (tmp_path / "out.gguf").stat().st_size
    assert sum(row.nbytes for row in done.tensors) < done.source_bytes


def test_keys_of_the_header_are_kept_to_the_letter(tmp_path) -> None:
    from tests.formats.gguf_maker import ARRAY, BOOL, F64, I8, STRING, U16, U64, Typed, tensor_bytes

    keys = {
        "a": Typed(U64, 5), "b": Typed(I8, -1), "c": Typed(F64, 0.1), "d": Typed(ARRAY, ["天", ""], STRING), "e": "text",
        "f": Typed(ARRAY, [True, False], BOOL), "g": Typed(U16, 7), "split.count": Typed(U16, 1), "general.file_type": 0,
    }  # fmt: skip
    tensors = {"x.weight": ("F32", (2, 32), tensor_bytes("F32", np.ones((2, 32))))}
    source = write_gguf(tmp_path / "in.gguf", keys, tensors)
    write(source, tmp_path / "out.gguf", {"x.weight": "Q8_0"})
    with GGUF.open(source) as before, GGUF.open(tmp_path / "out.gguf") as after:
        old, new = raw_fields(before), raw_fields(after)
        assert b"".join(old[key] for key in "abcdefg") == b"".join(new[key] for key in "abcdefg")
        assert list(new) == [*"abcdefg", "general.quantization_version"]
        assert list(old) == list(keys)


def test_a_tensor_that_has_the_type_is_copied_and_nothing_is_lost(source, tmp_path) -> None:
    write(source, tmp_path / "once.gguf", {"blk.0.attn_q.weight": "Q4_0"})
    write(
        tmp_path / "once.gguf", tmp_path / "twice.gguf", {"blk.0.attn_q.weight": "Q4_0", "blk.0.ffn_up.weight": "Q8_0"}
    )
    with GGUF.open(tmp_path / "once.gguf") as once, GGUF.open(tmp_path / "twice.gguf") as twice:
        assert np.array_equal(once.raw("blk.0.attn_q.weight"), twice.raw("blk.0.attn_q.weight"))
        with open_source(tmp_path / "once.gguf") as opened:
            assert "quantized again" in again(opened)
            assert "1 tensors of Q4_0" in again(opened)
        with open_source(source) as opened:
            assert again(opened) == ""


def test_parts_of_a_split_model_are_one_model(source, tmp_path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    with GGUF.open(source) as model, source.open("rb") as file:
        pieces = gguf_split.split(model, 40_000)
        for piece in pieces:
            data = [piece.header]
            for offset, size, padding in piece.spans:
                file.seek(offset)
                data += [file.read(size), bytes(padding)]
            (folder / piece.name).write_bytes(b"".join(data))
    assert len(pieces) > 1
    write(source, tmp_path / "whole.gguf", TYPES)
    write(folder / pieces[1].name, tmp_path / "joined.gguf", TYPES)
    assert (tmp_path / "joined.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_rows_that_do_not_fit_fall_back_and_that_is_said(tmp_path) -> None:
    tensors = {"x.weight": ("F32", (2, 64), np.ones((2, 64), "<f4").tobytes()), "y.weight": ("F32", (2, 5), bytes(40))}
    source = write_gguf(tmp_path / "in.gguf", {}, tensors)
    done = write(source, tmp_path / "out.gguf", {"x.weight": "TQ2_0", "y.weight": "Q8_0"})
    assert [(row.name, row.wanted, row.type) for row in done.tensors] == [
        ("x.weight", "TQ2_0", "Q4_0"), ("y.weight", "Q8_0", "F16"),
    ]  # fmt: skip


def test_the_encoder_sees_every_row_once_in_the_order_of_the_file(tmp_path, monkeypatch) -> None:
    values = np.arange(6 * 8 * 32, dtype="<f4").reshape(6, 8, 32)
    source = write_gguf(tmp_path / "in.gguf", {}, {"blk.0.ffn_up_exps.weight": ("F32", values.shape, values.tobytes())})
    monkeypatch.setattr("gangpao.compress.quantize.tensors.PIECE", 3 * 32)  # pieces of three rows
    seen = []

    def encode(name, first, rows, kind):
        seen.append((name, first, len(rows)))
        assert np.array_equal(rows, values.reshape(48, 32)[first : first + len(rows)])
        return quantize(rows, kind)

    write(source, tmp_path / "out.gguf", {"blk.0.ffn_up_exps.weight": "Q8_0"}, encode=encode)
    spans = [(first, size) for _, first, size in seen]
    assert spans == [(8 * e + begin, size) for e in range(6) for begin, size in ((0, 3), (3, 3), (6, 2))]
    with GGUF.open(tmp_path / "out.gguf") as out:
        assert np.array_equal(out.raw("blk.0.ffn_up_exps.weight"), quantize(values.reshape(48, 32), "Q8_0"))


def test_importance_goes_to_its_tensor_and_its_expert(tmp_path, monkeypatch) -> None:
    tensors = {
        "blk.0.ffn_up_exps.weight": ("F32", (2, 2, 32), np.ones((2, 2, 32), "<f4").tobytes()),
        "blk.0.attn_q.weight": ("F32", (2, 32), np.ones((2, 32), "<f4").tobytes()),
        "output.weight": ("F32", (2, 32), np.ones((2, 32), "<f4").tobytes()),
    }
    source = write_gguf(tmp_path / "in.gguf", {}, tensors)
    sums = {
        "blk.0.ffn_up_exps.weight": np.stack([np.full(32, 8, np.float32), np.full(32, 9, np.float32)]),
        "blk.0.attn_q.weight": np.full(32, 6, np.float32),
    }
    counts = {"blk.0.ffn_up_exps.weight": np.array([2, 3]), "blk.0.attn_q.weight": np.array([2])}
    got = []

    def quantized(values, kind, importance):
        got.append(None if importance is None else float(importance[0]))
        return quantize(values, kind)

    monkeypatch.setattr(writing, "_quantized", quantized)
    types = dict.fromkeys(tensors, "Q8_0")
    with open_source(source) as opened:
        encode = plain(Importance(sums, counts), opened)
        writing.write_source(opened, tmp_path / "out.gguf", types, encode=encode)
        assert got == [4.0, 3.0, 3.0, None]
        other = Importance({"output.weight": np.ones(64, np.float32)}, {"output.weight": np.array([1])})
        with pytest.raises(ValueError, match="32 columns and the importance matrix 64"):
            writing.write_source(opened, tmp_path / "no.gguf", types, encode=plain(other, opened))
    assert not (tmp_path / "no.gguf").exists()


def test_a_failed_write_leaves_nothing_and_names_the_tensor(tmp_path) -> None:
    values = np.ones((3, 32), "<f4")
    values[2, 5] = np.nan
    source = write_gguf(tmp_path / "in.gguf", {}, {"x.weight": ("F32", (3, 32), values.tobytes())})
    target = tmp_path / "out.gguf"
    target.write_bytes(b"before")
    with pytest.raises(ValueError, match=r"tensor x\.weight, to be written as Q8_0: row 2"):
        write(source, target, {"x.weight": "Q8_0"})
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


@pytest.mark.parametrize(
    ("types", "reason"),
    [({"y.weight": "Q8_0"}, "there is no tensor y.weight"), ({"x.weight": "Q9_9"}, "not a type we write")],
)
def test_wrong_types_are_refused(tmp_path, types, reason) -> None:
    source = write_gguf(tmp_path / "in.gguf", {}, {"x.weight": ("F32", (1, 32), bytes(128))})
    with pytest.raises(ValueError, match=reason):
        write(source, tmp_path / "out.gguf", types)


def test_what_a_header_says_of_the_importance_matrix() -> None:
    found = imatrix_fields(
        Importance({"x": np.ones(1, np.float32)}, {"x": np.array([1])}, 4, ("a.txt", "b.txt")), "i.gguf"
    )
    assert found == {
        "quantize.imatrix.file": "i.gguf", "quantize.imatrix.dataset": "a.txt", "quantize.imatrix.entries_count": 1,
        "quantize.imatrix.chunks_count": 4,
    }  # fmt: skip
    assert found["quantize.imatrix.chunks_count"].dtype == np.uint32


@pytest.mark.parametrize("kind", ["llama", "qwen2", "minicpm", "moe", "mla", "window", "delta"])
def test_a_folder_becomes_what_an_export_has(kind, tmp_path, monkeypatch) -> None:
    from gangpao.deploy import gguf as exporter
    from gangpao.model import weights
    from tests.deploy.test_gguf import hf_tokenizer
    from tests.model.test_transformer import build

    monkeypatch.setattr("gangpao.compress.quantize.tensors.PIECE", 7 * 64)  # pieces of seven rows
    model = build(kind).bfloat16()
    folder = weights.save(tmp_path / "run" / "export", model.config, weights.state(model))
    hf_tokenizer(folder)
    exporter.export(folder, tmp_path / "export.gguf", "Q8_0", check=False)
    with GGUF.open(tmp_path / "export.gguf") as expected:
        types = {name: t.type for name, t in expected.tensors.items() if t.type != "F32"}
        write(folder, tmp_path / "out.gguf", types, fields={"general.file_type": 7})
        write(folder, tmp_path / "kept.gguf", {})
        with GGUF.open(tmp_path / "out.gguf") as found, GGUF.open(tmp_path / "kept.gguf") as kept:
            assert {name: t[1:3] for name, t in found.tensors.items()} == {
                name: t[1:3] for name, t in expected.tensors.items()
            }
            for name in expected.tensors:
                assert np.array_equal(found.raw(name), expected.raw(name)), name
            floats = {name: "F32" if t.type == "F32" else "BF16" for name, t in expected.tensors.items()}
            assert {name: t.type for name, t in kept.tensors.items()} == floats
            old, new = raw_fields(expected), raw_fields(found)
            assert found.metadata["general.name"] == "run"
            for key in ("general.alignment", "general.name"):
                old.pop(key, None), new.pop(key, None)
            assert new.pop("general.quantization_version")
            assert new == old


_MEASURED = """
import resource, sys
from pathlib import Path
from gangpao.compress.quantize.write import write
from gangpao.formats.gguf import GGUF
source, target = map(Path, sys.argv[1:])
with GGUF.open(source) as gguf:
    types = {name: "Q8_0" for name, t in gguf.tensors.items() if len(t.shape) > 1}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write(source, target, types)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_is_less_than_two_layers_however_many_there_are(tmp_path) -> None:
    spec = Spec("llama", 16, 512, 2048, 8, 8, True)
    source = write_hole(spec, tmp_path / "in.gguf")
    layer = 4 * (4 * 512**2 + 3 * 512 * 2048)
    assert source.stat().st_size > 15 * layer
    program = [sys.executable, "-c", _MEASURED, str(source), str(tmp_path / "out.gguf")]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=child.environment())
    assert int(done.stdout) < 2 * layer
