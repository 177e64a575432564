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
        return out | {
            "state": "untested" if config else "cannot run",
            "reason": reason,
            "architecture": architecture,
            "title": metadata.get("general.name", ""),
            "licence": metadata.get("general.license", ""),
            "parameters": sum(kinds.values()),
            "context_length": metadata.get(f"{architecture}.context_length"),
            "types": dict(kinds.most_common()),
            "vocabulary": len(metadata.get("tokenizer.ggml.tokens", ())),
            "sampling": recommended_in(metadata),
            "chat_template": isinstance(metadata.get("tokenizer.chat_template"), str),
        }


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
    where = source.get("repo") or source.get("path") or ""
    file = f"/{source['file']}" if source.get("file") else ""
    return f"{source.get('kind')} {where}{file}"
