"""The step: layer after layer, the MLP becomes experts, and the stream goes on through what it became.

    out/model/      the experts model, a Hugging Face folder with the tokenizer's files; `gangpao export` makes a .gguf file of it
    out/work/       told.json, layer-*.safetensors and layer-*.json of the layers that are done

A later layer is fitted to the stream that the cut layers before it give. A step that was killed goes on with the next layer and
gives the same bits. Another configuration, model or text in the same folder is refused. The next step may be distil: the experts
model is one that the lab trains.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gangpao import machine
from gangpao.atomic import locked, new_file, read_json, write_json
from gangpao.compress.experts.config import ExpertsConfig
from gangpao.compress.experts.layer import CHUNK, Cut, Mlp, Samples, cut, sizes
from gangpao.compress.step import StepResult
from gangpao.deploy.header import form_of
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.count import parameters
from gangpao.model.layers import angles, inverse_frequencies
from gangpao.model.moe import MoE
from gangpao.model.transformer import Block, Transformer
from gangpao.tune.base.load import Base, base_tokenizer_files, load_base

BUSY = "another process is cutting a model into experts here; stop it or choose another folder"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WINDOWS = 4  # at once through a layer


def run_step(
    config: ExpertsConfig, source: Path, original: Path, out: Path, *, stream: TextIO | None = None
) -> StepResult:
    """Cut the dense model at `source` into experts, or go on with what is in `out`. original is not looked at.

    Raises ValueError for a model that has experts already, one that has no GGUF form with experts, sizes that do not divide, and
    a folder that holds another step.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads or machine.physical_cores())
    with locked(out, BUSY), torch.no_grad():
        return _Step(config, source, out, stream).run()


def experts_config(dense: ModelConfig, config: ExpertsConfig) -> ModelConfig:
    """The shape of the experts model. Raises ValueError for what cannot be one."""
    if dense.moe:
        raise ValueError("this model has experts already")
    shared, own = sizes(dense.intermediate_size, config)
    moe = {"num_experts": config.experts, "num_experts_per_tok": config.chosen}
    shape = ModelConfig.model_validate(dense.model_dump() | {"moe": moe, "intermediate_size": shared + own})
    form_of(shape)
    return shape


@dataclass(frozen=True, slots=True)
class _Step:
    config: ExpertsConfig
    source: Path
    out: Path
    stream: TextIO | None

    def run(self) -> StepResult:
        base = load_base(self.source, storage="fp32", dtype=torch.float32)
        shape = experts_config(base.config, self.config)
        ids = windows(base, self.config)
        work = self.out / "work"
        work.mkdir(exist_ok=True)
        self._same_step(base, ids, work)
        target = self.out / "model"
        if not target.is_dir():
            tensors = self._cut(base.model, shape, torch.from_numpy(ids), work)
            stored = {name: t.to(DTYPES[self.config.dtype]).contiguous() for name, t in tensors.items()}
            weights.save(target, shape, stored, extra=base_tokenizer_files(self.source))
        layers = [read_json(_facts(work, i)) for i in range(shape.num_hidden_layers)]
        return StepResult(target, _report(base.config, shape, layers, ids))

    def say(self, text: str) -> None:
        if self.stream is not None:
            print(f"experts: {text}", file=self.stream, flush=True)

    def _same_step(self, base: Base, ids: np.ndarray, work: Path) -> None:
        text = hashlib.sha256(np.ascontiguousarray(ids, np.int64).tobytes()).hexdigest()
        told = self.config.model_dump(mode="json", exclude={"threads"}) | {"sha256": base.sha256, "text": text}
        path = work / "told.json"
        if not path.is_file():
            write_json(path, told)
        elif (before := read_json(path)) != told:
            changed = sorted(key for key in told if told[key] != before.get(key))
            raise ValueError(
                f"{self.out}: holds another step ({', '.join(changed)} differ); give an empty folder, or delete this one"
            )

    def _cut(self, model: Transformer, shape: ModelConfig, ids_NT: Tensor, work: Path) -> dict[str, Tensor]:
        """All tensors of the experts model."""
        tensors = {name: t for name, t in weights.state(model).items() if ".mlp." not in name}
        hidden, cos, sin = start(model, ids_NT)
        for i, block in enumerate(model.model.layers):
            assert isinstance(block, Block)
            inputs = attended(block, hidden, cos, sin)
            path = work / f"layer-{i}.safetensors"
            if not path.is_file():
                self._layer(i, block, hidden, inputs, path)
            found = load_file(path)
            moe = _as_module(shape, found)
            for at in pieces(hidden):
                hidden[at] += moe(inputs[at])[0] * block.residual_scale
            tensors |= {f"model.layers.{i}.mlp.{name}": t for name, t in found.items()}
        return tensors

    def _layer(self, i: int, block: Block, hidden: Tensor, inputs: Tensor, path: Path) -> None:
        dense, samples = sampled(block, hidden, inputs)
        found = cut(dense, samples, self.config, self.config.seed * 100_003 + i)
        write_json(_facts(path.parent, i), found.facts)
        with new_file(path) as partial:
            save_file(_tensors(dense, found), partial)
        held, routed, error = (found.facts[key] for key in ("held", "routed", "error"))
        self.say(f"layer {i}: {routed:.1%} of what it adds is chosen ({held:.1%} at best), error {error:.1%}")


