"""What a shape costs, from its configuration alone: parameters by group, FLOPs and KV bytes a token, memory for each use.

Pure arithmetic without torch; a test counts the parameters of real modules on the meta device and finds the same.
FLOPs: two for a multiply-add of every weight a token meets (embedding rows are looked up, not multiplied), and
4 * heads * width * positions seen for attention; the backward pass costs twice the forward (Kaplan, arXiv:2001.08361).
"""

from __future__ import annotations

from dataclasses import dataclass

from gangpao.model.config import ModelConfig

GRADIENT_STATES = 4 + 4 + 8  # bytes of float32 weight, gradient and AdamW's two moments
LORA_RANK = 8
LORA_MODULES = ("q_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters by group. `head` is 0 when it is tied to the embedding; `active` is what one token meets (of experts: top-k).
    Gated DeltaNet counts as attention."""

    embedding: int
    head: int
    attention: int
    mlp: int
    router: int
    norms: int
    active: int

    @property
    def non_embedding(self) -> int:
        """The N of scaling laws: everything but embedding and head."""
        return self.attention + self.mlp + self.router + self.norms

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.non_embedding


def parameters(c: ModelConfig) -> Parameters:
    """Exact counts."""
    layers, d = c.num_hidden_layers, c.hidden_size
    one_mlp = 3 * d * c.intermediate_size
    experts, chosen = (c.moe.num_experts, c.moe.num_experts_per_tok) if c.moe else (1, 1)
    attention, inner_norms = (sum(column) for column in zip(*(_mixer(c, kind) for kind in c.kinds), strict=True))
    router = layers * d * c.moe.num_experts if c.moe else 0
    norms = layers * (4 if c.post_norms else 2) * d + inner_norms + d
    embedding = c.vocab_size * d
    return Parameters(
        embedding=embedding,
        head=0 if c.tie_word_embeddings else embedding,
        attention=attention,
        mlp=layers * experts * one_mlp,
        router=router,
        norms=norms,
        active=attention + layers * chosen * one_mlp + router + norms + embedding,  # the head is always multiplied
    )


def _mixer(c: ModelConfig, kind: str) -> tuple[int, int]:
    """What mixes tokens in a layer of that kind: weights and biases, and the norm weights inside it."""
    if kind != "linear_attention":
        return _attention(c)
    assert c.delta is not None
    s, heads = c.delta, c.delta.linear_num_value_heads
    into, out = s.channels + s.value_size + 2 * heads, s.value_size
    return c.hidden_size * (into + out) + s.channels * s.linear_conv_kernel_dim + 2 * heads, s.linear_value_head_dim


def _attention(c: ModelConfig) -> tuple[int, int]:
    """Weights and biases of one layer's attention, and the norm weights inside it."""
    d, n, k, h = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
    if c.mla:
        m = c.mla
        key = m.qk_nope_head_dim + m.qk_rope_head_dim
        weights = d * m.q_lora_rank + m.q_lora_rank * n * key + d * (m.kv_lora_rank + m.qk_rope_head_dim)
        weights += m.kv_lora_rank * n * (m.qk_nope_head_dim + m.v_head_dim) + n * m.v_head_dim * d
        return weights, m.q_lora_rank + m.kv_lora_rank
    biases = (n + 2 * k) * h if c.attention_bias else 0
    gates = d * n * h if c.attention_gate else 0
    return 2 * d * (n + k) * h + biases + gates, 2 * h if c.qk_norm else 0


def flops_per_token(c: ModelConfig, context: int, *, training: bool = False) -> float:
    """FLOPs of one token at a causal context of this many positions (the average sees half of them)."""
    key, value = _widths(c)
    attention = 2 * c.num_attention_heads * (key + value) * (context + 1) / 2 * c.attention_layers
    forward = 2 * parameters(c).active + attention + state_flops(c)
    return forward * (3 if training else 1)


def state_flops(c: ModelConfig) -> float:
    """FLOPs of one token in the states of all recurrent layers: every value decays, is read twice and written once."""
    if c.delta is None:
        return 0.0
    return 7.0 * c.delta.value_size * c.delta.linear_key_head_dim * (c.num_hidden_layers - c.attention_layers)


def state_bytes(c: ModelConfig) -> int:
    """Bytes, in float32, of what all recurrent layers keep of a text of any length: states, and tails of convolutions."""
    if c.delta is None:
        return 0
    tail = (c.delta.linear_conv_kernel_dim - 1) * c.delta.channels
    return 4 * (c.num_hidden_layers - c.attention_layers) * (c.delta.value_size * c.delta.linear_key_head_dim + tail)


def _widths(c: ModelConfig) -> tuple[int, int]:
    """Widths of a key and of a value head."""
    return (c.mla.qk_nope_head_dim + c.mla.qk_rope_head_dim, c.mla.v_head_dim) if c.mla else (c.head_dim, c.head_dim)


def kv_bytes_per_token(c: ModelConfig, bytes_per_value: float = 2.0) -> int:
    """Bytes that one position takes in the cache. Latent attention can keep its latent and one rotated key."""
    if c.mla:
        values = c.mla.kv_lora_rank + c.mla.qk_rope_head_dim
    else:
        values = 2 * c.num_key_value_heads * c.head_dim
    return int(c.attention_layers * values * bytes_per_value)


def lora_parameters(c: ModelConfig, rank: int = LORA_RANK) -> int:
    """Adapter weights on q_proj and v_proj of every layer; 2,949,120 for MiniCPM-2B at rank 8, as PEFT prints it."""
    d, n, k, h = c.hidden_size, c.num_attention_heads * (1 + c.attention_gate), c.num_key_value_heads, c.head_dim
    return c.attention_layers * rank * ((d + n * h) + (d + k * h))


def activation_bytes(c: ModelConfig, tokens: int, *, recompute: bool) -> int:
    """Bytes kept for the backward pass in bf16: all inputs of matrix products and norms, or one input a layer and one
    layer's worth when layers are recomputed. Logits are cut into pieces and do not count."""
    d = c.hidden_size
    key, value = _widths(c)
    heads = c.num_attention_heads * (2 * key + value) + c.num_key_value_heads * (key + value)
    if (s := c.delta) is not None:  # the wider kind of layer; a state is kept for each chunk of 64 tokens
        heads = max(heads, 2 * s.channels + 3 * s.value_size + 2 * s.value_size * s.linear_key_head_dim // 64)
    inside = 4 * d + heads + 4 * c.intermediate_size * (c.moe.num_experts_per_tok if c.moe else 1)
    return 2 * tokens * (c.num_hidden_layers * d + inside if recompute else c.num_hidden_layers * (d + inside))


def memory(c: ModelConfig, *, context: int, tokens: int) -> dict[str, int]:
    """Bytes for each use. Serving: weights and one full cache. Training: float32 states and the activations of `tokens`
    tokens with recomputation. LoRA: frozen 16-bit (or 4-bit) weights beside the states of its adapters."""
    n, kv = parameters(c).total, kv_bytes_per_token(c) * context + state_bytes(c)
    lora = lora_parameters(c) * GRADIENT_STATES if not c.mla else 0
    activations = activation_bytes(c, tokens, recompute=True)
    out = {
        "serve_bf16": 2 * n + kv,
        "serve_q8_0": int(n * 8.5 / 8) + kv,
        "serve_q4_0": int(n * 4.5 / 8) + kv,
        "train_adamw": GRADIENT_STATES * n + activations,
    }
    if lora:
        out |= {"tune_lora_bf16": 2 * n + lora + activations, "tune_lora_4bit": int(n * 4.5 / 8) + lora + activations}
    return out
