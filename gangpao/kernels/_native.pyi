# Types of the native module; what each kernel computes is in reference.py, how objects are laid out in src/runtime.h.
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]  # of bfloat16
LowRankSource = (
    tuple[npt.NDArray[np.int8], npt.NDArray[np.int8], Floats, Floats] | tuple[Floats, Floats, Floats, Floats]
)

class Array:
    """Float rows [rows, cols]."""

    def __init__(self, rows: int, cols: int) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    def numpy(self) -> npt.NDArray[np.float32]: ...
    def part(self, row: int, rows: int, col: int, cols: int) -> Array:
        """Rows and columns of it, in the same memory."""

class Arena:
    """Memory that packed matrices share."""

    def __init__(self) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def fill(self, file: int, nbytes: int) -> None:
        """Hand out from now on what another arena wrote into an open file of so many bytes; `pack` then packs nothing."""

    def pieces(self) -> list[npt.NDArray[np.uint8]]:
        """Everything that it handed out, in order, as read-only bytes."""

class Matrix:
    """One packed matrix [rows, cols]."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def bytes(self) -> bytes: ...
    def set_bias(self, bias: npt.NDArray[np.float32]) -> None: ...

class Linear:
    """Matrices over the same input, their outputs side by side."""

    def __init__(self, parts: Sequence[Matrix]) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def has_planes(self) -> bool:
        """Whether it is one matrix, in two planes."""

class LowRank:
    """What one adapter adds to one layer, panel_factor (B (rank_factor (A x))): for each of its matrices A [rank, cols] and
    B [rows, rank], all of int8 or all of float32, a factor for each rank and one for each 16 rows; or None.
    """

    def __init__(self, layer: Linear, sources: Sequence[LowRankSource | None], arena: Arena) -> None: ...
    @property
    def ranks(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class LowRankTable:
    """What adapters add to one layer, by the number of the adapter."""

    def __init__(self) -> None: ...
    def set(self, adapter: int, low_rank: LowRank | None) -> None: ...

class AdapterRuns:
    """Which rows of a step use which adapter with which scale; a row of several runs gets all, in their order."""

    def __init__(self) -> None: ...
    def clear(self) -> None: ...
    def add(self, adapter: int, begin: int, end: int, scale: float = 1.0) -> None: ...
    def __len__(self) -> int: ...

class Activation:
    """Input of the `readers` for up to `capacity` tokens: int8 in the groupings that they need, floats if they or the caller do."""

    def __init__(self, capacity: int, cols: int, readers: Sequence[Linear], keep_float: bool = False) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def has_blocks(self) -> bool:
        """Whether it has int8 values in groups of 32; else they are in groups of 256, if it has any."""

    @property
    def nbytes(self) -> int: ...
    def floats(self) -> npt.NDArray[np.float32]: ...
    def dequantized(self, group: int) -> npt.NDArray[np.float32]: ...

PAGE: int

class Cache:
    """Pages of PAGE positions, with the keys and values of all layers, whose numbers have 16 (f16), 8 or 4 bits."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, num_pages: int, key_bits: int, value_bits: int
    ) -> None: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def copy_page(self, source: int, target: int) -> None: ...
    def page(self, page: int) -> npt.NDArray[np.uint8]:
        """The bytes of a page, in place."""
    @staticmethod
    def page_bytes(layers: int, kv_heads: int, head_dim: int, key_bits: int, value_bits: int) -> int: ...

class PageMeans:
    """Means of the keys of a cache's whole pages, made when they are first asked for; `forget` a page whose keys change."""

    def __init__(self, cache: Cache) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def forget(self, page: int) -> None: ...
    @staticmethod
    def page_bytes(layers: int, kv_heads: int, head_dim: int) -> int: ...

class SparseRule:
    """From position `dense` on a token looks at the first pages, at the last `near` ones, and at the `chosen` best between."""

    def __init__(self, dense: int, first: int, near: int, chosen: int) -> None: ...

class Rows:
    """The tokens of one step: `add` puts n of a sequence with these pages, at positions start, start + 1, ..."""

    def __init__(self) -> None: ...
    def clear(self) -> None: ...
    def add(self, pages: Sequence[int], start: int, n: int) -> None: ...
    def __len__(self) -> int: ...

class AttentionSpec: ...