def windows(base: Base, config: ExpertsConfig) -> np.ndarray:
    from gangpao.compress.importance.calibration import calibration_ids

    c = config.calibration
    files = [Path(c.root) / name for name in c.files]
    return calibration_ids(base.tokenizer, files, windows=c.windows, length=c.length)


def sampled(block: Block, hidden_NTD: Tensor, inputs_NTD: Tensor) -> tuple[Mlp, Samples]:
    """The MLP of a layer, and the tokens of the stream behind its attention that it is fitted on; every fourth window measures."""
    dense = Mlp(*(block.get_parameter(f"mlp.{name}_proj.weight").detach() for name in ("gate", "up", "down")))
    measured = (torch.arange(len(inputs_NTD)) % 4 == 3)[:, None].expand(inputs_NTD.shape[:2])
    x = inputs_NTD.flatten(0, 1)
    whole = torch.cat([dense.inner(part) @ dense.down.T for part in torch.split(x, CHUNK)]) * block.residual_scale
    length = (hidden_NTD.flatten(0, 1) + whole).square().mean(dim=1)
    return dense, Samples(x, 1.0 / length.clamp_min(1e-20), measured.flatten())


def start(model: Transformer, ids_NT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The stream [N, T, D] in front of the first layer, and cosines and sines of its positions."""
    inverse, factor = inverse_frequencies(model.config, ids_NT.shape[1])
    cos, sin = angles(inverse, factor, torch.arange(ids_NT.shape[1])[None])
    return model.model.embed_tokens(ids_NT) * model.config.embedding_scale, cos, sin


def attended(block: Block, hidden_NTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Adds the attention of a layer to the stream, in place; returns what goes into its MLP."""
    inputs = torch.empty_like(hidden_NTD)
    for at in pieces(hidden_NTD):
        h = hidden_NTD[at]
        h += block.self_attn(block.input_layernorm(h), cos, sin, None, None) * block.residual_scale
        inputs[at] = block.post_attention_layernorm(h)
    return inputs


def pieces(x: Tensor) -> Iterator[slice]:
    for begin in range(0, len(x), _WINDOWS):
        yield slice(begin, begin + _WINDOWS)


def _tensors(dense: Mlp, found: Cut) -> dict[str, Tensor]:
    """The tensors of a layer's experts, by their names behind `mlp.`."""
    out = {"gate.weight": found.router.contiguous()}
    for e, channels in enumerate(found.channels):
        parts = {"w1": dense.gate[channels], "w3": dense.up[channels], "w2": found.down[e]}
        out |= {f"experts.{e}.{name}.weight": t.contiguous() for name, t in parts.items()}
    return out


def _as_module(shape: ModelConfig, tensors: Mapping[str, Tensor]) -> MoE:
    with torch.device("meta"):
        moe = MoE(shape)
    moe.load_state_dict(dict(tensors), assign=True)
    return moe


def _facts(work: Path, layer: int) -> Path:
    return work / f"layer-{layer}.json"


def _report(dense: ModelConfig, shape: ModelConfig, layers: list[dict[str, float]], ids: np.ndarray) -> dict[str, Any]:
    moe = shape.moe
    assert moe is not None
    before, after = parameters(dense), parameters(shape)
    return {
        "experts": moe.num_experts,
        "active": moe.num_experts_per_tok,
        "channels": dense.intermediate_size,
        "expert_channels": shape.intermediate_size,
        "active_share": moe.num_experts_per_tok * shape.intermediate_size / dense.intermediate_size,
        "parameters": after.total,
        "parameters_before": before.total,
        "active_parameters": after.active,
        "tokens": int(ids.size),
        "held": statistics.fmean(layer["held"] for layer in layers),
        "routed": statistics.fmean(layer["routed"] for layer in layers),
        "error": statistics.fmean(layer["error"] for layer in layers),
        "layers": layers,
    }
