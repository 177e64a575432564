"""The table of methods, and what was left out of it and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from gangpao.model.layers import Linear
from gangpao.model.transformer import Transformer
from gangpao.tune.methods.bottleneck import put_bottlenecks
from gangpao.tune.methods.config import Kind, MethodConfig
from gangpao.tune.methods.dora import DoraLinear
from gangpao.tune.methods.lora import LoraEmbedding, LoraLinear, Switch
from gangpao.tune.methods.simple import put_bitfit, put_full, put_ia3, put_linears
from gangpao.tune.methods.targets import EMBEDDING, find_targets

Put = Callable[[Transformer, MethodConfig, Switch, int], dict[str, nn.Module]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method. put: into a model whose parameters are frozen.

    export: what can be written besides a checkpoint: "peft+gguf" adapters, a "peft" folder or a merged model, "ia3": a PEFT folder
    that is used by merging it, only a whole model ("merged"), or "none". dropout: whether it has any. trains_base: whether the
    base's own weights change.
    """

    put: Put
    trains: str
    export: Literal["peft+gguf", "peft", "ia3", "merged", "none"]
    when: str
    dropout: bool = False
    trains_base: bool = False


def put_lora(model: Transformer, config: MethodConfig, switch: Switch, seed: int) -> dict[str, nn.Module]:
    """LoRA or DoRA on the targets. Raises ValueError for DoRA on the embedding."""
    found = find_targets(model, config.targets)
    kind = DoraLinear if config.kind == "dora" else LoraLinear

    def make(name: str, linear: Linear) -> nn.Module:
        new = kind(linear, switch, rank=config.rank_of(name), scale=config.scale_of(name), dropout=config.dropout)
        new.reset(seed, name)
        return new

    linears = tuple(name for name in found if name != EMBEDDING)
    put = put_linears(model, linears, make)
    if EMBEDDING not in found:
        return put
    if config.kind == "dora":
        raise ValueError(f'targets: DoRA is for linears, {EMBEDDING} is none; kind = "lora" adapts it')
    c = model.config
    new = LoraEmbedding(
        model.model.embed_tokens, c.hidden_size, switch, vocab_size=c.vocab_size, rank=config.rank_of(EMBEDDING),
        scale=config.scale_of(EMBEDDING),
    )  # fmt: skip
    new.reset(seed, EMBEDDING)
    model.model.embed_tokens = new  # type: ignore[assignment]
    return {EMBEDDING: new, **put}


_ADAPTER = "two small matrices and a nonlinearity behind attention and MLP"
METHODS: dict[Kind, Method] = {
    "lora": Method(
        put_lora, "B A beside every linear", "peft+gguf",
        "The default: as good as full tuning on small data at a fraction of the memory.", dropout=True,
    ),
    "dora": Method(
        put_lora, "B A and the length of every row", "peft",
        "Small ranks, where LoRA falls short; a step costs more time and memory.", dropout=True,
    ),
    "full": Method(
        put_full, "every weight", "merged", "Much new knowledge, a new language, more data than the adapter has numbers.",
        trains_base=True,
    ),
    "bitfit": Method(put_bitfit, "a bias on every linear", "none", "A style from very few rows."),
    "ia3": Method(
        put_ia3, "a factor on keys, values and the MLP's inner values", "ia3", "The fewest numbers; little can be learnt."
    ),
    "adapter": Method(put_bottlenecks, _ADAPTER, "none", "To compare with the literature."),
    "parallel_adapter": Method(
        put_bottlenecks, "two small matrices and a nonlinearity beside attention and MLP", "none",
        "To compare with the literature; the best of the bottlenecks there.",
    ),
    "low_rank_adapter": Method(put_bottlenecks, f"{_ADAPTER}, each of rank 1", "none", "To compare with the literature."),
    "compacter": Method(
        put_bottlenecks, f"{_ADAPTER}, each a sum of Kronecker products", "none", "To compare with the literature."
    ),
}  # fmt: skip
LEFT_OUT = {
    "prefix": "Keys and values in front of every sequence would be needed for each document of a packed row, in training and in "
    "every answer; no merge and no GGUF file can carry them, and LoRA on k and v learns more with as many numbers.",
    "soft_prompt": "Trained embeddings in front of every document take positions away from the text, and whoever runs the model "
    "would need them; no merge and no GGUF file can carry them.",
}
