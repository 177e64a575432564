"""Is there memory for this model? Estimated from the header alone, before a byte of weights is touched.

need = packed weights + a full KV cache + work space + what Python, numpy and a tokenizer take. What the operating
system can drop at will (pages of the mapped file) does not count. A refusal names need, have and ways out.

What it gives up: the cache is counted full although its pages arrive one by one, so a load may be refused that would
have gone well for the first thousand tokens.
"""

import math
from dataclasses import dataclass

from gangpao.engine.cache import KVCache, KVType
from gangpao.engine.config import ModelConfig
from gangpao.engine.gguf import GGUF
from gangpao.engine.transformer import CHUNK, LOGIT_ROWS

# Packed bytes over file bytes; panels keep K-quant scales wider (kernels/src/panel.h), the others keep their size.
PACKED_RATIO = {"Q2_K": 1.01, "Q3_K": 1.06, "Q4_K": 1.03, "Q5_K": 1.03, "Q6_K": 1.02, "TQ1_0": 1.6, "TQ2_0": 1.3}
WIDEST_DEFAULT = 8192
NARROWEST_DEFAULT = 1024
# Python with numpy and our modules is 60 MB; a vocabulary entry costs about 0.6 KB in the tokenizer with its merges.
PROCESS_BYTES = 60_000_000
VOCAB_ENTRY_BYTES = 600


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes a loaded model takes, by what takes them."""

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work


def estimate(gguf: GGUF, config: ModelConfig, context: int, kv_dtype: KVType) -> Need:
    """Peak memory of the model with a full cache of `context` positions."""
    untied = "output.weight" in gguf.tensors
    weights = 0.0
    for name, info in gguf.tensors.items():
        if untied and name == "token_embd.weight":
            continue  # stays in the file; rows are read as they are needed
        weights += info.nbytes * PACKED_RATIO.get(info.type, 1.0)
    return Need(int(weights), KVCache.bytes_needed(config, context, kv_dtype), work_bytes(config))


def work_bytes(c: ModelConfig) -> int:
    """Activations of one prefill chunk, logits, and the process itself."""
    q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    floats = 2 * c.hidden_size + 2 * q_rows + 2 * kv_rows + 2 * c.intermediate_size
    int8 = c.hidden_size + q_rows + c.intermediate_size
    logits = 4 * c.vocab_size * 4
    assert LOGIT_ROWS >= 1
    return CHUNK * (4 * floats + int8) + logits + PROCESS_BYTES + VOCAB_ENTRY_BYTES * c.vocab_size


def admit(gguf: GGUF, config: ModelConfig, context: int | None, kv_dtype: KVType) -> int:
    """The context to load with. A given one is taken or refused; else the widest default that fits.

    Raises ValueError naming need, have and ways out, or the model's own limit.
    """
    from gangpao import machine

    limit = config.max_position_embeddings
    if context is not None and context > limit:
        raise ValueError(f"{gguf.path}: a context of {context} is more than the {limit} positions this model knows")
    have = machine.available_memory()
    wanted = context or min(WIDEST_DEFAULT, limit)
    while context is None and wanted > NARROWEST_DEFAULT and estimate(gguf, config, wanted, kv_dtype).total > have:
        wanted = max(NARROWEST_DEFAULT, wanted // 2)
    need = estimate(gguf, config, wanted, kv_dtype)
    if need.total > have:
        raise ValueError(_refusal(gguf, config, need, have, wanted, kv_dtype))
    return wanted


def _refusal(gguf: GGUF, config: ModelConfig, need: Need, have: int, context: int, kv_dtype: KVType) -> str:
    ways = []
    fixed = need.weights + need.work
    if have > fixed:
        room = int((have - fixed) * context / need.cache)
        if room >= 64:
            ways.append(f"a context of {2 ** int(math.log2(room))} (--context)")
    if kv_dtype == "f16":
        int8 = KVCache.bytes_needed(config, context, "int8")
        enough = "" if fixed + int8 <= have else ", which is not enough alone"
        ways.append(f"an int8 KV cache, which saves {_mb(need.cache - int8)} (--kv int8{enough})")
    ways.append(_smaller(need, have))
    return (
        f"{gguf.path}: not enough memory: it needs {_mb(need.total)} ({_mb(need.weights)} weights, {_mb(need.cache)} "
        f"KV cache for {context} tokens, {_mb(need.work)} work space) and {_mb(have)} are available. "
        f"Ways out: {'; '.join(ways)}; or close other programs"
    )


def _smaller(need: Need, have: int) -> str:
    """The largest catalog model whose file would fit."""
    from gangpao import catalog

    raise NotImplementedError(catalog, need, have)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
