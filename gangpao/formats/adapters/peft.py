"""PEFT folders: adapter_config.json beside adapter_model.safetensors, as `peft` saves and loads LoRA, rsLoRA and DoRA.

The tensors say which modules are adapted and with which rank, the configuration with which scale. A key of the configuration
that changes the result and that we do not compute is refused by its name, and so is one that nobody knows and that is set.
Adapters whose training began by taking something out of the base (PiSSA, OLoRA) fit another base than the one they name: they are
read only with its weights at hand, as the difference from it, of twice the rank.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.formats.adapters import safetensors
from gangpao.formats.adapters.adapter import EMBEDDING, Adapter, Part

Floats = npt.NDArray[np.float32]
WeightOf = Callable[[str], Floats]  # a module's name -> the base's weight, float32 [out, in]

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG = 1 << 22
MAX_PATTERN, MAX_REPEATS = 300, 3
_PREFIX = "base_model.model."

# Keys that change nothing in what a saved adapter computes: the tensors say it, or it is about training.
_IGNORED = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "parent_library", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type", "unsloth_fixed", "gangpao_base_sha256",
}  # fmt: skip
_READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights",
}  # fmt: skip
# Keys that do, with what they would ask for.
_REFUSED = {
    "lora_bias": "a bias behind B, which no other program reads (peft itself warns of its own files)",
    "trainable_token_indices": "single trained rows of the embedding",
    "alora_invocation_tokens": "an adapter that begins to work at certain tokens (aLoRA)",
    "layer_replication": "layers that are used more than once",
    "target_parameters": "adapters on parameters that are no linear layer",
    "use_qalora": "QA-LoRA's grouped inputs",
    "use_bdlora": "block-diagonal matrices",
    "kasa_config": "KaSA's singular values",
    "arrow_config": "a router between adapters",
    "monteclora_config": "MonteCLoRA's sampled weights",
    "velora_config": "VeLoRA's projections",
    "megatron_config": "Megatron's split layers",
    "ensure_weight_tying": "an adapter shared by embedding and head",
}
_MERGE = "merge it with peft (merge_and_unload) and use the merged model"
# What init_lora_weights may say of a base that stays as it is. The others take something out of it first.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_EXACT_STARTS = ("pissa", "olora")


def is_peft(folder: Path) -> bool:
    """Whether this is a folder with an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def read_peft(folder: str | os.PathLike[str], weight_of: WeightOf | None = None) -> Adapter:
    """The adapter of a folder. weight_of: the base's weights, needed for adapters that began by changing it (PiSSA, OLoRA).

    Raises ValueError naming the file and the key or tensor for what is damaged, or computed differently here.
    """
    folder = Path(folder)
    config = _config(folder / CONFIG)
    pairs, magnitudes, whole = _sorted_tensors(folder, _tensors(folder))
    rank_of, alpha_of = _patterns(folder / CONFIG, config)
    parts: dict[str, Part] = {}
    for name, pair in sorted(pairs.items(), key=lambda item: _natural(item[0])):
        where = f"{folder}: {name:.100}"
        if set(pair) != {"a", "b"}:
            raise ValueError(
                f"{where} has a lora_{'A' if 'a' in pair else 'B'} only; the file is incomplete, get it again"
            )
        try:
            part = Part(pair["a"], pair["b"], 1.0, magnitudes.pop(name, None))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        rank, alpha = rank_of(name), alpha_of(name)
        if part.rank != rank:
            raise ValueError(f"{where} has rank {part.rank}, and {CONFIG} says {rank}: they do not belong together")
        scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
        parts[name] = _from_start(
            where, config["init_lora_weights"], Part(part.a, part.b, scale, part.magnitude), name, weight_of
        )
    _check_dora(folder, config, parts, magnitudes)
    if not parts and not whole:
        raise ValueError(f"{folder / WEIGHTS}: there is no adapter in it")
    base = config.get("base_model_name_or_path")
    return Adapter(
        parts, base if isinstance(base, str) else "", str(config.get("gangpao_base_sha256") or ""), float(config["lora_alpha"]),
        config["r"], bool(config["use_rslora"]), whole,
    )  # fmt: skip


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(piece) if piece.isdigit() else -1, piece) for piece in name.split(".")]


