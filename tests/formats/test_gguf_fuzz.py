"""Mutated GGUF files (S1): every one opens and can be walked, or is refused with ModelFileError, quickly and in bounds.

Half of the mutations know the format: a walker lists where counts, lengths, types and offsets of a seed stand, and those
fields get extreme values, small steps and each other's values. The other half are flipped bits, bytes, cuts and splices.
"""

import gc
import mmap
import random
import resource
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gangpao.formats.blocks import BY_NAME
from gangpao.formats.gguf import GGUF, ModelFileError
from tests.core_speed import seconds_of
from tests.formats import gguf_maker as maker
from tests.formats.gguf_maker import ARRAY, CODES, STRING, Typed, gguf_bytes, payload, random_model, text
from tests.kernels.random_blocks import SHAPES, random_rows

SECONDS = 1.0
MB = 1 << 20
EXTREMES = [0, 1, 2, 3, 7, 8, 9, 10, 13, 31, 32, 255, 256, 1 << 15, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
            1 << 32, 1 << 40, 1 << 60, 1 << 61, (1 << 61) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32,
            (1 << 64) - 9, (1 << 64) - 1]  # fmt: skip


def every_value() -> bytes:
    """Each scalar type, arrays of each, strings, nested arrays."""
    scalars = {f"s{kind}": Typed(kind, True if code == "?" else 1) for kind, code in CODES.items()}
    arrays = {f"a{kind}": Typed(ARRAY, [True if code == "?" else 1] * 3, kind) for kind, code in CODES.items()}
    whole = gguf_bytes({**scalars, **arrays, "text": "钢炮", "words": ["a", "", "字" * 9]}, {}, version=2)
    nested = struct.pack("<IIQ", ARRAY, ARRAY, 2) + payload(ARRAY, [1, 2]) + payload(ARRAY, ["x", "y"], STRING)
    keys = len(scalars) + len(arrays) + 3
    return whole[:16] + struct.pack("<Q", keys) + text("nested") + nested + whole[24:]


def every_type() -> bytes:
    """A tensor of every block type, aligned to 64."""
    rng = np.random.default_rng(0)
    tensors = {
        kind: (kind, (2, 256), random_rows(rng, kind, 2, 256).tobytes())
        if kind in SHAPES
        else (kind, (3, 2, 5), maker.tensor_bytes(kind, rng.normal(size=(3, 2, 5))))
        for kind in BY_NAME
    }
    return gguf_bytes({"general.alignment": 64, "general.architecture": "llama"}, tensors)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    """Valid files of 1 to 30 KB."""
    small = {
        "hidden_size": 32,
        "num_heads": 2,
        "num_kv_heads": 1,
        "intermediate_size": 32,
        "num_layers": 1,
        "vocab_size": 270,
    }
    folder = tmp_path_factory.mktemp("seeds")
    models = [random_model(folder / a, a, kind=["Q8_0", "Q4_0"], **small) for a in ("minicpm", "qwen2", "qwen3")]
    return [every_value(), every_type(), *(m.read_bytes() for m in models)]


