"""The divergence of a model with some of its tensors rounded, by running it: torch in float32, on ids that no gradient saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from gangpao.compress.budget.rounding import rounded
from gangpao.formats.adapters.gguf import hf_name
from gangpao.formats.imatrix import Importance
from gangpao.model.transformer import Transformer

_ROWS = 64  # of logits at once


class Probe:
    """Runs a model with rounded tensors beside itself. keeps: name -> the type of the source, which changes nothing."""

    def __init__(
        self, model: Transformer, ids: Tensor, keeps: Mapping[str, str], importance: Importance | None = None
    ) -> None:
        self._model, self._ids, self._keeps, self._importance = model, ids, keeps, importance
        self._head = model.lm_head.weight.data  # the one of the reference, also while another is in its place
        self._states = self._run()

    @torch.no_grad()
    def _run(self) -> list[Tensor]:
        return [self._model(one[None]).hidden[0] for one in self._ids]

    @torch.no_grad()
    def divergence(self, types: Mapping[str, str]) -> list[float]:
        """Mean KL divergence from the model as it is, nats a token, of every sequence, with these tensors of these types."""
        with self._rounded(types):
            head = self._model.lm_head.weight.data
            found = []
            for reference, state in zip(self._states, self._run(), strict=True):
                total = 0.0
                for begin in range(0, len(state), _ROWS):
                    p = F.log_softmax(reference[begin : begin + _ROWS] @ self._head.T, -1)
                    q = F.log_softmax(state[begin : begin + _ROWS] @ head.T, -1)
                    total += float(F.kl_div(q, p, reduction="sum", log_target=True))
                found.append(total / len(state))
        return found

    @contextmanager
    def _rounded(self, types: Mapping[str, str]) -> Iterator[None]:
        """With the tensors in their places, which are given back."""
        old: list[tuple[torch.nn.Parameter, Tensor]] = []
        try:
            for name, kind in types.items():
                if self._keeps.get(name) == kind:
                    continue
                foreign = hf_name(name)
                assert foreign is not None, name
                parameter = self._model.get_parameter(foreign)
                columns = self._importance.of(name) if self._importance is not None else None
                old.append((parameter, parameter.data))
                parameter.data = rounded(parameter.data, kind, columns)
            yield
        finally:
            for parameter, data in old:
                parameter.data = data
