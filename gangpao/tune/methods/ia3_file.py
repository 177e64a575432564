"""IA3 as a PEFT folder (peft's IA3Config): written by a run, read to be merged.

In the merged weight a factor of an output multiplies a row, a factor of an input a column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from gangpao.formats.adapters import Adapter, safetensors
from gangpao.formats.adapters.peft import CONFIG, WEIGHTS, configuration
from gangpao.formats.adapters.read import RUN_ADAPTER
from gangpao.tune.methods.simple import ScaledLinear

_PREFIX, _LEAF = "base_model.model.", ".ia3_l"
Floats = npt.NDArray[np.float32]


def write_ia3(
    folder: Path, modules: Mapping[str, nn.Module], base: str, base_sha256: str, extra: Mapping[str, bytes]
) -> None:
    """Write the factors of scaled linears (by their names in the model) and peft's configuration into a folder, with files beside
    them. Not atomic: call it inside atomic.new_folder."""
    scaled = {name: module for name, module in modules.items() if isinstance(module, ScaledLinear)}
    tensors = {}
    for name, module in scaled.items():
        values = module.factors.detach().float().cpu().numpy()
        tensors[_PREFIX + name + _LEAF] = values[None] if module.inputs else values[:, None]
    leaves = sorted({name.rpartition(".")[2] for name in scaled})
    config = {
        "base_model_name_or_path": base or None, "fan_in_fan_out": False, "inference_mode": True, "init_ia3_weights": True,
        "feedforward_modules": sorted({name.rpartition(".")[2] for name, m in scaled.items() if m.inputs}),
        "modules_to_save": None, "peft_type": "IA3", "target_modules": leaves, "task_type": "CAUSAL_LM",
    }  # fmt: skip
    safetensors.write(folder / WEIGHTS, tensors)
    text = json.dumps(config | ({"gangpao_base_sha256": base_sha256} if base_sha256 else {}), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    for name, content in extra.items():
        (folder / name).write_bytes(content)


def ia3_folder(path: Path) -> Path | None:
    """The folder with IA3's factors that is meant (it, or the adapter/ of a run); None where there is none."""
    for folder in (path, path / RUN_ADAPTER):
        if (folder / CONFIG).is_file():
            return folder if configuration(folder / CONFIG).get("peft_type") == "IA3" else None
    return None


def read_ia3(folder: Path, weight_of: Callable[[str], Floats]) -> Adapter:
    """The weights that take the place of the base's, float32. weight_of: a module's name -> its weight, float32 [out, in].

    Raises ValueError naming the file and the tensor for what is damaged or of another base.
    """
    config, whole = configuration(folder / CONFIG), {}
    for full, values in safetensors.read(folder / WEIGHTS).items():
        if not full.endswith(_LEAF):
            raise ValueError(f"{folder}: {full:.120} is no factor of IA3; merge it with peft (merge_and_unload)")
        name = full.removeprefix(_PREFIX).removesuffix(_LEAF)
        weight = weight_of(name)
        if values.shape not in ((len(weight), 1), (1, weight.shape[1])):
            raise ValueError(
                f"{folder}: an adapter of another base: the factors of {name:.100} are {list(values.shape)}, and the base's weight "
                f"is {list(weight.shape)}"
            )
        whole[f"{name}.weight"] = np.ascontiguousarray(weight * values)
    base = config.get("base_model_name_or_path")
    sha256 = str(config.get("gangpao_base_sha256") or "")
    return Adapter({}, base if isinstance(base, str) else "", sha256, whole=whole)
