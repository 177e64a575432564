"""A program: every class of requests, thrown at with what clients send (right, wrong in each way, and odd), and files with faults.

Arguments: a path to write at, and the texts of files as a JSON list. It prints what came of each, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

from gangpao import catalog, config, cost
from gangpao.serve.api import anthropic, ollama, ollama_models, openai_chat, responses, schema
from gangpao.serve.http.errors import ApiError

VALUES: list[Any] = [
    None, True, 0, 1, -1, 7, 1.0, 0.5, 2.5, 1e9, 10**20, -3, "", "hello", "x" * 600, [], ["a"], ["a", 1], [1, 2], [1.0], [[1]], {},
    {"a": 1}, {"a": 0.5}, {"a": "b"}, {"type": "text"}, {"type": "text", "text": "hi"}, {"type": "text", "text": 3},
    [{"type": "text", "text": "hi"}], [{"type": "image_url", "image_url": {"url": "data:"}}],
    [{"type": "image_url", "image_url": 4}], [{"type": "strange", "text": 5, "content": [1]}], [{"role": "user", "content": "hi"}],
    [{"role": "user"}], [{"content": 3}], [{"role": "user", "content": [{"type": "text"}, 4]}],
    [{"role": "user", "content": [{"type": "tool_result", "content": ["a"]}]}], {"include_usage": True}, {"include_usage": "yes"},
    {"enabled": True}, {"effort": "low"}, {"type": "enabled"}, {"type": "auto"}, {"type": "json_schema", "schema": {}},
    {"format": {"type": "json_schema"}}, {"num_predict": -2, "stop": ["a"]}, [None], ["a"] * 5000,
    [{"function": {"name": "f", "arguments": "{}"}}], {str(i): 1 for i in range(400)},
    [{"filename": "a", "text": "b"}, {"text": 1}],
]  # fmt: skip


def said(kind: Any, body: dict[str, Any]) -> list[Any]:
    try:
        made = schema.parse(kind, body)
        return [made.model_dump(), sorted(made.model_fields_set)]
    except ApiError as error:
        return [error.status, error.message, error.param]


def right_for(kind: Any) -> dict[str, Any]:
    """For each field that must be given the first value that is not to blame."""
    right: dict[str, Any] = {}
    for name in [field.alias or name for name, field in kind.model_fields.items() if field.is_required()]:
        for value in VALUES:
            answer = said(kind, right | {name: value})
            if not (isinstance(answer[0], int) and (answer[2] == name or answer[1].startswith(name))):
                right[name] = value
                break
    return right


def requests() -> list[Any]:
    modules = (anthropic, ollama, ollama_models, openai_chat, responses, schema)
    kinds = {
        f"{kind.__module__}.{kind.__name__}": kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, schema.Body)
    }
    found = []
    for label, kind in sorted(kinds.items()):
        right = right_for(kind)
        found.append([label, said(kind, right), said(kind, {}), said(kind, {"unknown": 1})])
        for name, field in kind.model_fields.items():
            found += [[label, name, said(kind, right | {field.alias or name: value})] for value in VALUES]
    return found


def files(path: Path, texts: list[str]) -> list[str]:
    found = []
    for text in texts:
        path.write_text(text, encoding="utf-8")
        for kind in (catalog.Catalog, cost.Prices):
            try:
                found.append(repr(config.load_toml(path, kind)))
            except ValueError as error:
                found.append(str(error))
    found += [repr(catalog.load()), repr(cost.load_prices())]
    entries = catalog.load().models.values()
    return [*found, *(json.dumps(s.model_dump(exclude_none=True)) for entry in entries for s in entry.sources)]


print(json.dumps([*requests(), *files(Path(sys.argv[1]), json.loads(sys.argv[2]))], default=str))
