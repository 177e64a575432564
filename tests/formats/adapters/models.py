"""A tiny Llama in transformers, with its weights under Hugging Face's names, and adapters that peft made for it."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gangpao.formats.adapters import Adapter

IDS = torch.tensor([[1, 5, 9, 2, 33, 60, 7, 7, 41, 3]])
LAYERS = 2


def tiny(seed: int = 0, **changes: Any) -> Any:
    """A LlamaForCausalLM with random weights, float32; heads of width 8, and 12 rows of KV."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()


def with_peft(model: Any, seed: int = 1, **settings: Any) -> Any:
    """A copy of the model with a random adapter of peft, none of whose matrices is zero."""
    import peft

    torch.manual_seed(seed)
    settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if ".lora_A." in name or ".lora_B." in name or ".lora_embedding_" in name:
                p.add_(torch.randn_like(p) * 0.1)
            elif ".lora_magnitude_vector" in name:
                p.mul_(1 + 0.3 * torch.rand_like(p))
    return adapted


def save(adapted: Any, folder: Path) -> Path:
    """peft's own folder of an adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says that it saves embedding layers, too
        adapted.save_pretrained(folder)
    return folder


def load(model: Any, folder: Path) -> Any:
    """A copy of the model with the adapter of a folder, by peft."""
    import peft

    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """[T, V]."""
    return model(IDS).logits[0]


def merged_by_hand(model: Any, adapter: Adapter) -> Any:
    """A copy of the model with the adapter's definition put into its weights, the head untied."""
    out = copy.deepcopy(model)
    out.lm_head.weight = torch.nn.Parameter(out.lm_head.weight.detach().clone())
    state = dict(out.named_parameters())
    with torch.no_grad():
        for name, values in adapter.whole.items():
            state[name].copy_(torch.from_numpy(values))
        for name, part in adapter.parts.items():
            weight = state[f"{name}.weight"]
            weight.copy_(torch.from_numpy(part.applied(weight.numpy())))
    return out


def random_adapter(
    model: Any, targets: tuple[str, ...], *, rank: int = 4, scale: float = 0.7, seed: int = 3
) -> Adapter:
    """An adapter on every module whose name ends with one of `targets`."""
    from gangpao.formats.adapters import Part

    rng = np.random.default_rng(seed)
    parts = {}
    for name, p in model.named_parameters():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            a, b = (rng.normal(0, 0.15, shape).astype(np.float32) for shape in ((rank, p.shape[1]), (p.shape[0], rank)))
            parts[module] = Part(a, b, scale)
    return Adapter(parts, alpha=scale * rank, rank=rank)
