"""What Ollama's API says about models: /api/version, /api/tags, /api/ps and /api/show, from our files and their headers.

digest identifies a file by its name, size and date, because summing up gigabytes for a list is no answer to a list.
"""

import asyncio
import datetime
import hashlib
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import gangpao
from gangpao import catalog
from gangpao.formats.gguf import GGUF
from gangpao.serve.api import schema
from gangpao.serve.api.dialect import Body
from gangpao.serve.http.errors import ApiError
from gangpao.serve.http.stream import Json, read_json
from gangpao.serve.server import Server
from gangpao.validation import Field

SPEAKS = "0.33.0"  # the Ollama whose API this is: clients compare it with what they need
_NEVER_S = 100 * 365 * 86400  # "stays loaded", as Ollama writes it: a date far away
_MAX_TEXT = 1_000  # of one value in model_info


class ShowRequest(schema.Body):
    """POST /api/show."""

    model: str | None = Field(None, max_length=512)
    name: str | None = Field(None, max_length=512)


def routes(server: Server) -> list[Route]:
    """The routes that only tell."""

    async def version(request: Request) -> Response:
        return Json({"version": SPEAKS, "gangpao": gangpao.__version__})

    async def tags(request: Request) -> Response:
        models = {name: server.models.files[server.models.base_of(name)] for name in server.models.names()}
        return Json({"models": [await asyncio.to_thread(_listed, name, path) for name, path in models.items()]})

    async def running(request: Request) -> Response:
        idle = server.settings.idle_unload_s
        until = stamp(time.time() + (_NEVER_S if idle is None else idle))
        found = []
        for name, loaded in server.models.loaded().items():
            one = await asyncio.to_thread(_listed, name, loaded.path)
            now = {"size": loaded.need, "expires_at": until, "size_vram": 0, "context_length": loaded.engine.context}
            found.append(one | now)
        return Json({"models": found})

    async def show(request: Request) -> Response:
        asked = schema.parse(ShowRequest, await read_json(request))
        name = server.models.name_of(model_name(asked.model or asked.name))
        base = server.models.base_of(name)
        return Json(await asyncio.to_thread(_shown, server.models.files[base], base in server.models.sights))

    plain = [("version", version), ("tags", tags), ("ps", running)]
    return [
        *(Route(f"/api/{path}", handler, methods=["GET"]) for path, handler in plain),
        Route("/api/show", show, methods=["POST"]),
    ]


def model_name(name: str | None) -> str | None:
    """A model's name without the tag that Ollama's clients put behind it."""
    return name.removesuffix(":latest") if name else None


def stamp(seconds: float) -> str:
    """Unix seconds as Ollama writes a time."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


def _listed(name: str, path: Path) -> Body:
    """A model for a list; one whose file was deleted meanwhile has no size, and the others are listed all the same."""
    try:
        found = path.stat()
        size, changed = catalog.bytes_of(path), found.st_mtime_ns
    except OSError:
        size, changed = 0, 0
    return {
        "name": name,
        "model": name,
        "modified_at": stamp(changed / 1e9),
        "size": size,
        "digest": hashlib.sha256(f"{path.name} {size} {changed}".encode()).hexdigest(),
        "details": _details("", "", ""),
    }


def _details(family: str, size: str, quantization: str) -> Body:
    return {
        "parent_model": "", "format": "gguf", "family": family, "families": [family] if family else [],
        "parameter_size": size, "quantization_level": quantization,
    }  # fmt: skip


def _shown(path: Path, sees: bool) -> Body:
    try:
        with GGUF.open(path) as gguf:
            kinds: Counter[str] = Counter()
            for tensor in gguf.tensors.values():
                kinds[tensor.type] += math.prod(tensor.shape)
            info = {key: value for key, value in gguf.metadata.items() if _is_short(value)}
            template = gguf.metadata.get("tokenizer.chat_template")
    except (OSError, ValueError) as error:
        raise ApiError(503, f"the model file cannot be read: {error}"[:300]) from None
    total, family = sum(kinds.values()), str(info.get("general.architecture", ""))
    size = f"{total / 1e9:.1f}B" if total >= 1e9 else f"{total / 1e6:.1f}M"
    return {
        "modelfile": "",
        "parameters": "",
        "template": template if isinstance(template, str) else "",
        "license": str(info.get("general.license", "")),
        "modified_at": stamp(path.stat().st_mtime),
        "details": _details(family, size, kinds.most_common(1)[0][0] if kinds else ""),
        "model_info": info | {"general.parameter_count": total},
        "capabilities": ["completion", "tools", "embedding", *(["vision"] if sees else [])],
        **({"projector_info": {"general.architecture": "clip"}} if sees else {}),
    }


def _is_short(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # JSON has no others
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= _MAX_TEXT)