def attention_spec(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rope_dim: int,
    scale: float,
    eps: float,
    q_norm: npt.NDArray[np.float32] | None = None,
    k_norm: npt.NDArray[np.float32] | None = None,
    window: int = 0,
) -> AttentionSpec:
    """window: positions that a token sees, itself among them; 0: all."""

def pack(
    raw: npt.NDArray[np.uint8],
    type: str,
    rows: int,
    cols: int,
    order: npt.NDArray[np.int32] | None,
    arena: Arena,
    planes: bool = False,
) -> Matrix:
    """Panels of these rows. planes: upper and lower bits apart, where the type has them (Q8_0, Q6_K; src/panel.h)."""

class Candidates:
    """The largest products of a matrix in two planes without reading all of it (src/candidates.h)."""

    def __init__(self, head: Linear) -> None: ...
    @property
    def panels(self) -> int: ...
    @property
    def sound(self) -> bool:
        """Whether the matrix has numbers only; if not, everything is computed."""

    def learn(self, x: Activation) -> None:
        """The rows of x, at most 8, become the directions in which activations are expected."""

    def bytes_of(self, panels: int) -> int:
        """What a search reads of the matrix that takes all bits of so many panels."""

def dequantize(
    raw: npt.NDArray[np.uint8],
    type: str,
    rows: int,
    cols: int,
    out: npt.NDArray[np.float32],
    begin: int,
    end: int,
    order: npt.NDArray[np.int32] | None = None,
    parallel: bool = True,
) -> None:
    """Rows [begin, end) of the GGUF blocks of a tensor [rows, cols] as floats; with an order, row i is row order[i] of it.

    parallel: with the threads of `set_num_threads`, unless another call uses them. May be called from several threads.
    """

def quantize_rows(
    values: npt.NDArray[np.float32], type: str, importance: npt.NDArray[np.float32] | None = None, parallel: bool = True
) -> npt.NDArray[np.uint8]:
    """Rows [R, C] as blocks of a GGUF type, uint8 [R, row bytes]: the bytes of formats.blocks.quantize.

    importance: mean squared activation of every column [C]. parallel: with the threads of `set_num_threads`, unless another call
    uses them. Raises ValueError for values that the type cannot hold ("row 3: ...").
    """

def packed_bytes(type: str, rows: int, cols: int) -> int: ...
def weight_types() -> list[tuple[str, int, int, str, str, int]]:
    """Name, weights and bytes of a block, what a stored value is, style of the header and zero point of all that `pack` takes."""

def linear(
    w: Linear,
    x: Activation,
    out: Array,
    add: bool = False,
    scale: float = 1.0,
    table: LowRankTable | None = None,
    runs: AdapterRuns | None = None,
) -> None: ...
def linear_largest(
    candidates: Candidates, x: Activation, out: Array, wanted: Sequence[tuple[int, npt.NDArray[np.int32]]]
) -> int:
    """Products of x in out: as `linear` has them for the known ids and wherever one may be among the so many largest of the
    others, -inf elsewhere. Returns for how many panels of 16 rows all bits were read. wanted: for each row of x (count, ids)."""

def rmsnorm(x: Array, n: int, weight: Array, eps: float, out: Activation) -> None: ...
def quantize(x: Array, n: int, out: Activation) -> None: ...
def swiglu(gate_up: Array, n: int, out: Activation) -> None: ...
def layernorm(x: Array, n: int, weight: Array, bias: Array, eps: float, out: Activation) -> None: ...
def gelu(x: Array, n: int, kind: str, out: Activation) -> None:
    """kind: gelu (by erf), gelu_tanh or quick_gelu."""

def attend_all(q: Array, k: Array, v: Array, heads: int, scale: float, window: int, out: Array) -> None:
    """Every row of q over all rows of k and v, heads side by side in columns; window: over those of its own group of so many rows
    only, 0: over all."""

def exp_totals(
    x: Array, n: int, coarse: npt.NDArray[np.float64], fine: npt.NDArray[np.float64]
) -> list[tuple[float, int]]: ...
def rope_append(
    qkv: Array, rows: Rows, spec: AttentionSpec, cos: Array, sin: Array, cache: Cache, layer: int
) -> None: ...
def attend(
    qkv: Array, rows: Rows, spec: AttentionSpec, cache: Cache, layer: int, result: Array, out: Activation
) -> None: ...
def attend_sparse(
    qkv: Array,
    rows: Rows,
    spec: AttentionSpec,
    cache: Cache,
    layer: int,
    means: PageMeans,
    rule: SparseRule,
    result: Array,
    out: Activation,
) -> None:
    """Attention in which a token far into a long context looks at some pages, chosen by the means of their keys."""

