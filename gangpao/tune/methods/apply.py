"""A method is put into a model: modules are replaced, what is trained is marked, and the way back is kept.

Everything else of the model is frozen. A head that is tied to the embedding stays tied: its adapter is its own, so the input
embeddings do not move with it, and the two are one only where the table itself is trained (full tuning), once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gangpao.formats.adapters import Adapter, Part
from gangpao.model.init import Rule, rule_of
from gangpao.model.transformer import Transformer
from gangpao.train.step.parallel import whole
from gangpao.tune.methods.config import MethodConfig
from gangpao.tune.methods.dora import DoraLinear
from gangpao.tune.methods.lora import LoraEmbedding, LoraLinear, Switch
from gangpao.tune.methods.table import METHODS


@dataclass(frozen=True, slots=True)
class Applied:
    """A model with a method in it.

    trainable: parameters by their names in the model. modules: what was put in, by the name of what it replaced. rates: factors on
    the learning rate of parameters beside the method's, by how their names begin (the tower of a model that sees).
    """

    model: Transformer
    config: MethodConfig
    trainable: dict[str, nn.Parameter]
    modules: dict[str, nn.Module]
    switch: Switch
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def draws_random_numbers(self) -> bool:
        """Whether a pass draws from torch's generator (dropout). Rows then may not go to several lanes."""
        return self.config.dropout > 0 and METHODS[self.config.kind].dropout

    def lr_factor(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied by."""
        beside = next((rate for begin, rate in self.rates.items() if name.startswith(begin)), None)
        if beside is not None:
            return beside
        if METHODS[self.config.kind].trains_base:
            return self._rule(name).lr_scale
        slow = name.endswith(("lora_A", "lora_embedding_A"))
        return 1.0 if slow else self.config.lora_plus

    def decay(self, name: str) -> bool:
        """Whether a parameter has weight decay: matrices do; norms, biases, lengths and factors of one dimension do not."""
        beside = any(name.startswith(begin) for begin in self.rates)
        if METHODS[self.config.kind].trains_base and not beside:
            return self._rule(name).decay_scale > 0
        return self.trainable[name].ndim > 1

    def _rule(self, name: str) -> Rule:
        return rule_of(name, self.model.config)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base without what was put in, to the bit, for the calling thread.

        Raises ValueError where the weights of the base themselves are trained.
        """
        if any(name.startswith(begin) for begin in self.rates for name in self.trainable):
            raise ValueError(
                "merger or encoder are trained, so the reference of these preferences would change with them: set "
                'vision.train = ["text"]'
            )
        if METHODS[self.config.kind].trains_base:
            raise ValueError(
                f"{self.config.kind} tuning changes the base itself, so it cannot be switched off: count what needs the "
                'reference before training, or take an adapter (kind = "lora")'
            )
        before, self.switch.off = self.switch.off, True
        try:
            yield
        finally:
            self.switch.off = before

    def adapter(self, *, base: str = "", base_sha256: str = "") -> Adapter:
        """The adapter as files hold it, a copy. Raises ValueError for a method that none of them can hold."""
        if not METHODS[self.config.kind].export.startswith("peft"):
            known = ", ".join(kind for kind, method in METHODS.items() if method.export.startswith("peft"))
            raise ValueError(f"{self.config.kind} is not an adapter that PEFT or GGUF files hold; these are: {known}")
        parts = {name: _part(module) for name, module in self.modules.items()}
        alpha = self.config.alpha_of("")
        return Adapter(parts, base, base_sha256, alpha=alpha, rank=self.config.rank, rslora=self.config.rslora)


def _part(module: nn.Module) -> Part:
    """The values of one module, as numpy arrays of their own."""

    def values(p: Tensor) -> npt.NDArray[np.float32]:
        return np.array(whole(p.detach()).float().cpu().contiguous().numpy(), dtype=np.float32)

    if isinstance(module, LoraEmbedding):
        return Part(values(module.lora_embedding_B.T), values(module.lora_embedding_A.T), module.scale)
    assert isinstance(module, LoraLinear)
    magnitude = values(module.magnitude) if isinstance(module, DoraLinear) else None
    return Part(values(module.lora_A), values(module.lora_B), module.scale, magnitude)


def apply(model: Transformer, config: MethodConfig, *, seed: int) -> Applied:
    """Put a method into a model, in place; first values depend on seed and names alone.

    Raises ValueError for targets that the model does not have, or a method that this base cannot have.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    switch = Switch()
    modules = METHODS[config.kind].put(model, config, switch, seed)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(f"{config.kind} has nothing to train in this model: choose another method")
    return Applied(model, config, trainable, modules, switch)
