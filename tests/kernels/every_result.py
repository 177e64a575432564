"""What every kernel computes on every instruction set of a machine, and logits of whole models, for other machines to compare.

`python -m tests.kernels.every_result OUT.npz [MODEL.gguf ...]`: arrays named "isa/kernel/case". Inputs are whole numbers divided
by powers of two, so that no function of a library has a part in them: with other inputs, equal kernels would differ.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gangpao import kernels
from gangpao.engine import exact
from gangpao.engine.transformer import Transformer
from gangpao.formats import blocks
from gangpao.formats.gguf import GGUF
from tests.kernels import test_candidates as two_planes
from tests.kernels import test_gated_delta as delta
from tests.kernels import test_kernels as dense
from tests.kernels import test_low_rank as low_rank
from tests.kernels import test_sparse as sparse
from tests.kernels import test_training as between
from tests.kernels.random_blocks import SHAPES, random_rows
from tests.kernels.test_vision import array, floats

TOKENS = (1, 3, 5, 8, 9, 40)
Named = Iterator[tuple[str, np.ndarray]]


def draw(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Values between -4 and 4 times a power of two."""
    whole = np.random.default_rng(seed).integers(-(2**15), 2**15, shape)
    return (whole * (scale / 2**13)).astype(np.float32)


def linear() -> Named:
    """Every format with few and many tokens, whole superblocks and parts of them, bias, addition."""
    for kind in SHAPES:
        for cols in dense.widths(kind):
            raw = random_rows(np.random.default_rng(cols), kind, 40, cols)
            layer = kernels.Linear([dense.packed(kind, raw, 40, cols)])
            for n in TOKENS:
                yield f"linear/{kind}/{cols}/{n}", dense.run_linear(layer, draw(n, n, cols))
    for kind, cols in (("F32", 77), ("F16", 80), ("BF16", 33)):
        raw = blocks.quantize(draw(1, 40, cols), kind)
        matrix = dense.packed(kind, raw, 40, cols)
        matrix.set_bias(draw(2, 40))
        layer = kernels.Linear([matrix])
        for n in TOKENS:
            yield f"linear/{kind}/{n}", dense.run_linear(layer, draw(n, n, cols))


def heads() -> Named:
    """Matrices in two planes: whole products, and searches for the largest."""
    for kind in two_planes.TYPES:
        raw = random_rows(np.random.default_rng(40), kind, two_planes.ROWS, two_planes.TYPES[kind])
        layer = two_planes.head(kind, raw, planes=True)
        candidates = kernels.Candidates(layer)
        candidates.learn(two_planes.inputs(layer, draw(41, 3, two_planes.TYPES[kind])))
        for n in TOKENS[:-1]:
            x = draw(n, n, two_planes.TYPES[kind])
            yield f"planes/{kind}/{n}", two_planes.products(layer, x)
            yield f"largest/{kind}/{n}", two_planes.search(candidates, layer, x, [(2, (7,))] * n)[0]


def small() -> Named:
    """Norms, gates, quantized activations, sums of exponentials."""
    x, weight, bias = draw(3, 5, 520, scale=4.0), draw(4, 1, 520), draw(5, 1, 520)
    x[1, 32:64] = 0
    layer = [kernels.Linear([dense.packed(k, random_rows(np.random.default_rng(6), k, 16, 512), 16, 512)])
             for k in ("Q8_0", "Q4_K")]  # fmt: skip
    for name in ("gelu", "gelu_tanh", "quick_gelu"):
        yield f"gelu/{name}", floats(5, 520, lambda out, name=name: kernels.gelu(array(x), 5, name, out))
    yield "layernorm", floats(5, 520, lambda out: kernels.layernorm(array(x), 5, array(weight), array(bias), 1e-6, out))
    yield "swiglu", floats(5, 260, lambda out: kernels.swiglu(array(x), 5, out))
    yield "geglu", floats(5, 256, lambda out: kernels.geglu(array(x[:, :512]), 5, out))
    yield "gate", floats(5, 64, lambda out: kernels.sigmoid_gate(array(x[:, :64]), array(x[:, 64:160]), 32, 5, out))
    normed = kernels.Activation(5, 512, layer, True)
    kernels.rmsnorm(array(x[:, :512]), 5, array(weight[:, :512]), 1e-5, normed)
    yield "rmsnorm", normed.floats().copy()
    for group in (32, 256):
        yield f"quantized/{group}", normed.dequantized(group)
    branch, out = array(x), array(draw(7, 5, 520))
    kernels.add_normed(branch, 5, array(weight), 1e-6, out)
    yield "add_normed", out.numpy().copy()
    yield "log_sum_exps", np.array(exact.log_sum_exps(array(draw(8, 3, 4097, scale=8.0)), 3))