class Walker:
    """Where the numbers of a valid file stand: (offset, struct code), in order."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.found = data, 4, []
        self.take("I")
        tensors, keys = self.take("Q"), self.take("Q")
        for _ in range(keys):
            self.skip()
            self.value(self.take("I"))
        for _ in range(tensors):
            self.skip()
            for _ in range(self.take("I")):
                self.take("Q")
            self.take("I")
            self.take("Q")

    def take(self, code: str) -> int:
        self.found.append((self.at, code))
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def skip(self) -> None:
        length = self.take("Q")
        self.at += length

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.skip()
        elif kind == ARRAY:
            element, n = self.take("I"), self.take("Q")
            for _ in range(n):
                self.value(element)
        else:
            self.take(CODES[kind])


def put(data: bytearray, at: int, code: str, value: int) -> None:
    size = struct.calcsize("<" + code)
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def change_field(rng: random.Random, data: bytearray, fields: list, weights: list) -> None:
    at, code = rng.choices(fields, cum_weights=weights)[0]
    size = struct.calcsize("<" + code)
    old = int.from_bytes(data[at : at + size], "little")
    left = len(data) - at - size
    other_at, other_code = rng.choice(fields)
    other = int.from_bytes(data[other_at : other_at + struct.calcsize("<" + other_code)], "little")
    near = [
        old + 1,
        old - 1,
        old * 2,
        old ^ 1 << rng.randrange(8 * size),
        left,
        left + 1,
        left - 1,
        left // 4,
        len(data),
        other,
    ]
    put(data, at, code, rng.choice(near if rng.random() < 0.5 else EXTREMES))


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    n = rng.randint(1, 16)
    data[at : at + n] = rng.choice([b"\xff", b"\0", b"\x7f", rng.randbytes(1)]) * n


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def remove(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 64)]


def lengthen(rng: random.Random, data: bytearray) -> None:
    data += rng.randbytes(rng.randint(1, 200))


def mutations(seeds: list[bytes], count: int, seed: int):
    """`count` mutated files."""
    rng = random.Random(seed)
    walked = [Walker(s).found for s in seeds]
    # a vocabulary has hundreds of lengths: fields of the first kilobyte and the last hundred are taken more often
    weights = [np.cumsum([4 if i < 60 or i > len(f) - 100 else 1 for i in range(len(f))]).tolist() for f in walked]
    bytewise = [flip_bits, flip_bits, overwrite, overwrite, cut, remove, lengthen]
    for _ in range(count):
        which = rng.randrange(len(seeds))
        data = bytearray(seeds[which])
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            draw = rng.random()
            if draw < 0.6 and len(data) == len(seeds[which]):
                change_field(rng, data, walked[which], weights[which])
            elif draw < 0.7:
                donor = rng.choice(seeds)
                begin, at = rng.randrange(len(donor)), rng.randrange(len(data) + 1)
                piece = donor[begin : begin + rng.randint(1, 300)]
                data[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
            elif data:
                rng.choice(bytewise)(rng, data)
        yield bytes(data)


def walk(gguf: GGUF) -> None:
    """Uses all that an open file offers."""
    assert gguf.version in (2, 3)
    for name, info in gguf.tensors.items():
        raw = gguf.raw(name)
        assert raw.nbytes == info.nbytes
        assert info.offset + info.nbytes <= gguf.nbytes
        assert int(raw[0, 0]) + int(raw[-1, -1]) >= 0
        assert gguf.array(name).shape == info.shape
        gguf.release(name)
    for value in gguf.metadata.values():
        assert isinstance(value, bool | int | float | str | list | np.ndarray)


def outcome(path) -> bool:
    """True if the file opened. Anything but that and a ModelFileError is a failure; so is a second of this thread."""
    started = time.thread_time()
    refusal = ""
    try:
        with GGUF.open(path) as gguf:
            walk(gguf)
    except ModelFileError as error:
        refusal = str(error)
    assert time.thread_time() - started < SECONDS
    assert not refusal or (str(path) in refusal and len(refusal) < 2000 and refusal.isprintable())
    return not refusal


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(seeds: list[bytes], folder, count: int, seed: int) -> None:
    path = folder / "m.gguf"
    for valid in seeds:
        path.write_bytes(valid)
        assert outcome(path)
    before, opened = resident(), 0
    for i, data in enumerate(mutations(seeds, count, seed)):
        path.write_bytes(data)
        try:
            opened += outcome(path)
        except Exception as error:
            raise AssertionError(f"mutation {i} of seed {seed} ({len(data)} bytes): {error!r}") from error
    assert resident() - before < 2 * max(map(len, seeds)) + 64 * MB
    assert count // 50 < opened < count * 49 // 50, "mutations must reach past the header and still damage it"


def test_ten_thousand_mutations(seeds, tmp_path):
    run(seeds, tmp_path, 10_000, seed=1)


@pytest.mark.slow
def test_a_hundred_thousand_mutations(seeds, tmp_path):
    run(seeds, tmp_path, 100_000, seed=2)


def test_every_field_with_every_extreme(tmp_path):
    """The two seeds that hold each construct once: no chance involved."""
    path = tmp_path / "m.gguf"
    for seed in (every_value(), every_type()):
        for at, code in Walker(seed).found:
            for value in EXTREMES:
                data = bytearray(seed)
                put(data, at, code, value)
                path.write_bytes(data)
                outcome(path)


# --- memory and time against files made to waste them

N = 1 << 20


def bomb(kind: int, element: int, n: int, body: bytes) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", kind)
    return head + (struct.pack("<IQ", element, n) if kind == ARRAY else b"") + body


BOMBS = {
    "a million strings of one wide character": lambda: bomb(ARRAY, STRING, N, text("字") * N),
    "a million empty strings": lambda: bomb(ARRAY, STRING, N, bytes(8 * N)),
    "three million empty strings": lambda: bomb(ARRAY, STRING, 3 * N, bytes(24 * N)),
    "a long text with one emoji": lambda: bomb(STRING, 0, 0, text("a" * (24 * N) + "😀")),
    "long texts with one emoji": lambda: bomb(ARRAY, STRING, 8, text("😀" + "a" * (4 * N)) * 8),
    "medium texts with one emoji": lambda: bomb(ARRAY, STRING, 8192, text("😀" + "a" * 4000) * 8192),
    "texts of bytes that are no text": lambda: bomb(ARRAY, STRING, 8192, text(b"\xff" * 4000) * 8192),
    "a million empty arrays": lambda: bomb(ARRAY, ARRAY, N, struct.pack("<IQ", 0, 0) * N),
    "sixty thousand empty arrays": lambda: bomb(ARRAY, ARRAY, 60_000, struct.pack("<IQ", 0, 0) * 60_000),
    "a large array of truth values": lambda: bomb(ARRAY, maker.BOOL, 32 * N, bytes(32 * N)),
    "sixty thousand keys": lambda: (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 60_000)
        + b"".join(text(f"k{i}") + struct.pack("<IQ", maker.U64, 1 << 60) for i in range(60_000))
    ),
    "keys of sixty thousand bytes": lambda: (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 500)
        + b"".join(text(f"{i:04}" + "字" * 20_000) + struct.pack("<IB", 0, 1) for i in range(500))
    ),
    "sixty thousand tensors": lambda: (
        b"GGUF" + struct.pack("<IQQ", 3, 60_000, 0)
        + b"".join(text(f"t{i}") + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i in range(60_000)) + bytes(32 * 60_001)
    ),
}  # fmt: skip


MANY = [what for what in BOMBS if "million" in what or ("sixty thousand" in what and "bytes" not in what)]


def private() -> int:
    """Bytes of this process that are not pages of files."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc/self/statm to measure memory by")
    _, all_pages, file_pages, *_ = map(int, statm.read_text().split())
    return (all_pages - file_pages) * mmap.PAGESIZE


def open_or_none(path) -> GGUF | None:
    try:
        return GGUF.open(path)
    except ModelFileError:
        return None


@pytest.mark.parametrize("what", BOMBS)
def test_memory_and_time_are_bounded(tmp_path, what):
    path = tmp_path / "m.gguf"
    path.write_bytes(BOMBS[what]())
    limit = 2 * path.stat().st_size + 64 * MB
    gc.collect()
    before = private()
    gguf = open_or_none(path)
    assert private() - before < limit
    del gguf
    assert seconds_of(lambda: open_or_none(path), SECONDS) < SECONDS
    if what not in MANY:  # the peak too, which a decoder reaches for a moment; tracing a million objects takes too long
        tracemalloc.start()
        open_or_none(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit, f"{peak / MB:.0f} MB, at most {limit / MB:.0f}"
