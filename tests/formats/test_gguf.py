"""The GGUF reader: every value type, equality with the gguf package, and damaged or hostile files refused with the reason."""

import struct

import numpy as np
import pytest

from gangpao.formats.gguf import GGUF, MAX_TENSOR_NAME, ModelFileError
from tests.formats.gguf_maker import (  # fmt: skip
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Typed,
    gguf_bytes,
    payload,
    random_model,
    tensor_bytes,
    text,
    write_gguf,
)

VECTOR = ("F32", (4,), tensor_bytes("F32", np.arange(4.0)))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (U8, 255, 255), (I8, -128, -128), (U16, 65535, 65535), (I16, -32768, -32768), (U32, 2**32 - 1, 2**32 - 1),
        (I32, -(2**31), -(2**31)), (U64, 2**64 - 1, 2**64 - 1), (I64, -(2**63), -(2**63)), (F32, 0.5, 0.5),
        (F64, 1e300, 1e300), (BOOL, True, True), (BOOL, False, False), (STRING, "天空 ☁", "天空 ☁"), (STRING, "", ""),
    ],
)  # fmt: skip
def test_scalars(tmp_path, kind, value, expected):
    with GGUF.open(write_gguf(tmp_path / "m.gguf", {"k": Typed(kind, value)}, {})) as gguf:
        assert gguf.metadata["k"] == expected
        assert type(gguf.metadata["k"]) is type(expected)


@pytest.mark.parametrize(
    ("element", "values", "dtype"),
    [
        (U8, [0, 255], "uint8"), (I8, [-128, 127], "int8"), (U16, [65535], "uint16"), (I16, [-1], "int16"),
        (U32, [2**32 - 1, 0], "uint32"), (I32, [-5, 5], "int32"), (U64, [2**64 - 1], "uint64"), (I64, [-(2**63)], "int64"),
        (F32, [0.25, -1.5], "float32"), (F64, [1e300], "float64"), (BOOL, [True, False], "bool"), (U32, [], "uint32"),
    ],
)  # fmt: skip
def test_arrays_of_numbers(tmp_path, element, values, dtype):
    with GGUF.open(write_gguf(tmp_path / "m.gguf", {"k": Typed(ARRAY, values, element)}, {})) as gguf:
        found = gguf.metadata["k"]
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == values


def test_arrays_of_strings_and_of_arrays(tmp_path):
    nested = struct.pack("<IIQ", ARRAY, ARRAY, 2) + payload(ARRAY, [1, 2], U8) + payload(ARRAY, ["a", "b", "c"], STRING)
    raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + text("words") + struct.pack("<I", ARRAY)
    raw += payload(ARRAY, ["", "字", "x" * 300], STRING) + text("nested") + nested
    (tmp_path / "m.gguf").write_bytes(raw)
    with GGUF.open(tmp_path / "m.gguf") as gguf:
        assert gguf.metadata["words"] == ["", "字", "x" * 300]
        first, second = gguf.metadata["nested"]
    assert first.tolist() == [1, 2]
    assert second == ["a", "b", "c"]


def test_bytes_that_are_no_text_are_replaced_in_arrays(tmp_path):
    """Byte tokens of some vocabularies are single bytes above 127."""
    raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("t") + struct.pack("<IIQ", ARRAY, STRING, 2)
    (tmp_path / "m.gguf").write_bytes(raw + text(b"\xe4\xbd") + text(b"ok"))
    with GGUF.open(tmp_path / "m.gguf") as gguf:
        assert gguf.metadata["t"] == ["\ufffd", "ok"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_at_every_alignment(tmp_path, version, alignment):
    rng = np.random.default_rng(0)
    parts = {
        "a": ("F32", (3, 5), tensor_bytes("F32", rng.normal(size=(3, 5)))),
        "b": ("F16", (2, 2, 2, 7), tensor_bytes("F16", rng.normal(size=(2, 2, 2, 7)))),
        "c": ("BF16", (1,), tensor_bytes("BF16", np.array([1.5]))),
    }
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes({"general.alignment": alignment}, parts, version=version))
    with GGUF.open(path) as gguf:
        assert gguf.version == version
        assert gguf.nbytes == path.stat().st_size
        for name, (kind, shape, raw) in parts.items():
            assert (gguf.info(name).type, gguf.info(name).shape) == (kind, shape)
            assert gguf.raw(name).tobytes() == raw
            assert gguf.array(name).shape == shape
        assert gguf.array("c") == [1.5]
        assert np.array_equal(gguf.array("a"), np.frombuffer(parts["a"][2], "<f4").reshape(3, 5))


