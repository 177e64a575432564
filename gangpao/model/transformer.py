"""The one definition of the model, top to bottom: ids go in, final hidden states come out, `logits` turns them into words.

    h = embed(ids) * scale_emb
    h = h + residual_scale * attention(norm(h));  h = h + residual_scale * mlp(norm(h))      for every layer
    logits = head(norm(h) * logit_scale)

MiniCPM is Llama with these three numbers (arXiv:2404.06395, section 4). Pretraining, tuning, distillation and GPU inference
all use this forward; what a sequence has seen is an argument (`cache`), never an attribute. Hidden states are the result,
not logits, because training never wants all [T, V] of those at once: `train` multiplies by the head in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gangpao.model import cpu
from gangpao.model.config import ModelConfig
from gangpao.model.gated_delta import GatedDeltaNet, new_state
from gangpao.model.init import Rules, initialize
from gangpao.model.layers import (
    MLP,
    Attention,
    LatentAttention,
    LayerCache,
    Linear,
    RMSNorm,
    angles,
    inverse_frequencies,
    local_angles,
    splice,
    windowed,
)
from gangpao.model.moe import MoE


class Output(NamedTuple):
    """Hidden states [B, T, D], normed and scaled, ready for the head; the experts' balancing loss, None without experts."""

    hidden: Tensor
    balance: Tensor | None


