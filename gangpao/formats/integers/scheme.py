"""What config.json says of integer weights (quantization_config), as one record, or a refusal that names what is not read.

Read are weights of 2, 3, 4 or 8 bits in groups of columns or in whole rows: GPTQ and GPTQModel (both counts of its zero points),
AWQ (`gemm`), AutoRound in either form, compressed-tensors' pack-quantized, int-quantized and naive-quantized. Activations that a
server would round on the way (W8A8) are computed as they are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BITS = (2, 3, 4, 8)
_AUTOROUND = ("auto-round", "autoround", "intel/auto-round")
_AUTOROUND_PACKINGS = {
    "auto_round:auto_gptq": ("gptq", "gptq"), "auto_round:gptqmodel": ("gptq", "gptq_v2"), "auto_round": ("gptq", "gptq_v2"),
    "auto_round:auto_awq": ("awq", ""),
}  # fmt: skip
_PACKINGS = ("pack-quantized", "int-quantized", "naive-quantized")
_ADVICE = "take the checkpoint in 16 bits, or a .gguf file"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the matrices of a folder are kept.

    layout: gptq, awq, packed (compressed-tensors, int32 words) or ints (int8). group: columns that share a scale, 0 for whole rows.
    minus_one: GPTQ's first form, in which a zero point is one less than it means.
    """

    layout: str
    bits: int
    group: int
    symmetric: bool
    minus_one: bool = False

    @property
    def words(self) -> str:
        """For people: `4 bits, groups of 128, GPTQ`."""
        names = {"gptq": "GPTQ", "awq": "AWQ", "packed": "compressed-tensors", "ints": "compressed-tensors"}
        return f"{self.bits} bits, {f'groups of {self.group}' if self.group else 'whole rows'}, {names[self.layout]}"


def scheme_of(config: object) -> Scheme:
    """The scheme that a quantization_config means. Raises ValueError for what is not read, by name."""
    if not isinstance(config, Mapping):
        raise ValueError(f"quantization_config is {config!r:.60}: a table is wanted; {_ADVICE}")
    method = str(config.get("quant_method", ""))
    if method == "compressed-tensors":
        return _compressed(config)
    layout, form = method, str(config.get("checkpoint_format", "gptq"))
    if method in _AUTOROUND:
        packing = str(config.get("packing_format", "auto_round:auto_gptq"))
        layout, form = _AUTOROUND_PACKINGS.get(packing, (packing, ""))
    if layout not in ("gptq", "awq"):
        name = layout or "without a quant_method"
        raise ValueError(
            f"quantization_config is {name!r:.60}: weights of this kind are not read here (read are gptq, awq, auto-round and "
            f"compressed-tensors); {_ADVICE}"
        )
    bits = _number(config, "w_bit" if "w_bit" in config else "bits", BITS)
    group = config.get("group_size", config.get("q_group_size", 128))
    if layout == "awq":
        return _awq(config, bits, group)
    _refuse_mixed(config)
    if form not in ("gptq", "gptq_v2"):
        raise ValueError(f"quantization_config.checkpoint_format is {form!r:.40}: read are gptq and gptq_v2; {_ADVICE}")
    return Scheme("gptq", bits, _group(group), bool(config.get("sym", True)), form == "gptq")


def _awq(config: Mapping[str, Any], bits: int, group: object) -> Scheme:
    version = str(config.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise ValueError(
            f"quantization_config: AWQ of {bits} bits in the form {version!r:.20} is not read (4 bits, gemm); {_ADVICE}"
        )
    return Scheme("awq", bits, _group(group), not config.get("zero_point", True))


def _refuse_mixed(config: Mapping[str, Any]) -> None:
    for key in ("dynamic", "extra_config"):
        rows = config.get(key)
        named = [str(rule) for rule, change in rows.items() if _changes(change)] if isinstance(rows, Mapping) else []
        if named:
            raise ValueError(
                f"quantization_config.{key} gives some matrices other bits or groups ({named[0]:.60}): not read here; {_ADVICE}"
            )


def _changes(rule: object) -> bool:
    """Whether a rule for some matrices changes how they are packed; those that leave a matrix as floats do not."""
    return isinstance(rule, Mapping) and any(rule.get(key, 16) not in (16, None) for key in ("bits", "w_bit"))


def _compressed(config: Mapping[str, Any]) -> Scheme:
    form = str(config.get("format", ""))
    if form not in _PACKINGS:
        raise ValueError(
            f"quantization_config.format is {form!r:.40}: read are {', '.join(_PACKINGS)} of compressed-tensors; {_ADVICE}"
        )
    groups = config.get("config_groups")
    rows = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [row.get("weights") for row in rows if isinstance(row, Mapping)]
    found = {_of_weights(w, form) for w in weights if isinstance(w, Mapping)}
    if len(found) != 1:
        raise ValueError(
            f"quantization_config.config_groups has {len(found)} different forms of weights, one is read; {_ADVICE}"
        )
    return found.pop()


def _of_weights(weights: Mapping[str, Any], form: str) -> Scheme:
    kind, strategy = weights.get("type", "int"), weights.get("strategy")
    if kind != "int" or strategy not in ("group", "channel"):
        raise ValueError(
            f"quantization_config: weights of type {kind!r:.20} by {strategy!r:.20} are not read (int by group or "
            f"channel); {_ADVICE}"
        )
    group = _group(weights.get("group_size")) if strategy == "group" else 0
    layout = "packed" if form == "pack-quantized" else "ints"
    return Scheme(layout, _number(weights, "num_bits", BITS), group, bool(weights.get("symmetric", True)))


def _number(config: Mapping[str, Any], key: str, allowed: tuple[int, ...]) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        raise ValueError(
            f"quantization_config.{key} is {value!r:.20}: read are {', '.join(map(str, allowed))}; {_ADVICE}"
        )
    return value


def _group(value: object) -> int:
    """Columns of a group; 0 for whole rows, which others write as -1 or leave out."""
    if value is None or value == -1:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 20:
        raise ValueError(f"quantization_config.group_size is {value!r:.20}: a number of columns, or -1 for whole rows")
    return value