def _check_dora(folder: Path, config: Mapping[str, Any], parts: Mapping[str, Part], left: Mapping[str, Floats]) -> None:
    if left:
        raise ValueError(f"{folder}: {next(iter(left)):.100} has a magnitude and no lora_A and lora_B")
    wrong = [name for name, part in parts.items() if (part.magnitude is not None) != bool(config["use_dora"])]
    if wrong:
        has = (
            "no magnitude, and use_dora is true" if config["use_dora"] else "a magnitude (DoRA), and use_dora is false"
        )
        raise ValueError(f"{folder}: {wrong[0]:.100} has {has}: weights and {CONFIG} do not belong together")


# --- the configuration


def configuration(path: Path) -> dict[str, Any]:
    """What an adapter_config.json says, of whatever kind. Raises ValueError for a file that is none."""
    if path.stat().st_size > MAX_CONFIG:
        raise ValueError(f"{path}: larger than a configuration can be ({MAX_CONFIG} bytes)")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error!s:.200}; get it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a configuration is a JSON object, this is a {type(found).__name__}")
    return found


def _config(path: Path) -> dict[str, Any]:
    """The configuration with its defaults. Raises ValueError for keys that we would have to compute."""
    found = configuration(path)
    if found.get("peft_type") != "LORA":
        raise ValueError(
            f"{path}: peft_type is {found.get('peft_type')!r:.40}, and only LORA is an adapter of this form; {_MERGE}"
        )
    for key, value in found.items():
        if key in _REFUSED and value:
            raise ValueError(f"{path}: {key} is set ({_REFUSED[key]}), which is not computed here; {_MERGE}")
        if value and key not in _IGNORED | _READ | _REFUSED.keys():
            raise ValueError(f"{path}: {key!r:.60} is not known here and could change the numbers; {_MERGE}")
    out = {"use_rslora": False, "use_dora": False, "init_lora_weights": True, "r": 8, "lora_alpha": 8} | found
    for key in ("use_rslora", "use_dora"):
        if out[key] is not None and not isinstance(out[key], bool):
            raise ValueError(f"{path}: {key} is {out[key]!r:.40}, not true or false")
    _rank(path, "r", out["r"])
    _alpha(path, "lora_alpha", out["lora_alpha"])
    return out


