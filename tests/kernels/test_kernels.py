"""Every kernel on every instruction set of this machine against the numpy reference, and against one another bit for bit."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from gangpao import kernels
from gangpao.formats import blocks
from gangpao.kernels import reference
from tests.kernels.random_blocks import SHAPES, random_rows

FLOAT_TYPES = {"F32": np.float32, "F16": np.float16}


def packed(kind, raw, rows, cols, order=None):
    return kernels.pack(raw.reshape(-1), kind, rows, cols, order, kernels.Arena())


def run_linear(layer, x):
    n, cols = x.shape
    rows = kernels.Array(n, cols)
    rows.numpy()[:] = x
    acts = kernels.Activation(n, cols, [layer])
    out = kernels.Array(n, layer.rows)
    kernels.quantize(rows, n, acts)
    kernels.linear(layer, acts, out)
    return out.numpy().copy()


def widths(kind):
    return (96, 256, 544) if SHAPES[kind][0] == 32 else (256, 768)


@pytest.mark.parametrize("kind", SHAPES)
def test_packing_loses_nothing(kind):
    rng = np.random.default_rng(1)
    for cols in widths(kind):
        raw = random_rows(rng, kind, 40, cols)
        panels = reference.unpack_panels(packed(kind, raw, 40, cols).bytes(), kind, 40, cols)
        expected = dequantize(raw, GGMLQuantizationType[kind])
        np.testing.assert_allclose(panels.weights(), expected, rtol=1e-6, atol=1e-7)


def test_packing_follows_the_row_order():
    rng = np.random.default_rng(2)
    raw = random_rows(rng, "Q4_0", 32, 64)
    order = rng.permutation(32).astype(np.int32)
    there = packed("Q4_0", raw, 32, 64, order).bytes()
    assert there == packed("Q4_0", raw[order], 32, 64).bytes()


def test_packing_refuses_wrong_sizes():
    raw = np.zeros((4, 18), dtype=np.uint8)
    arena = kernels.Arena()
    for kind, rows, cols in [("Q4_0", 4, 33), ("Q4_0", 5, 32), ("IQ3_S", 4, 32), ("Q4_0", 0, 32)]:
        with pytest.raises(ValueError, match="pack"):
            kernels.pack(raw.reshape(-1), kind, rows, cols, None, arena)
    with pytest.raises(ValueError, match="order"):
        kernels.pack(raw.reshape(-1), "Q4_0", 4, 32, np.array([0, 1, 2, 9], dtype=np.int32), arena)


@pytest.mark.parametrize("kind", SHAPES)
def test_linear_is_the_reference(kind):
    rng = np.random.default_rng(3)
    for cols in widths(kind):
        raw = random_rows(rng, kind, 40, cols)
        matrix = packed(kind, raw, 40, cols)
        x = rng.normal(size=(5, cols)).astype(np.float32)
        style = reference.FORMATS[kind].style
        q, scale = reference.quantize(x, reference.group_of(style))
        panels = reference.unpack_panels(matrix.bytes(), kind, 40, cols)
        expected = reference.linear(panels, style, q, scale)
        for isa in kernels.available_isas():
            kernels.set_isa(isa)
            got = run_linear(kernels.Linear([matrix]), x)
            np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", SHAPES)
def test_linear_is_bit_equal_everywhere(kind):
    """Instruction sets, threads and the number of tokens at once change nothing."""
    rng = np.random.default_rng(4)
    cols = widths(kind)[-1]
    layer = kernels.Linear([packed(kind, random_rows(rng, kind, rows, cols), rows, cols) for rows in (48, 16, 40)])
    x = rng.normal(size=(50, cols)).astype(np.float32)
    expected = None
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads in (1, 3):
            kernels.set_num_threads(threads)
            got = run_linear(layer, x)
            expected = got if expected is None else expected
            assert np.array_equal(got, expected), (isa, threads)
        for n in (1, 2, 3, 4, 7, 8, 9, 16, 17, 33):
            assert np.array_equal(run_linear(layer, x[:n]), expected[:n]), (isa, n)


@pytest.mark.parametrize("kind", SHAPES)
def test_one_token_meets_several_panels_at_once(kind):
    """Whole groups of panels, a pair, and a single one: the bits are those of portable kernels and of the same token in company."""
    rng = np.random.default_rng(14)
    cols, rows = widths(kind)[-1], 7 * 16 - 3
    layer = kernels.Linear([packed(kind, random_rows(rng, kind, rows, cols), rows, cols)])
    x = rng.normal(size=(2, cols)).astype(np.float32)
    kernels.set_isa("portable")
    expected = run_linear(layer, x)
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        assert np.array_equal(run_linear(layer, x[:1]), expected[:1]), isa


def test_extreme_values_do_not_overflow():
    """All weights and activations at the end of their range: the int16 sums of the AVX2 path must hold them."""
    for kind, (_, size, floats) in SHAPES.items():
        cols = 256
        for fill in (0x00, 0xFF, 0x80, 0x7F):
            raw = np.full((16, cols // SHAPES[kind][0], size), fill, dtype=np.uint8)
            for at in floats:
                raw[..., at : at + 2] = np.array([0.01], dtype=np.float16).view(np.uint8)
            layer = kernels.Linear([packed(kind, raw.reshape(16, -1), 16, cols)])
            for sign in (1, -1):
                x = np.full((1, cols), sign, dtype=np.float32)
                results = []
                for isa in kernels.available_isas():
                    kernels.set_isa(isa)
                    results.append(run_linear(layer, x))
                assert all(np.array_equal(r, results[-1]) for r in results), (kind, fill, sign)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_weights(kind):
    rng = np.random.default_rng(5)
    w = rng.normal(size=(40, 77)).astype(np.float32)
    if kind == "BF16":
        raw = (w.view(np.uint32) >> 16).astype(np.uint16)
        w = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        raw = w.astype(FLOAT_TYPES[kind])
        w = raw.astype(np.float32)
    layer = kernels.Linear([packed(kind, np.ascontiguousarray(raw).view(np.uint8), 40, 77)])
    x = rng.normal(size=(6, 77)).astype(np.float32)
    expected = None
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        got = run_linear(layer, x)
        np.testing.assert_allclose(got, x @ w.T, rtol=1e-5, atol=1e-5)
        expected = got if expected is None else expected
        assert np.array_equal(got, expected)
        assert np.array_equal(run_linear(layer, x[:1]), expected[:1])


def test_bias_and_addition():
    rng = np.random.default_rng(6)
    matrix = packed("Q8_0", random_rows(rng, "Q8_0", 24, 64), 24, 64)
    x = rng.normal(size=(3, 64)).astype(np.float32)
    plain = run_linear(kernels.Linear([matrix]), x)
    bias = rng.normal(size=24).astype(np.float32)
    matrix.set_bias(bias)
    np.testing.assert_allclose(run_linear(kernels.Linear([matrix]), x), plain + bias, rtol=1e-6, atol=1e-6)
    acts = kernels.Activation(3, 64, [kernels.Linear([matrix])])
    rows, out = kernels.Array(3, 64), kernels.Array(3, 24)
    rows.numpy()[:] = x
    kernels.quantize(rows, 3, acts)
    out.numpy()[:] = 1.0
    kernels.linear(kernels.Linear([matrix]), acts, out, True, 0.25)
    np.testing.assert_allclose(out.numpy(), 1 + 0.25 * (plain + bias), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_norm_swiglu_and_quantization(n):
    rng = np.random.default_rng(7)
    cols = 512
    x = (rng.normal(size=(n, cols)) * np.exp(rng.normal(size=(n, 1)) * 4)).astype(np.float32)
    x[0, 32:64] = 0.0
    x[-1, 256:] = 0.0
    weight = rng.normal(size=(1, cols)).astype(np.float32)
    a, w, g = kernels.Array(n, cols), kernels.Array(1, cols), kernels.Array(n, 2 * cols)
    gate_up = (rng.normal(size=(n, 2 * cols)) * 10).astype(np.float32)
    a.numpy()[:], w.numpy()[:], g.numpy()[:] = x, weight, gate_up
    readers = [kernels.Linear([packed(k, random_rows(rng, k, 16, cols), 16, cols)]) for k in ("Q8_0", "Q4_K")]
    first = None
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        normed, gated = (kernels.Activation(n, cols, readers, keep_float=True) for _ in range(2))
        kernels.rmsnorm(a, n, w, 1e-5, normed)
        kernels.swiglu(g, n, gated)
        np.testing.assert_allclose(normed.floats(), reference.rmsnorm(x, weight, 1e-5), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gated.floats(), reference.swiglu(gate_up), rtol=1e-5, atol=1e-6)
        now = [normed.floats().copy(), gated.floats().copy()]
        for group in (32, 256):
            q, scale = reference.quantize(np.ascontiguousarray(normed.floats()), group)
            np.testing.assert_allclose(
                normed.dequantized(group), q * np.repeat(scale, group, axis=1), rtol=1e-6, atol=1e-7
            )
            now += [normed.dequantized(group), gated.dequantized(group)]
        first = first or now
        assert all(np.array_equal(x, y) for x, y in zip(now, first, strict=True)), isa


def test_an_activation_keeps_what_its_readers_need():
    rng = np.random.default_rng(10)
    q8, q4k = (kernels.Linear([packed(k, random_rows(rng, k, 16, 256), 16, 256)]) for k in ("Q8_0", "Q4_K"))
    rows, out = kernels.Array(1, 256), kernels.Array(1, 16)
    for keeps, lacks in [(q8, q4k), (q4k, q8)]:
        acts = kernels.Activation(1, 256, [keeps])
        kernels.quantize(rows, 1, acts)
        kernels.linear(keeps, acts, out)
        with pytest.raises(ValueError, match="form"):
            kernels.linear(lacks, acts, out)
        with pytest.raises(ValueError, match="floats"):
            acts.floats()
    with pytest.raises(ValueError, match="columns"):
        kernels.Activation(1, 64, [q8])


def attention_case(rng, heads, kv_heads, head_dim, rope_dim, norms):
    scale, eps = head_dim**-0.5, 1e-6
    q_norm, k_norm = (rng.normal(size=head_dim).astype(np.float32) for _ in range(2))
    spec = kernels.attention_spec(
        heads, kv_heads, head_dim, rope_dim, scale, eps, q_norm if norms else None, k_norm if norms else None
    )
    return spec, scale, eps, q_norm, k_norm


def run_attention(spec, cache, qkv, cos, sin, segments, heads, head_dim):
    """segments: (pages, start, tokens) of each sequence in the step."""
    n, places = len(qkv), kernels.Rows()
    for segment in segments:
        places.add(*segment)
    rows, c, s = kernels.Array(n, qkv.shape[1]), kernels.Array(n, cos.shape[1]), kernels.Array(n, cos.shape[1])
    rows.numpy()[:], c.numpy()[:], s.numpy()[:] = qkv, cos, sin
    result, out = kernels.Array(n, heads * head_dim), kernels.Activation(n, heads * head_dim, [], keep_float=True)
    kernels.rope_append(rows, places, spec, c, s, cache, 1)
    kernels.attend(rows, places, spec, cache, 1, result, out)
    return out.floats().copy()


KEPT = {16: lambda x: x.astype(np.float16).astype(np.float32), 8: reference.through_int8, 4: reference.through_int4}


@pytest.mark.parametrize("bits", [(16, 16), (8, 8), (4, 4), (8, 4)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rope_dim", "norms"),
    [(6, 1, 64, 64, False), (4, 4, 32, 32, False), (9, 3, 48, 32, True), (16, 2, 16, 16, True)],
)
def test_attention(heads, kv_heads, head_dim, rope_dim, norms, bits):
    """Against the reference, in one piece = in pieces, any instruction set and thread count the same bits."""
    if 4 in bits and head_dim % 32:
        with pytest.raises(ValueError, match="multiple of 32"):
            kernels.Cache(2, kv_heads, head_dim, 5, *bits)
        return
    rng = np.random.default_rng(8)
    spec, scale, eps, q_norm, k_norm = attention_case(rng, heads, kv_heads, head_dim, rope_dim, norms)
    total = 150
    qkv = rng.normal(size=(total, (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
    angles = rng.uniform(-3, 3, size=(total, rope_dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    q, k, v = np.split(qkv.reshape(total, -1, head_dim), [heads, heads + kv_heads], axis=1)
    if norms:
        q, k = reference.rmsnorm(q, q_norm, eps), reference.rmsnorm(k, k_norm, eps)
    q, k = reference.rope(q, cos, sin), reference.rope(k, cos, sin)
    if bits[0] == 4:
        q, k = reference.spread(q) / (head_dim & -head_dim), reference.spread(k)
    k, v = (KEPT[n](x) for n, x in zip(bits, (k, v), strict=True))
    expected = reference.attend(q, k, v, 0, scale).reshape(total, -1)
    first = None
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads, cuts in [(1, [total]), (2, [1, 63, 1, 66, 19]), (3, [100, 50])]:
            kernels.set_num_threads(threads)
            cache = kernels.Cache(2, kv_heads, head_dim, 5, *bits)
            pieces, at = [], 0
            for cut in cuts:
                part = slice(at, at + cut)
                where = [([3, 0, 4], at, cut)]
                pieces.append(run_attention(spec, cache, qkv[part], cos[part], sin[part], where, heads, head_dim))
                at += cut
            got = np.concatenate(pieces)
            np.testing.assert_allclose(
                got, expected, rtol=2e-3 if bits[0] == 16 else 2e-2, atol=2e-3 if bits[0] == 16 else 2e-2
            )
            first = got if first is None else first
            assert np.array_equal(got, first), (isa, threads)


@pytest.mark.parametrize("window", [1, 5, 64, 100])
def test_attention_in_a_window(window):
    """What is further away changes nothing, whatever else a page holds."""
    rng, heads, kv_heads, head_dim, total = np.random.default_rng(13), 4, 2, 32, 200
    spec = kernels.attention_spec(heads, kv_heads, head_dim, 0, 0.2, 1e-5, None, None, window)
    qkv = rng.normal(size=(total, (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
    one = np.ones((total, 8), np.float32)
    q, k, v = np.split(qkv.reshape(total, -1, head_dim), [heads, heads + kv_heads], axis=1)
    k, v = (x.astype(np.float16).astype(np.float32) for x in (k, v))
    expected = reference.attend(q, k, v, 0, 0.2, window).reshape(total, -1)
    first = None
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for cuts in ([total], [1, 63, 1, 66, 69]):
            cache, pieces, at = kernels.Cache(2, kv_heads, head_dim, 5, 16, 16), [], 0
            for cut in cuts:
                part = slice(at, at + cut)
                where = [([3, 0, 4, 1], at, cut)]
                pieces.append(run_attention(spec, cache, qkv[part], one[part], one[part], where, heads, head_dim))
                at += cut
            got = np.concatenate(pieces)
            np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)
            first = got if first is None else first
            assert np.array_equal(got, first), isa


@pytest.mark.parametrize("bits", [(16, 16), (8, 8), (4, 4), (8, 4)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 1), (4, 4), (14, 2)])
def test_attention_of_many_sequences_is_that_of_each(heads, kv_heads, bits):
    """Sequences in one step, three of which look at the same first page, against each alone in a cache of its own."""
    rng, head_dim = np.random.default_rng(11), 32
    spec, *_ = attention_case(rng, heads, kv_heads, head_dim, head_dim, False)
    kernels.set_num_threads(2)

    def rows(n):
        angles = rng.uniform(-3, 3, size=(n, head_dim // 2))
        qkv = rng.normal(size=(n, (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
        return qkv, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    first, own = rows(64), [rows(n) for n in (1, 40, 7, 90)]
    begins = [64, 64, 64, 0]
    tables = [[2, 5], [2, 0], [2, 1], [7, 3]]
    shared = kernels.Cache(2, kv_heads, head_dim, 8, *bits)
    run_attention(spec, shared, *first, [([2], 0, 64)], heads, head_dim)
    segments = [(pages, begin, len(x[0])) for pages, begin, x in zip(tables, begins, own, strict=True)]
    together = [np.concatenate(x) for x in zip(*own, strict=True)]
    got = run_attention(spec, shared, *together, segments, heads, head_dim)
    for (_, begin, n), x in zip(segments, own, strict=True):
        alone = kernels.Cache(2, kv_heads, head_dim, 2, *bits)
        if begin:
            run_attention(spec, alone, *first, [([0], 0, 64)], heads, head_dim)
        expected = run_attention(spec, alone, *x, [([0, 1], begin, n)], heads, head_dim)
        assert np.array_equal(got[:n], expected)
        got = got[n:]


def test_a_copied_page_is_the_same():
    rng, heads, head_dim = np.random.default_rng(12), 2, 16
    spec, *_ = attention_case(rng, heads, 1, head_dim, 16, False)
    cache = kernels.Cache(2, 1, head_dim, 3, 8, 8)
    one = np.ones((30, 8), np.float32)
    qkv = rng.normal(size=(30, (heads + 2) * head_dim)).astype(np.float32)
    run_attention(spec, cache, qkv, one, one, [([1], 0, 30)], heads, head_dim)
    cache.copy_page(1, 2)
    last = [
        run_attention(spec, cache, qkv[:1], one[:1], one[:1], [([page], 30, 1)], heads, head_dim) for page in (1, 2)
    ]
    assert np.array_equal(*last)


def test_kernels_refuse_wrong_shapes():
    spec = kernels.attention_spec(2, 1, 16, 16, 0.25, 1e-5)
    qkv, angles, cache = kernels.Array(4, 64), kernels.Array(4, 8), kernels.Cache(1, 1, 16, 1, 16, 16)
    rows = kernels.Rows()
    with pytest.raises(ValueError, match="no page"):
        rows.add([0], 61, 4)
    rows.add([0], 0, 4)
    with pytest.raises(ValueError, match="outside the cache"):
        kernels.rope_append(qkv, rows, spec, angles, angles, cache, 1)
    for page in (1, -1):
        rows.clear()
        rows.add([page], 0, 4)
        with pytest.raises(ValueError, match="no such page"):
            kernels.rope_append(qkv, rows, spec, angles, angles, cache, 0)
        with pytest.raises(ValueError, match="no such page"):
            cache.copy_page(0, page)
    with pytest.raises(ValueError, match="head_dim"):
        kernels.attention_spec(2, 1, 24, 16, 0.25, 1e-5)
    with pytest.raises(ValueError, match="not available"):
        kernels.set_isa("sse9")
    with pytest.raises(ValueError, match="more tokens"):
        kernels.quantize(kernels.Array(40, 32), 40, kernels.Activation(16, 32, []))


def test_many_threads_finish():
    """More threads than cores, many short jobs: the pool must neither hang nor lose work."""
    rng = np.random.default_rng(9)
    layer = kernels.Linear([packed("Q4_0", random_rows(rng, "Q4_0", 320, 64), 320, 64)])
    x = rng.normal(size=(1, 64)).astype(np.float32)
    expected = run_linear(layer, x)
    for threads in (2, 5, 8):
        kernels.set_num_threads(threads)
        for _ in range(300):
            assert np.array_equal(run_linear(layer, x), expected)


def test_one_row_a_type_here_and_one_in_the_extension():
    """A linear weight type is a row of formats/blocks.py and one of src/pack.cpp; nothing else has its numbers."""
    packed = {name: (block, size) for name, block, size, *_ in kernels.weight_types()}
    ours = blocks.TYPES
    assert packed == {t.name: (t.block_size, t.type_size) for t in ours}
    assert reference.FORMATS.keys() == SHAPES.keys() == {t.name for t in ours if t.block_size > 1}
    assert {kind: shape[:2] for kind, shape in SHAPES.items()} == {kind: packed[kind] for kind in SHAPES}


@pytest.mark.parametrize("kind", blocks.BY_NAME)
def test_packed_bytes_are_known_before_packing(kind):
    block = blocks.BY_NAME[kind]
    arena = kernels.Arena()
    for rows, cols in ((1, 256), (17, 512), (33, 1280 - 32 * (block.block_size == 32))):
        raw = np.zeros((rows, block.row_bytes(cols)), np.uint8)
        packed = kernels.pack(raw, kind, rows, cols, None, arena)
        assert kernels.packed_bytes(kind, rows, cols) == packed.nbytes


def test_packed_bytes_of_what_cannot_be_packed():
    with pytest.raises(ValueError, match="IQ3_S cannot be packed"):
        kernels.packed_bytes("IQ3_S", 16, 256)
    with pytest.raises(ValueError, match="not whole blocks"):
        kernels.packed_bytes("Q4_K", 16, 128)


# Types whose packed form has no bit more than the file's: everything that a decode step reads of them is information.
AS_IN_THE_FILE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "TQ2_0")


@pytest.mark.parametrize("kind", AS_IN_THE_FILE)
def test_packed_weights_are_no_larger_than_the_file(kind):
    weights, size, _ = SHAPES[kind]
    assert kernels.packed_bytes(kind, 64, 2048) == 64 * 2048 // weights * size


def test_six_bit_scales_and_minima_keep_all_their_values():
    """Every scale and every minimum of Q4_K in every block of a superblock."""
    for block in range(8):
        scale, minimum = np.zeros((64, 8), np.uint8), np.zeros((64, 8), np.uint8)
        scale[:, block], minimum[:, block] = np.arange(64), 63 - np.arange(64)
        raw = np.zeros((64, 144), np.uint8)
        raw[:, :4] = np.array([1, 1], np.float16).view(np.uint8)
        raw[:, 4:8] = scale[:, :4] | scale[:, 4:] >> 4 << 6
        raw[:, 8:12] = minimum[:, :4] | minimum[:, 4:] >> 4 << 6
        raw[:, 12:16] = scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4
        panels = reference.unpack_panels(packed("Q4_K", raw, 64, 256).bytes(), "Q4_K", 64, 256)
        assert np.array_equal(panels.scale[:, ::2], scale)
        assert np.array_equal(panels.minimum[:, ::2], minimum)
