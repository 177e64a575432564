"""The same small model in transformers, with peft's adapters in it, and in ours with ours; values go from one to the other."""

import warnings

import peft
import torch
from torch.nn import functional as F

from gangpao.model.config import to_hf
from gangpao.model.transformer import Transformer
from gangpao.tune.methods import MethodConfig, apply
from tests.model.tiny import tiny

IDS = torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(1))


def models(kind="llama", **fields):
    """(ours, transformers') with the same weights; norms and biases are not 1 and 0."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ours = Transformer.build(tiny(kind, **fields), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in ours.parameters():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    data = to_hf(ours.config)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**data), attn_implementation="eager")
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing
    assert not unexpected
    return ours, theirs


def pair(config: MethodConfig, kind="llama", theirs=None, **fields):
    """(Applied, peft's model): adapters with the same values, B and lengths not as they begin."""
    ours, other = models(kind, **fields)
    applied = apply(ours, config, seed=2)
    with warnings.catch_warnings():  # peft 0.21.2 asks transformers 5.23 for what that gave another name
        warnings.simplefilter("ignore")
        peer = peft.get_peft_model(other, theirs or peft_config(config))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in applied.trainable.values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
        for name, p in named(peer).items():
            p.copy_(applied.trainable[name].view_as(p))
    assert set(named(peer)) == set(applied.trainable)
    return applied, peer


def peft_config(c: MethodConfig):
    targets = list(c.targets) if isinstance(c.targets, tuple) else c.targets
    return peft.LoraConfig(
        r=c.rank, lora_alpha=c.alpha or c.rank, use_rslora=c.rslora, use_dora=c.kind == "dora", target_modules=targets,
        rank_pattern=c.rank_pattern, alpha_pattern=c.alpha_pattern, task_type="CAUSAL_LM",
    )  # fmt: skip


ENDINGS = {
    "lora_A.default.weight": "lora_A", "lora_B.default.weight": "lora_B", "lora_magnitude_vector.default.weight": "magnitude",
    "lora_embedding_A.default": "lora_embedding_A", "lora_embedding_B.default": "lora_embedding_B", "ia3_l.default": "factors",
}  # fmt: skip


def named(peer):
    """What peft trains, under our names."""
    out = {}
    for name, p in peer.named_parameters():
        if p.requires_grad:
            name = name.removeprefix("base_model.model.")
            end = next(e for e in ENDINGS if name.endswith(e))
            out[name.removesuffix(end) + ENDINGS[end]] = p
    return out


def our_loss(model, **options):
    logits = model.logits(model(IDS, **options).hidden)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def their_loss(model):
    return F.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def same(ours, theirs, tolerance=1e-5):
    """Equal to `tolerance` of the largest value."""
    ours, theirs = ours.detach(), theirs.detach()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))