class DeltaSpec: ...

def delta_spec(
    k_heads: int,
    v_heads: int,
    k_dim: int,
    v_dim: int,
    filter: npt.NDArray[np.float32],
    a: npt.NDArray[np.float32],
    dt: npt.NDArray[np.float32],
    norm: npt.NDArray[np.float32],
    eps: float,
) -> DeltaSpec:
    """One layer of Gated DeltaNet. filter [taps, channels], the newest token last; a and dt [v_heads], norm [v_dim]."""

class States:
    """Recurrent states of texts in slots, each with all layers. Memory is zero until it is written."""

    def __init__(
        self, layers: int, k_heads: int, v_heads: int, k_dim: int, v_dim: int, taps: int, num_slots: int
    ) -> None: ...
    @property
    def num_slots(self) -> int: ...
    def slot(self, slot: int) -> npt.NDArray[np.uint8]:
        """The bytes of a slot, in place."""
    @property
    def nbytes(self) -> int: ...
    @staticmethod
    def slot_bytes(layers: int, k_heads: int, v_heads: int, k_dim: int, v_dim: int, taps: int) -> int: ...

class StateRows:
    """The tokens of one step, text after text."""

    def __init__(self) -> None: ...
    def clear(self) -> None: ...
    def add(
        self,
        begin: int,
        n: int,
        source: int,
        commits: Sequence[tuple[int, int]],
        log: Array | None = None,
        log_rows: int = 0,
        logged: int = 0,
    ) -> None:
        """n tokens in rows from `begin` on, behind the state in slot `source` (-1: none) and behind `logged` rows of the log,
        layer i's from i * log_rows on. commits: (tokens, slot), the state behind so many of logged and new is kept there; the last
        is the text's own, and tokens behind it change no state."""

    def __len__(self) -> int: ...

def delta_net(
    x: Array, rows: StateRows, spec: DeltaSpec, states: States, layer: int, result: Array, out: Activation
) -> None: ...
def geglu(gate_up: Array, n: int, out: Activation) -> None:
    """gelu(gate) * up; gate_up is overwritten."""

def add_normed(x: Array, n: int, weight: Array, eps: float, out: Array) -> None:
    """out += rmsnorm(x) * weight; x is overwritten."""

def sigmoid_gate(x: Array, gates: Array, column: int, n: int, out: Activation) -> None: ...
def swiglu_bf16(gate: Bits, up: Bits, out: Bits) -> None:
    """out = silu(gate) * up; these six are of training: bfloat16 as bits, in the thread that calls."""

def swiglu_back_bf16(gate: Bits, up: Bits, d: Bits, d_gate: Bits, d_up: Bits) -> None:
    """The gradients of its inputs, where d is that of its result."""

def rmsnorm_bf16(x: Bits, weight: Floats, eps: float, out: Bits, inverse: Floats) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight over rows of as many numbers as weight has, a multiple of 16; inverse: the factor
    1 / sqrt(...) of every row, for the way back."""

def rmsnorm_back_bf16(x: Bits, d: Bits, weight: Floats, inverse: Floats, dx: Bits, d_weight: Floats | None) -> None: ...
def turn_bf16(x: Bits, cos: Floats, sin: Floats, scale: float, out: Floats) -> None:
    """x [B, T, K, G, H] times scale, pairs (i, i + H / 2) turned by the angles [B or 1, ..., T, H / 2], to out [B, K, T, G, H]."""

def turn_back_bf16(d: Bits, cos: Floats, sin: Floats, scale: float, out: Bits) -> None:
    """The gradient [B, T, K, G, H] of what was turned, where d [B, K, T, G, H] is that of the result."""

def set_num_threads(n: int) -> None: ...
def num_threads() -> int: ...
def isa_name() -> str: ...
def set_isa(name: str) -> None: ...
def available_isas() -> list[str]: ...
def read_bandwidth(seconds: float = 0.3) -> float: ...
def multiply_add_peak(seconds: float = 0.3) -> float:
    """Multiply-adds of 4-bit weights, 1e9 a second, of all threads with everything in registers and the nearest cache."""

def count_time(on: bool) -> None:
    """Count the time that is spent in kernels from now on, or no more; the counters begin at 0."""

def counted_time() -> tuple[int, int]:
    """Nanoseconds in kernels and the number of their calls since counting began."""