class Block(nn.Module):
    """One layer: attention, or Gated DeltaNet, then an MLP."""

    def __init__(self, c: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.kind = c.kinds[layer]
        if self.kind == "linear_attention":
            self.linear_attn = GatedDeltaNet(c)
        else:
            self.self_attn = LatentAttention(c) if c.mla else Attention(c, layer)
        self.mlp = MoE(c) if c.moe else MLP(c)
        norm = partial(RMSNorm, c.hidden_size, c.rms_norm_eps, centred=c.centred_norms)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.post_norms = c.post_norms
        if c.post_norms:
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()
        self.residual_scale = c.residual_scale

    def forward(
        self, h_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor | None]:
        x = self.input_layernorm(h_BTD)
        if hasattr(self, "linear_attn"):
            y = self.linear_attn(x, mask, cache)
        else:
            y = self.self_attn(x, cos, sin, mask, cache)
        if self.post_norms:
            y = self.post_attention_layernorm(y)
        h = torch.add(h_BTD, y, alpha=self.residual_scale)
        y = self.mlp(self.pre_feedforward_layernorm(h) if self.post_norms else self.post_attention_layernorm(h))
        y, balance = y if isinstance(y, tuple) else (y, None)
        if self.post_norms:
            y = self.post_feedforward_layernorm(y)
        return torch.add(h, y, alpha=self.residual_scale), balance


class Decoder(nn.Module):
    """Everything but the head, under the name that Hugging Face gives it."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps, centred=c.centred_norms)


class Transformer(nn.Module):
    """A model with parameters under Hugging Face's names. Build it with `build`, or on the meta device for counting."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    @classmethod
    def build(
        cls, config: ModelConfig, *, seed: int = 0, device: str = "cpu", rules: Rules | None = None
    ) -> Transformer:
        """A new model with random weights by the rules of its configuration and `rules` over them, the same for the same seed."""
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device=device)
        model.tie()
        initialize(model, config, seed, rules)
        return model

    def tie(self) -> None:
        """Make the head the embedding where the configuration says so (again after to_empty, which parts them)."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        ids_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        positions_3BT: Tensor | None = None,
        caches: list[LayerCache] | None = None,
        rows: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> Output:
        """Hidden states after every id.

        documents_BT: number of the document that each id belongs to, for packed rows: nothing attends across a border, and
        positions begin anew. positions_3BT: time, row and column of each id, where a model with mrope_section sees pictures;
        without it all three are the place in the text. caches: from `new_cache`; the ids go behind what is there. rows: places in
        the flattened ids, int [N], and what stands there instead of their embeddings, [N, D], unscaled (pictures). dtype: of the
        computation, else that of the weights. recompute: keep only the input of each layer for the backward pass.
        """
        c = self.config
        past = caches[0].length if caches else 0
        positions, mask = layout(ids_BT, documents_BT, past)
        inverse, factor = inverse_frequencies(c, caches[0].capacity if caches else ids_BT.shape[1])
        if positions_3BT is not None:
            cos, sin = angles(inverse, factor, positions_3BT, c.mrope_section)
        elif documents_BT is None:
            cos, sin = angles(inverse, factor, positions)
        else:  # many rows share few positions
            table = angles(inverse, factor, torch.arange(ids_BT.shape[1], device=ids_BT.device)[None])
            cos, sin = (t[0, 0, positions][:, None] for t in table)
        h = self.model.embed_tokens(ids_BT)
        dtype = dtype or h.dtype
        scaled = h.to(torch.promote_types(h.dtype, dtype)) * c.embedding_scale  # the product in the wider of both
        h = scaled.to(dtype)
        if rows is not None:
            h = splice(h, *rows)
        balances = []
        views = {"full_attention": (cos, sin, mask), "linear_attention": (cos, sin, mask)}
        if c.parts.window:
            views["sliding_attention"] = self._local_view(positions, mask, past)
        for i, layer in enumerate(cast(Iterable[Block], self.model.layers)):
            if recompute and torch.is_grad_enabled():
                h, balance = checkpoint(cpu.keeping(layer), h, *views[layer.kind], None, use_reentrant=False)
            else:
                h, balance = layer(h, *views[layer.kind], caches[i] if caches else None)
            balances += [] if balance is None else [balance]
        h = self.model.norm(h) * c.logit_scale
        return Output(h, torch.stack(balances).mean() if balances else None)

    def _local_view(self, positions_BT: Tensor, mask: Tensor | None, past: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cosine, sine and mask of layers that see a window."""
        cos, sin = local_angles(self.config, positions_BT)
        assert self.config.sliding_window is not None
        return cos, sin, windowed(mask, positions_BT.shape[1], past, self.config.sliding_window)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, float32 [..., V]."""
        return self.lm_head(hidden).float()

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> list[LayerCache]:
        """Empty caches for `capacity` positions."""
        c, weight = self.config, self.model.norm.weight
        key_dim = c.mla.qk_nope_head_dim + c.mla.qk_rope_head_dim if c.mla else c.head_dim
        value_dim = c.mla.v_head_dim if c.mla else c.head_dim

        def zeros(width: int) -> Tensor:
            shape = (batch, c.num_key_value_heads, capacity, width)
            return torch.zeros(shape, dtype=dtype or weight.dtype, device=weight.device)

        def one(kind: str) -> LayerCache:
            if kind != "linear_attention":
                return LayerCache(zeros(key_dim), zeros(value_dim))
            assert c.delta is not None
            return new_state(c.delta, batch, capacity, weight)

        return [one(kind) for kind in c.kinds]


def layout(ids_BT: Tensor, documents_BT: Tensor | None, past: int) -> tuple[Tensor, Tensor | None]:
    """Positions [B, T] (or [1, T]) and the mask [B, 1, T, S] of what each id may see (None: plainly causal).

    Documents are runs of equal numbers. Behind a cache of `past` positions everything cached is visible.
    """
    time = ids_BT.shape[1]
    steps = torch.arange(time, device=ids_BT.device)
    if documents_BT is not None:
        assert past == 0, "documents and a cache do not go together"
        first = torch.ones_like(documents_BT, dtype=torch.bool)
        first[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        starts = torch.where(first, steps, 0).cummax(dim=1).values
        causal = steps[:, None] >= steps[None, :]
        same = starts[:, :, None] == starts[:, None, :]
        return steps - starts, (same & causal)[:, None]
    positions = (steps + past)[None]  # the same for every row
    if past == 0 or time == 1:
        return positions, None
    seen = torch.arange(past + time, device=ids_BT.device)
    return positions, (seen[None, :] <= steps[:, None] + past)[None, None]