def _rank(path: Path, key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise ValueError(f"{path}: {key} is {value!r:.40}, not a rank")
    return value


def _alpha(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e9:
        raise ValueError(f"{path}: {key} is {value!r:.40}, not a number to scale with")
    return float(value)


def _patterns(path: Path, config: Mapping[str, Any]) -> tuple[Callable[[str], int], Callable[[str], float]]:
    """Rank and alpha of a module: the first pattern that its name, or the end of it behind a dot, matches."""
    tables: dict[str, list[tuple[re.Pattern[str], Any]]] = {}
    for key, check in (("rank_pattern", _rank), ("alpha_pattern", _alpha)):
        given = config.get(key) or {}
        if not isinstance(given, dict) or len(given) > 1 << 14:
            raise ValueError(f"{path}: {key} is no object of patterns")
        tables[key] = [(_compiled(path, key, text), check(path, key, value)) for text, value in given.items()]

    def find(key: str, otherwise: Any) -> Callable[[str], Any]:
        return lambda name: next((value for pattern, value in tables[key] if pattern.match(name)), otherwise)

    return find("rank_pattern", config["r"]), find("alpha_pattern", config["lora_alpha"])


def _compiled(path: Path, key: str, text: str) -> re.Pattern[str]:
    """A pattern as peft matches it, where matching it cannot take long: few repetitions, none of a group."""
    plain = text.replace("\\.", "")
    if (
        len(text) > MAX_PATTERN
        or re.search(r"\)\s*[*+{?]|\(\?|\\[1-9]", plain)
        or len(re.findall(r"[*+{]", plain)) > MAX_REPEATS
    ):
        raise ValueError(f"{path}: {key} has a pattern that is not tried, because it could take for ever: {text!r:.80}")
    try:
        return re.compile(rf"(?:.*\.)?(?:{text})$")
    except re.error as error:
        raise ValueError(f"{path}: {key} has a pattern that is none: {text!r:.80} ({error})") from error


# --- the tensors


def _tensors(folder: Path) -> dict[str, Floats]:
    if (folder / WEIGHTS).is_file():
        return safetensors.read(folder / WEIGHTS)
    if (folder / PICKLED).is_file():
        raise ValueError(
            f"{folder / PICKLED}: a pickled file is not read; load the adapter with peft and save it again "
            "(save_pretrained with safe_serialization=True), which writes adapter_model.safetensors"
        )
    raise ValueError(f"{folder}: there is no {WEIGHTS}; give a whole folder of an adapter")


def _sorted_tensors(
    folder: Path, tensors: Mapping[str, Floats]
) -> tuple[dict[str, dict[str, Floats]], dict[str, Floats], dict[str, Floats]]:
    """Pairs {"a": [r, in], "b": [out, r]} and magnitudes by module, and tensors in the place of the base's."""
    pairs: dict[str, dict[str, Floats]] = {}
    magnitudes: dict[str, Floats] = {}
    whole: dict[str, Floats] = {}
    for full, values in tensors.items():
        name = full.removeprefix(_PREFIX)
        module, _, leaf = name.partition(".lora_")
        if leaf in ("A.weight", "B.weight"):
            pairs.setdefault(module, {})[leaf[0].lower()] = values
        elif leaf in ("embedding_A", "embedding_B"):  # A is [r, V] and B [D, r]: the weight [V, D] grows by (B A)^T
            pairs.setdefault(module, {})["b" if leaf[-1] == "A" else "a"] = np.ascontiguousarray(values.T)
        elif leaf in ("magnitude_vector", "magnitude_vector.weight"):
            if module.endswith("embed_tokens"):
                raise ValueError(
                    f"{folder}: {module:.100} is an embedding with DoRA, which is not computed here; {_MERGE}"
                )
            magnitudes[module] = values.reshape(-1)
        elif leaf or "token_adapter" in name:
            raise ValueError(f"{folder}: {full:.120} is no tensor of LoRA or DoRA that is computed here; {_MERGE}")
        else:  # modules_to_save, trained biases, an embedding that was resized
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = values
    return pairs, magnitudes, whole


# --- adapters that began by changing the base


def _from_start(where: str, start: Any, part: Part, name: str, weight_of: WeightOf | None) -> Part:
    """The part as a difference from the base that it names."""
    start = start.lower() if isinstance(start, str) else start
    if start in _PLAIN_STARTS:
        return part
    convert = (
        "its training changed the base, so it does not belong to the base that it names; let peft convert it: "
        "save_pretrained(..., path_initial_model_for_weight_conversion=FOLDER OF THE UNTRAINED ADAPTER)"
    )
    if start not in _EXACT_STARTS or part.magnitude is not None:
        raise ValueError(f"{where}: init_lora_weights is {start!r:.40}: {convert}")
    if weight_of is None:
        raise ValueError(
            f"{where}: init_lora_weights is {start!r}: {convert}; or `gangpao merge` it onto the original base"
        )
    b, a = (_principal if start == "pissa" else _orthogonal)(weight_of(name), part.rank, part.scale)
    return Part(np.concatenate([part.a, a]), np.concatenate([part.b, -b], axis=1), part.scale)


def _principal(weight: Floats, rank: int, scale: float) -> tuple[Floats, Floats]:
    """b [out, r] and a [r, in] of PiSSA's start (arXiv:2404.02948): scale * b @ a has the weight's largest singular values."""
    left, values, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    root = np.sqrt(values[:rank] / scale)
    return (left[:, :rank] * root).astype(np.float32), (root[:, None] * right[:rank]).astype(np.float32)


def _orthogonal(weight: Floats, rank: int, _: float) -> tuple[Floats, Floats]:
    """b and a of OLoRA's start (arXiv:2406.01775): the first columns of Q and rows of R, as they are."""
    q, r = np.linalg.qr(weight.astype(np.float64))
    return q[:, :rank].astype(np.float32), r[:rank].astype(np.float32)


# --- writing


def write_peft(
    folder: str | os.PathLike[str],
    adapter: Adapter,
    *,
    base: str | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write an adapter as a PEFT folder, made if it is not there; `base` instead of adapter.base as what it belongs to.

    extra: further files by name (tokenizer, chat template). Not atomic: call it inside atomic.new_folder. Raises ValueError for
    what peft has no form for: DoRA on some modules and not on others, or on an embedding.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = _config_of(adapter, adapter.base if base is None else base)
    safetensors.write(path / WEIGHTS, dict(_named(adapter)))
    (path / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, content in (extra or {}).items():
        if name != Path(name).name or name in (CONFIG, WEIGHTS):
            raise ValueError(f"{name!r:.80} is no name of a file beside an adapter")
        (path / name).write_bytes(content)


def _named(adapter: Adapter) -> list[tuple[str, Floats]]:
    out = []
    for name, part in adapter.parts.items():
        module = _PREFIX + name
        if name == EMBEDDING:
            out += [(f"{module}.lora_embedding_A", part.b.T), (f"{module}.lora_embedding_B", part.a.T)]
        else:
            out += [(f"{module}.lora_A.weight", part.a), (f"{module}.lora_B.weight", part.b)]
        if part.magnitude is not None:
            out.append((f"{module}.lora_magnitude_vector", part.magnitude))
    for name, values in adapter.whole.items():
        module, _, leaf = name.rpartition(".")
        out.append((f"{_PREFIX}{module}{'.base_layer' if module in adapter.parts else ''}.{leaf}", values))
    return out


def _config_of(adapter: Adapter, base: str) -> dict[str, Any]:
    parts = adapter.parts
    dora = {part.magnitude is not None for part in parts.values()}
    if len(dora) > 1 or (dora == {True} and EMBEDDING in parts):
        raise ValueError(
            "peft has DoRA on all linear modules of an adapter or on none, and on embeddings in another form"
        )
    ranks = {name: part.rank for name, part in parts.items()}
    alphas = {name: _alpha_of(adapter, part) for name, part in parts.items()}
    rank, alpha = _most(ranks, adapter.rank or 8), _most(alphas, adapter.alpha or 8.0)
    config: dict[str, Any] = {
        "alpha_pattern": {name: _plain(value) for name, value in alphas.items() if value != alpha},
        "base_model_name_or_path": base or None,
        "bias": "lora_only" if any(name.endswith(".bias") for name in adapter.whole) else "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _plain(alpha),
        "lora_dropout": 0.0,
        "modules_to_save": sorted({n[:-7] for n in adapter.whole if n.endswith(".weight")} - parts.keys()) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "target_modules": _targets(list(parts)),
        "task_type": "CAUSAL_LM",
        "use_dora": dora == {True},
        "use_rslora": adapter.rslora,
    }
    return config | ({"gangpao_base_sha256": adapter.base_sha256} if adapter.base_sha256 else {})


def _alpha_of(adapter: Adapter, part: Part) -> float:
    """The alpha from which peft computes this part's scale."""
    divisor = math.sqrt(part.rank) if adapter.rslora else part.rank
    for alpha in (adapter.alpha, round(part.scale * divisor, 9)):  # what it was before division and rounding
        if alpha / divisor == part.scale:
            return alpha
    return part.scale * divisor


def _plain(value: float) -> float | int:
    """Whole numbers as such, as peft writes them."""
    return int(value) if value == int(value) else value


def _most(values: Mapping[str, Any], otherwise: Any) -> Any:
    return Counter(values.values()).most_common(1)[0][0] if values else otherwise


def _targets(names: list[str]) -> list[str]:
    """target_modules, sorted: last names where each layer from 0 on has the same ones, else whole names."""
    layers: dict[int, set[str]] = {}
    for name in names:
        if found := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
            layers.setdefault(int(found[1]), set()).add(found[2])
    alike = (
        list(layers)
        and sorted(layers) == list(range(len(layers)))
        and len({frozenset(m) for m in layers.values()}) == 1
    )
    return sorted({name.rpartition(".")[2] for name in names} if alike else names)