def test_tensors_may_stand_in_any_order(tmp_path):
    raw = bytearray(gguf_bytes({}, {"first": VECTOR, "second": VECTOR}))
    at, other = raw.index(b"first") + 5 + 4 + 8 + 4, raw.index(b"second") + 6 + 4 + 8 + 4
    raw[at : at + 8], raw[other : other + 8] = raw[other : other + 8], raw[at : at + 8]
    (tmp_path / "m.gguf").write_bytes(raw)
    with GGUF.open(tmp_path / "m.gguf") as gguf:
        assert gguf.info("first").offset == gguf.info("second").offset + 32


def test_views_are_read_only_and_keep_the_map(tmp_path):
    with GGUF.open(write_gguf(tmp_path / "m.gguf", {}, {"v": VECTOR})) as gguf:
        view = gguf.raw("v")
        gguf.release("v")
    assert view.view("<f4").tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    gguf.close()


def same_as_package(path):
    package = pytest.importorskip("gguf")
    reader = package.GGUFReader(path)
    with GGUF.open(path) as ours:
        keys = [k for k in reader.fields if not k.startswith("GGUF.")]
        assert list(ours.metadata) == keys
        for key in keys:
            expected, found = reader.fields[key].contents(), ours.metadata[key]
            assert (found.tolist() if isinstance(found, np.ndarray) else found) == expected, key
        assert len(ours.tensors) == len(reader.tensors)
        for t in reader.tensors:
            info = ours.info(t.name)
            assert info.type == t.tensor_type.name
            assert list(info.shape) == [int(n) for n in t.shape][::-1]
            assert (info.offset, info.nbytes) == (t.data_offset, t.n_bytes)
            assert np.array_equal(ours.raw(t.name).reshape(-1), np.asarray(t.data).reshape(-1).view(np.uint8))
    del reader


@pytest.mark.parametrize("arch", ["minicpm", "qwen2"])
def test_equal_to_the_gguf_package_on_a_random_model(tmp_path, arch):
    kinds = ["Q4_K", "Q8_0", "F16", "Q6_K"]
    same_as_package(
        random_model(tmp_path / "m.gguf", arch, kind=kinds, hidden_size=256, intermediate_size=256, head_dim=64)
    )


def test_equal_to_the_gguf_package_on_smollm2(model_path):
    same_as_package(model_path("smollm2-135m"))


@pytest.mark.slow
def test_equal_to_the_gguf_package_on_qwen(model_path):
    same_as_package(model_path("qwen2.5-coder-0.5b"))


# --- typed access


def test_typed_access(tmp_path):
    metadata = {"i": 7, "f": 0.5, "s": "text", "b": True, "list": [1, 2]}
    with GGUF.open(write_gguf(tmp_path / "m.gguf", metadata, {})) as gguf:
        assert (gguf.get_int("i"), gguf.get_float("f"), gguf.get_str("s"), gguf.get_bool("b")) == (7, 0.5, "text", True)
        assert gguf.get_float("i") == 7.0
        assert (gguf.get_int("none", 3), gguf.get_str("none", "x"), gguf.get_bool("none", False)) == (3, "x", False)
        for get, key in (
            (gguf.get_int, "f"), (gguf.get_int, "b"), (gguf.get_int, "list"), (gguf.get_str, "i"), (gguf.get_bool, "i"),
            (gguf.get_float, "s"), (gguf.get_float, "b"),
        ):  # fmt: skip
            with pytest.raises(ModelFileError, match=f": {key} is a .*expected"):
                get(key)
        with pytest.raises(ModelFileError, match="key none is missing"):
            gguf.get_int("none")
        with pytest.raises(ModelFileError, match="tensor none is missing"):
            gguf.raw("none")
        with pytest.raises(TypeError):
            gguf.metadata["i"] = 8


