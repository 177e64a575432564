"""`gangpao show`: what is known of one model, from its file where there is one and from the catalog's entry.

It runs nothing and asks no network.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from gangpao import catalog
from gangpao.commands import options as opt
from gangpao.commands.list import sampling_line
from gangpao.commands.model import find
from gangpao.commands.model.sight import sight_of
from gangpao.engine.config import ModelConfig
from gangpao.engine.sample import recommended_in
from gangpao.formats.gguf import GGUF
from gangpao.formats.split_names import parts_of, stem_of
from gangpao.units import show_bytes

_NOTHING: tuple[Any, ...] = (None, "", [], {})


def show(model: opt.ModelName, as_json: opt.Json = False) -> None:
    """Say what is known of a model: its file, its size, its source."""
    facts = examine(model)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=1))
        return
    print("\n".join(f"{name:14} {_shown(name, value)}" for name, value in facts.items() if value not in _NOTHING))


def examine(model: str) -> dict[str, Any]:
    """Everything known of a name, an address or a path. Raises ValueError where that is nothing."""
    path = Path(model).expanduser()
    if catalog.is_path(model) and path.exists():
        return {"name": stem_of(path.name)} | _file(path)
    name = find.installed_name(model)
    here, models = catalog.installed(), catalog.load().models
    entry = models.get(name) if name in here else catalog.entry(name)
    record = catalog.read_record(name)
    facts: dict[str, Any] = {
        "name": name,
        "title": entry.title if entry else record.get("title"),
        "state": entry.state if entry else None,
        "installed": name in here,
        "licence": entry.licence if entry else None,
        "languages": list(entry.languages) if entry else [],
        "parameters": entry.parameters or None if entry else None,
        "context_length": entry.context_length or None if entry else None,
        "quantization": entry.quantization if entry else record.get("quantization"),
        "bytes": (entry.bytes or None) if entry else None,
        "sampling": catalog.sampling_of(name),
        "note": entry.note if entry else None,
        "sha256": record.get("sha256") or (entry.sha256 if entry else None),
        "source": record.get("source") or ([s.model_dump(exclude_none=True) for s in entry.sources] if entry else None),
    }
    if name in here:
        found = _file(here[name])
        facts["sampling"] = {**found.get("sampling", {}), **facts["sampling"]}
        facts |= {
            key: value for key, value in found.items() if facts.get(key) in _NOTHING or key in ("bytes", "reason")
        }
    else:
        facts["next"] = f"gangpao pull {name}"
    return facts


def _file(path: Path) -> dict[str, Any]:
    """What a model file says of itself."""
    out: dict[str, Any] = {
        "path": str(path),
        "bytes": catalog.bytes_of(path),
        "parts": len(parts_of(path.name)),
    }
    if path.is_dir():
        return out | {"state": "for training", "parts": None}
    with GGUF.open(path) as gguf:
        kinds: Counter[str] = Counter()
        for tensor in gguf.tensors.values():
            kinds[tensor.type] += math.prod(tensor.shape)
        try:
            config, reason = ModelConfig.from_gguf(gguf), ""
        except ValueError as error:
            config, reason = None, str(error).removeprefix(f"{gguf.path}: ")
        metadata = gguf.metadata
        architecture = metadata.get("general.architecture", "")
        if architecture == "clip":
            return out | _encoder(gguf, dict(kinds.most_common()))
        return (
            out
            | _sees(path)
            | {
                "state": "untested" if config else "cannot run",
                "reason": reason,
                "architecture": architecture,
                "title": metadata.get("general.name", ""),
                "licence": metadata.get("general.license", ""),
                "parameters": sum(kinds.values()),
                "experts": f"{config.num_experts_per_tok} of {config.num_experts}"
                if config and config.num_experts
                else None,
                "active": _active(gguf, config) if config and config.num_experts else None,
                "context_length": metadata.get(f"{architecture}.context_length"),
                "types": dict(kinds.most_common()),
                "vocabulary": len(metadata.get("tokenizer.ggml.tokens", ())),
                "sampling": recommended_in(metadata),
                "chat_template": isinstance(metadata.get("tokenizer.chat_template"), str),
            }
        )


def _encoder(gguf: GGUF, kinds: dict[str, int]) -> dict[str, Any]:
    """What an mmproj file says of itself."""
    from gangpao.engine.vision.mmproj import read_vision
    from gangpao.engine.vision.sight import weight_bytes, work_bytes

    facts: dict[str, Any] = {"architecture": "clip", "title": gguf.metadata.get("general.name", "")}
    facts |= {"parameters": sum(kinds.values()), "types": kinds}
    try:
        vision = read_vision(gguf)
    except ValueError as error:
        return facts | {"state": "cannot run", "reason": str(error).removeprefix(f"{gguf.path}: ")}
    width = gguf.get_int("clip.vision.projection_dim", 0)
    return facts | {
        "state": "what a model sees with",
        "encoder": f"{vision.name}, {vision.encoder.layers} layers of {vision.encoder.hidden_size}, {vision.merger.kind}",
        "memory": f"{show_bytes(weight_bytes(gguf))} of weights, {show_bytes(work_bytes(vision, width))} while a piece is encoded",
    }


def _sees(path: Path) -> dict[str, Any]:
    """What the model at that path would see with."""
    found = sight_of(path)
    if found is None:
        return {}
    try:
        with GGUF.open(found) as gguf:
            facts = _encoder(gguf, {})
    except (ValueError, OSError) as error:
        return {"sees": f"{found.name}: {error}"}
    return {
        "sees": f"with {found.name}: {facts.get('encoder') or facts.get('reason')}; {facts.get('memory', '')}".rstrip(
            "; "
        )
    }


def _active(gguf: GGUF, config: ModelConfig) -> int:
    """Weights that one token meets."""
    share = config.num_experts_per_tok / config.num_experts
    sizes = {name: math.prod(tensor.shape) for name, tensor in gguf.tensors.items()}
    return round(sum(size * (share if "_exps." in name else 1) for name, size in sizes.items()))


def _shown(name: str, value: Any) -> str:
    if name == "bytes":
        return f"{show_bytes(value)} ({value:,} bytes)"
    if name in ("installed", "chat_template"):
        return "yes" if value else "no"
    if name == "sampling":
        return sampling_line(value)
    if name == "types":
        total = sum(value.values())
        return ", ".join(f"{kind} {count / total:.0%}" for kind, count in value.items())
    if name == "source":
        return "; ".join(_source(s) for s in (value if isinstance(value, list) else [value]))
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _source(source: dict[str, Any]) -> str:
    if source.get("kind") == "pypi":
        return f"pypi {source['packages'][0]} {source['version']}, {len(source['packages'])} packages"
    if source.get("kind") == "bundled":
        return "gangpao itself"
    where = source.get("repo") or source.get("path") or ""
    file = f"/{source['file']}" if source.get("file") else ""
    return f"{source.get('kind')} {where}{file}"