def attention() -> Named:
    """Over the cache in all its types, with norms, a window and a cut; over chosen pages; over all rows at once."""
    for heads, kv_heads, dim, window in ((6, 1, 64, 0), (4, 4, 32, 70), (9, 3, 48, 0)):
        norms = (draw(9, dim), draw(10, dim)) if window else (None, None)
        spec = kernels.attention_spec(heads, kv_heads, dim, dim, dim**-0.5, 1e-6, *norms, window)
        qkv, angles = draw(11, 150, (heads + 2 * kv_heads) * dim), draw(12, 150, dim, scale=0.25)
        cos, sin = np.ascontiguousarray(angles[:, : dim // 2]), np.ascontiguousarray(angles[:, dim // 2 :])
        for bits in [(16, 16), (8, 8), *([(4, 4), (8, 4)] if dim % 32 == 0 else [])]:
            cache, parts = kernels.Cache(2, kv_heads, dim, 5, *bits), []
            for begin, end in ((0, 100), (100, 101), (101, 103), (103, 150)):
                part, where = slice(begin, end), [([3, 0, 4], begin, end - begin)]
                parts.append(dense.run_attention(spec, cache, qkv[part], cos[part], sin[part], where, heads, dim))
            yield f"attend/{heads}/{dim}/{bits[0]}-{bits[1]}", np.concatenate(parts)
    for bits in ((16, 16), (8, 8), (4, 4)):
        case = sparse.Case(bits)
        case.qkv = draw(16, *case.qkv.shape)
        yield f"attend_sparse/{bits[0]}", case.run(0, sparse.TOTAL)
    for dim, window in ((72, 0), (16, 5)):
        q, k, v = (draw(seed, 70, 3 * dim) for seed in (13, 14, 15))
        out = kernels.Array(70, 3 * dim)
        kernels.attend_all(array(q), array(k), array(v), 3, 0.125, window, out)
        yield f"attend_all/{dim}", out.numpy().copy()


def training() -> Named:
    """What lies between the products of a training step, in bfloat16."""
    (gate, _), (up, _), (d, _) = (between.rounded(draw(seed, 5, 208)) for seed in (30, 31, 32))
    weight, angles = draw(33, 208), draw(34, 2, 5, 16, scale=0.25)
    out = [between.empty(5, 208) for _ in range(3)]
    kernels.swiglu_bf16(gate, up, out[0])
    kernels.swiglu_back_bf16(gate, up, d, out[1], out[2])
    yield "training/swiglu", np.stack(out)
    inverse, sums = np.empty(5, np.float32), np.empty(208, np.float32)
    kernels.rmsnorm_bf16(gate, weight, 1e-5, out[0], inverse)
    kernels.rmsnorm_back_bf16(gate, d, weight, inverse, out[1], sums)
    yield "training/rmsnorm", np.concatenate([between.numbers(np.stack(out[:2])).ravel(), inverse, sums])
    heads, turned = between.rounded(draw(35, 1, 5, 2, 3, 32))[0], np.empty((1, 2, 5, 3, 32), np.float32)
    kernels.turn_bf16(heads, angles[0], angles[1], 0.25, turned)
    kernels.turn_back_bf16(
        heads.reshape(1, 2, 5, 3, 32), angles[0], angles[1], 0.25, back := between.empty(1, 5, 2, 3, 32)
    )
    yield "training/turn", np.stack([turned.ravel(), between.numbers(back).ravel()])


def others() -> Named:
    """Adapters, recurrent layers, rows from blocks and rows to blocks."""
    layer = low_rank.make_layer(np.random.default_rng(16))
    for dtype in (np.int8, np.float32):
        sources = [
            None if rank == 0 else (
                (draw(17, rank, low_rank.COLS, scale=16.0)).astype(dtype), (draw(18, rows, rank, scale=16.0)).astype(dtype),
                np.abs(draw(19, rank, scale=2**-6)), np.abs(draw(20, -(-rows // 16), scale=2**-6)),
            )
            for rank, rows in zip((5, 0, 16), low_rank.ROWS, strict=True)
        ]  # fmt: skip
        table = low_rank.table_of(layer, sources)
        for n in (1, 3, 40):
            result = low_rank.run(layer, draw(21, n, low_rank.COLS), table, [(0, 0, n, 0.75)])
            yield f"low_rank/{np.dtype(dtype)}/{n}", result
    numbers = (
        draw(22, delta.TAPS, delta.CHANNELS), -np.abs(draw(23, 4)), draw(24, 4), draw(25, delta.VALUES // 4), delta.EPS
    )  # fmt: skip
    text = delta.Text(draw(26, delta.TOKENS, delta.WIDTH), numbers)
    yield "delta_net", np.concatenate([text.run(0, 17, -1, [(17, 1)]), text.run(17, 40, 1, [(23, 1)])])
    values, importance = draw(27, 5, 768, scale=2**-4), np.abs(draw(28, 768))
    for kind, *_ in kernels.weight_types():
        raw = kernels.quantize_rows(values, kind, importance)
        yield f"quantize_rows/{kind}", raw
        out = np.empty(values.shape, np.float32)
        kernels.dequantize(raw, kind, len(raw), values.shape[1], out, 0, len(raw))
        yield f"dequantize/{kind}", out


def model(path: Path, tokens: int = 21, steps: int = 4) -> Named:
    """Logits behind every id of a prompt, then of greedy steps, with both types of the cache."""
    with GGUF.open(path) as file:
        net = Transformer.load(file)
        ids = (np.arange(tokens) * 37 + 5) % net.config.vocab_size
        for dtype in ("f16", "int8"):
            cache = net.new_cache(tokens + steps, dtype)
            logits = net.forward(ids.tolist(), cache, all_logits=True)
            rows = [logits[:: max(1, tokens // 4)]]
            for _ in range(steps):
                logits = net.forward([int(np.argmax(logits[-1]))], cache)[None]
                rows.append(logits)
            yield f"{path.stem}/{dtype}", np.concatenate(rows)


def results(models: list[Path], kinds: list[str]) -> dict[str, np.ndarray]:
    """Of these instruction sets of this machine."""
    out = {}
    for isa in kinds:
        kernels.set_isa(isa)
        for part in (linear(), heads(), small(), attention(), training(), others(), *(model(path) for path in models)):
            out |= {f"{isa}/{name}": value for name, value in part}
    return out


if __name__ == "__main__":
    np.savez(sys.argv[1], **results([Path(name) for name in sys.argv[2:]], kernels.available_isas()))