# --- damage


def header(tensors=0, keys=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, keys)


def key(name, kind, raw):
    return text(name) + struct.pack("<I", kind) + raw


def tensor(name, shape=(4,), kind=0, offset=0, dims=None):
    n = len(shape) if dims is None else dims
    return text(name) + struct.pack("<I", n) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


def file_of(*tensors, data=64, keys=(), count=None):
    raw = header(len(tensors) if count is None else count, len(keys)) + b"".join(keys) + b"".join(tensors)
    return raw + bytes(-len(raw) % 32) + bytes(data)


def u64(n):
    return struct.pack("<Q", n)


def array(element, n, raw=b""):
    return struct.pack("<IQ", element, n) + raw


HUGE = 1 << 62
DAMAGE = {
    "an empty file": (b"", "too short"),
    "half a header": (header()[:20], "too short"),
    "another magic number": (header(magic=b"GGML") + bytes(64), "begins with b'GGML'"),
    "a zip file": (b"PK\x03\x04" + bytes(64), "not with b'GGUF'"),
    "version 0": (header(version=0) + bytes(64), "version 0 is not supported"),
    "version 1": (header(version=1) + bytes(64), "version 1 is not supported"),
    "version 99": (header(version=99) + bytes(64), "version 99 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "too many tensors for the file": (header(tensors=50) + bytes(64), "number of tensors is 50"),
    "2^62 tensors": (header(tensors=HUGE) + bytes(64), "number of tensors"),
    "2^64 - 1 keys": (header(keys=2**64 - 1) + bytes(64), "number of metadata keys"),
    "a key that is missing": (file_of(keys=[key("a", U8, b"\1")])[:29] + b"", "needs|left"),
    "a key of 2^62 bytes": (header(keys=1) + u64(HUGE) + bytes(64), "length of a metadata key"),
    "a key longer than the file": (header(keys=1) + u64(500) + bytes(64), "a metadata key needs 500 bytes"),
    "a key that is not UTF-8": (file_of(keys=[key(b"\xff\xfe", U8, b"\1")]), "not UTF-8"),
    "a key twice": (file_of(keys=[key("a", U8, b"\1"), key("a", U8, b"\2")]), "key '?a'? appears twice"),
    "an unknown value type": (file_of(keys=[key("a", 13, bytes(8))]), "unknown value type 13"),
    "a value type of 2^32 - 1": (file_of(keys=[key("a", 2**32 - 1, bytes(8))]), "unknown value type"),
    "a truth value of 2": (file_of(keys=[key("a", BOOL, b"\2")]), "truth value of 2"),
    "a string of 2^62 bytes": (file_of(keys=[key("a", STRING, u64(HUGE))]), "length of value of a"),
    "a string one byte too long": (header(keys=1) + key("a", STRING, u64(9) + bytes(8)), "needs 9 bytes, 8 are left"),
    "a string that is not UTF-8": (file_of(keys=[key("a", STRING, text(b"\xc3"))]), "not UTF-8"),
    "a number cut short": (header(keys=1) + key("ab", U64, bytes(7)), "needs 8 bytes, 7 are left"),
    "an array of 2^62 numbers": (file_of(keys=[key("a", ARRAY, array(U8, HUGE))]), "length of a is"),
    "an array of 2^61 + 1 numbers of 8 bytes": (file_of(keys=[key("a", ARRAY, array(U64, (1 << 61) + 1))]), "length of a"),
    "an array of 2^40 strings": (file_of(keys=[key("a", ARRAY, array(STRING, 1 << 40))]), "length of a is"),
    "an array of strings that ends early": (header(keys=1) + key("a", ARRAY, array(STRING, 1, text("abcd")[:-1])), "3 are left"),
    "a string of 2^63 bytes in an array": (file_of(keys=[key("a", ARRAY, array(STRING, 1, u64(1 << 63)))]), "a string of a needs"),
    "an array with an unknown element type": (file_of(keys=[key("a", ARRAY, array(77, 1, bytes(8)))]), "unknown.* 77"),
    "arrays nested four deep": (
        file_of(keys=[key("a", ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(U8, 0)))))]), "too deeply"
    ),
    "an array of 2^50 arrays": (file_of(keys=[key("a", ARRAY, array(ARRAY, 1 << 50))]), "length of a is"),
    "truth values of 7 in an array": (file_of(keys=[key("a", ARRAY, array(BOOL, 2, b"\1\7"))]), "truth values other"),
    "alignment 0": (file_of(tensor("t"), keys=[key("general.alignment", U32, bytes(4))]), "general.alignment is .*power of two"),
    "alignment 24": (file_of(tensor("t"), keys=[key("general.alignment", U32, b"\x18\0\0\0")]), "power of two"),
    "alignment 2^31": (file_of(tensor("t"), keys=[key("general.alignment", U32, b"\0\0\0\x80")]), "power of two"),
    "alignment as text": (file_of(tensor("t"), keys=[key("general.alignment", STRING, text("32"))]), "power of two"),
    "one part of a split model": (file_of(keys=[key("split.count", U16, b"\3\0")]), "one of 3 parts"),
    "a tensor table cut short": (header(tensors=1) + tensor("abcdefgh")[:-1], "needs 20 bytes"),
    "a tensor name of 257 bytes": (file_of(tensor("x" * (MAX_TENSOR_NAME + 1))), "length of a tensor name is 257"),
    "a tensor name that is not UTF-8": (file_of(tensor(b"\xff")), "tensor name is not UTF-8"),
    "no dimensions": (file_of(tensor("t", ())), "0 dimensions"),
    "five dimensions": (file_of(tensor("t", (1,) * 5)), "5 dimensions"),
    "2^32 - 1 dimensions": (file_of(tensor("t", (1,), dims=2**32 - 1)), "dimensions"),
    "a dimension of 0": (file_of(tensor("t", (4, 0))), "impossible shape"),
    "a dimension of 2^63": (file_of(tensor("t", (1 << 63,))), "impossible shape"),
    "dimensions whose product overflows to 0": (file_of(tensor("t", (1 << 32, 1 << 32))), "impossible shape"),
    "dimensions whose product overflows to 16": (file_of(tensor("t", (1 << 40, 1 << 40, 16))), "impossible shape"),
    "an unknown tensor type": (file_of(tensor("t", kind=200)), "of type 200, which is not supported"),
    "a codebook tensor type": (file_of(tensor("t", (256,), kind=16)), "IQ2_XXS"),
    "a row that is no whole block": (file_of(tensor("t", (33,), kind=8)), "whole Q8_0 blocks of 32"),
    "an offset past the end": (file_of(tensor("t", offset=1 << 20)), "cut short"),
    "an offset that overflows": (file_of(tensor("t", offset=2**64 - 32)), "cut short"),
    "an offset off the grid": (file_of(tensor("t", offset=8)), "not a multiple of 32"),
    "tensors that overlap": (file_of(tensor("t", (16,)), tensor("u", (16,), offset=32)), "overlaps"),
    "tensors in the same place": (file_of(tensor("t"), tensor("u")), "overlaps"),
    "a tensor twice": (file_of(tensor("t"), tensor("t", offset=32)), "t appears twice"),
    "data cut short by a byte": (file_of(tensor("t", (16,)), data=63), "cut short"),
    "no data at all": (file_of(tensor("t"), data=0), "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_and_named(tmp_path, what):
    raw, words = DAMAGE[what]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match=words) as error:
        GGUF.open(path)
    assert str(path) in str(error.value)


def test_every_length_of_a_real_header_is_refused(tmp_path):
    """A download that stopped anywhere: always the one error, never half a model."""
    whole = random_model(tmp_path / "m.gguf", "llama", num_layers=1).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 3000, 7), *range(3000, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            GGUF.open(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        GGUF.open(tmp_path / "none.gguf")
    with pytest.raises(OSError, match=str(tmp_path)):
        GGUF.open(tmp_path)


def test_text_in_messages_is_bounded(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(file_of(keys=[key("k" * 60000, 13, bytes(8))]))
    with pytest.raises(ModelFileError) as error:
        GGUF.open(path)
    assert len(str(error.value)) < 1000
