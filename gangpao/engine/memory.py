"""Is there memory for this model? Estimated from the header alone, before a byte of weights is touched.

need = packed weights + a full KV cache + work space + what Python, numpy and a tokenizer take. What the operating
system can drop at will (pages of the mapped file) does not count. A refusal names need, have and ways out.

What it gives up: the cache is counted full although its pages arrive one by one, so a load may be refused that would
have gone well for the first thousand tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from gangpao import catalog, kernels, machine
from gangpao.engine.cache import PAGE, bytes_needed, page_bytes
from gangpao.engine.config import ModelConfig
from gangpao.engine.layers.kept import KVChoice, KVType
from gangpao.engine.layers.sparse import means_bytes, rule_of
from gangpao.engine.layers.states import SPARE, slot_bytes
from gangpao.engine.transformer import CHUNK
from gangpao.formats.architectures import MARKOV
from gangpao.formats.gguf import GGUF
from gangpao.options import option

WIDEST_DEFAULT = 8192
NARROWEST_DEFAULT = 1024
# Measured, anonymous pages: Python with numpy, typer, pydantic and our modules 28 MB and some slack; the GGUF header and
# the tokenizer together 745 bytes (Qwen2.5, 151,936 entries) to 780 bytes (SmolLM2, 49,152) a vocabulary entry.
PROCESS_BYTES = 32_000_000
VOCAB_ENTRY_BYTES = 770
HEAD_ENTRY_BYTES = (
    310  # an entry of a draft head's vocabulary, which is read once and compared (measured with Qwen2.5's)
)
# A picture while it is decoded, cut and encoded: 40 million pixels of RGB twice, the pieces as floats, work space.
PICTURE_BYTES = 400_000_000


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is loaded: what decides how much memory it takes, and with how many threads it computes."""

    threads: int | None = option(None, "Threads to compute with; the physical cores if not given.", 1, 1024)
    context: int | None = option(None, "Most tokens of prompt and answer; by memory if not given.", 16, 1_048_576)
    kv: KVChoice = option(
        "f16", "KV cache type; int8 takes half the memory, int4 a quarter; auto is int8 where keys have no biases."
    )
    sparse: int = option(
        0,
        "Positions that a token looks at in a context beyond 8192, in blocks of 64 chosen by their keys; 0: all.",
        0,
        1_048_576,
    )
    draft: str | None = option(
        None,
        "What drafts for it, by name or path: a small model of the same vocabulary, or its draft head; auto is the catalog's.",
    )
    packed_cache: int = option(
        0,
        "GB of disk to keep packed weights in, with which a model starts at once the next time.",
        0,
        typed=float,
        read=lambda gigabytes: int(gigabytes * 1e9),
    )


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes a loaded model takes, by what takes them."""

    weights: int
    cache: int
    work: int
    draft: int = 0  # all of what drafts for it

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work + self.draft


def estimate(
    gguf: GGUF,
    config: ModelConfig,
    context: int,
    kv_dtype: KVType,
    *,
    float32: bool = False,
    adapters: int = 0,
    sight: int | None = None,
    draft: int = 0,
    sparse: int = 0,
) -> Need:
    """Peak memory of the model with a full cache of `context` positions. adapters: bytes of those beside it; sight: bytes of
    the encoder that it sees with, None where it does not; draft: bytes of the model that drafts for it; sparse: positions that a
    token looks at in long contexts, 0: all."""
    untied = "output.weight" in gguf.tensors
    weights, layers = adapters + (sight or 0), config.num_hidden_layers
    unread = tuple(f"blk.{i}." for i in range(layers, layers + config.draft_layers))
    for name, info in gguf.tensors.items():
        if (untied and name == "token_embd.weight") or name.startswith(unread):
            continue  # stays in the file; rows of the embedding are read as they are needed
        if len(info.shape) == 1:
            weights += info.nbytes
        else:  # of experts the matrices of all, one after the other
            *stacked, rows, cols = info.shape
            weights += math.prod(stacked) * kernels.packed_bytes("F32" if float32 else info.type, rows, cols)
    rows = PICTURE_BYTES + row_bytes(config, context) if sight is not None else 0
    return Need(weights, cache_bytes(config, context, kv_dtype, sparse=sparse), work_bytes(config) + rows, draft)


def cache_bytes(
    config: ModelConfig, positions: int, kv_dtype: KVType, context: int | None = None, *, sparse: int = 0
) -> int:
    """Bytes of a full cache, and of the means of its keys where `sparse`. context: of each sequence, if there are several."""
    return bytes_needed(config, positions, kv_dtype, context) + (means_bytes(config, positions) if sparse else 0)


def draft_bytes(
    gguf: GGUF,
    config: ModelConfig,
    context: int,
    kv_dtype: KVType,
    *,
    work: int | None = None,
    positions: int | None = None,
) -> int:
    """Bytes of what drafts for a model with sequences of `context` positions: a small model, which has one text, or a draft head
    with so many bytes of work space, which keeps something of all `positions` of the model (None: of one sequence).

    Raises ValueError for a type of cache that it cannot have.
    """
    if work is None:
        return estimate(gguf, config, min(context, config.max_position_embeddings), kv_dtype).total - PROCESS_BYTES
    need = estimate(gguf, config, positions or context, kv_dtype)
    info = gguf.tensors.get(MARKOV)
    unread = kernels.packed_bytes(info.type, *info.shape) if info else 0  # rows of it are read as they are needed
    return need.weights - unread + need.cache + work + HEAD_ENTRY_BYTES * config.vocab_size


def row_bytes(config: ModelConfig, positions: int) -> int:
    """Bytes of rows of pictures that are kept: two for each position of the cache, so that what the cache remembers of a picture is
    hardly ever without its rows."""
    return 2 * positions * config.hidden_size * np.dtype(np.float32).itemsize


def pool_tokens(config: ModelConfig, context: int, kv_dtype: KVType, batch: int, sparse: int = 0) -> int:
    """Positions for `batch` sequences at once: all their contexts, or what half of the free memory holds, at least one."""
    room = tokens_in(config, context, kv_dtype, machine.available_memory() // 2, sparse)
    return max(context, min(batch * context, room))


def tokens_in(config: ModelConfig, context: int, kv_dtype: KVType, size: int, sparse: int = 0) -> int:
    """Positions of sequences of `context` whose keys and values, recurrent states, and means where `sparse`, `size` bytes hold."""
    state = slot_bytes(config.recurrent_layers, config.delta)
    a_page = page_bytes(config, kv_dtype) + 2 * state * PAGE / context + (means_bytes(config, PAGE) if sparse else 0)
    return max(0, int((size - (SPARE + 2) * state) / a_page)) * PAGE


def work_bytes(c: ModelConfig) -> int:
    """Activations of one prefill chunk, logits, and the process itself."""
    q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    # Float rows of every buffer, the float copies that some weight types need beside the int8 ones, one embedding.
    floats = 4 * c.hidden_size + 4 * q_rows + 2 * kv_rows + 3 * c.intermediate_size
    int8 = c.hidden_size + q_rows + c.intermediate_size
    if c.row.parts.post_norms:
        floats += c.hidden_size
    if c.delta:  # in front of the recurrent layers, behind them, and a gate beside q
        floats += c.delta.width + 2 * c.delta.value_size + q_rows
        int8 += c.delta.value_size
    if c.latent:  # latents twice, what comes up from them, and values without their zeros
        low, v = c.latent.q_rank + c.latent.kv_rank, c.latent.v_dim
        floats += 3 * low + c.num_attention_heads * (c.head_dim + 2 * v)
        int8 += low + c.num_attention_heads * v
    if c.num_experts:  # hidden states of an expert's tokens, normed, its results, and their sum
        floats += 4 * c.hidden_size + c.num_experts
        int8 += c.hidden_size
    logits = 4 * c.vocab_size * np.dtype(np.float32).itemsize
    return CHUNK * (4 * floats + int8) + logits + PROCESS_BYTES + VOCAB_ENTRY_BYTES * c.vocab_size


def plan_memory(
    gguf: GGUF,
    config: ModelConfig,
    context: int | None,
    kv_dtype: KVType,
    *,
    float32: bool = False,
    adapters: int = 0,
    sight: int | None = None,
    draft: tuple[GGUF, ModelConfig, int | None] | None = None,
    sparse: int = 0,
) -> int:
    """The context to load with. A given one is taken or refused; else the widest default that fits. adapters: their bytes; sight:
    those of the encoder that it sees with, None where it does not; draft: what drafts for it, and its work space
    (draft_bytes); sparse: as for estimate.

    Raises ValueError naming need, have and ways out, or the model's own limit.
    """

    def need_of(context: int) -> Need:
        beside = draft_bytes(*draft[:2], context, kv_dtype, work=draft[2]) if draft else 0
        return estimate(
            gguf,
            config,
            context,
            kv_dtype,
            float32=float32,
            adapters=adapters,
            sight=sight,
            draft=beside,
            sparse=sparse,
        )

    rule_of(sparse)  # refused before anything is read
    limit = config.max_position_embeddings
    if context is not None and context > limit:
        raise ValueError(f"{gguf.path}: --context {context} is more than the {limit} positions this model knows")
    have = machine.available_memory()
    wanted = context or min(WIDEST_DEFAULT, limit)
    while context is None and wanted > NARROWEST_DEFAULT and need_of(wanted).total > have:
        wanted = max(NARROWEST_DEFAULT, wanted // 2)
    need = need_of(wanted)
    if need.total > have:
        raise ValueError(_refusal(gguf, config, need, have, wanted, kv_dtype))
    return wanted


def _refusal(gguf: GGUF, config: ModelConfig, need: Need, have: int, context: int, kv_dtype: KVType) -> str:
    ways = [f"no draft model, which saves {_mb(need.draft)} (--draft none)"] if need.draft else []
    fixed = need.weights + need.work + need.draft
    if have > fixed:
        room = int((have - fixed) * context / need.cache)
        if room >= 64:
            ways.append(f"a context of {2 ** int(math.log2(room))} (--context)")
    smaller: KVType = "int8" if kv_dtype == "f16" else "int4"
    if kv_dtype != smaller and (smaller == "int8" or config.head_dim % 32 == 0):
        less = bytes_needed(config, context, smaller)
        enough = "" if fixed + less <= have else ", which is not enough alone"
        ways.append(f"an {smaller} KV cache, which saves {_mb(need.cache - less)} (--kv {smaller}{enough})")
    ways.append(_smaller(need, have))
    beside = f", {_mb(need.draft)} draft model" if need.draft else ""
    return (
        f"{gguf.path}: not enough memory: it needs {_mb(need.total)} ({_mb(need.weights)} weights, {_mb(need.cache)} "
        f"KV cache for {context} tokens, {_mb(need.work)} work space{beside}) and {_mb(have)} are available. "
        f"Ways out: {'; '.join(ways)}; or close other programs"
    )


def _smaller(need: Need, have: int) -> str:
    """The largest catalog model that fits and is smaller than this one, by name."""
    name = catalog.largest_fitting(have)
    if name is None or catalog.memory_needed(catalog.entry(name)) >= need.total:
        return "a smaller or more strongly quantized model (`gangpao list`)"
    return f"a smaller model: {name}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
