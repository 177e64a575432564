"""`gangpao ps`: which models a running server holds in memory, ours or Ollama's."""

import json
from typing import Annotated, Any

import typer

from gangpao.commands import options as opt
from gangpao.units import show_bytes, table

Url = Annotated[str, typer.Argument(help="Address of the server: ours, or Ollama.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="The server's API key.")]


def ps(url: Url = "http://127.0.0.1:8000", api_key: ApiKey = None, as_json: opt.Json = False) -> None:
    """Show which models a running server holds in memory."""
    rows = running(url, api_key)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    elif rows:
        cells = [[str(r.get("name")), show_bytes(r.get("size") or 0), str(r.get("context_length", "?"))] for r in rows]
        print(table(["model", "memory", "context"], cells))
    else:
        print(f"{url}: no model is in memory")


def running(url: str, api_key: str | None = None) -> list[dict[str, Any]]:
    """The rows of a server's /api/ps. Raises ValueError where none answers there."""
    import httpx2

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx2.get(f"{url.rstrip('/')}/api/ps", headers=headers, timeout=10, trust_env=False)
        answer.raise_for_status()
        models = answer.json()["models"]
        return [row for row in models if isinstance(row, dict)]
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{url}: no server answers there ({why}); `gangpao serve NAME` starts one, `gangpao list` shows files"
        ) from None
