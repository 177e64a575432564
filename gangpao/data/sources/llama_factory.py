"""LLaMA-Factory's dataset_info.json: which file a data set is, and which of its columns and tags mean what.

    {"mine": {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": {"role_tag": ...}}}

The idea: an entry becomes a function that rewrites a row into a form that forms.py and preferences.py read, so there is one reader.
What the file says is what it says there: an entry that names one column gives up all others, and one that names one tag all other
tags, the defaults included (checked with their 0.9.5). An entry that thereby means nothing is refused with that reason.

What it gives up: entries of a hub, of a script or of a cloud, parts of a data set (split, subset, num_samples), videos and sounds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gangpao.atomic import read_json
from gangpao.data.sources.files import format_of

FILE_NAME = "dataset_info.json"

Rewrite = Callable[[Any], "dict[str, Any] | str"]

_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "observation_tag": "observation",
    "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
_ROLES = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "function_call",
    "system_tag": "system",
}  # fmt: skip
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_MEDIA = ("videos", "audios")


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set of the file: its files, what its rows hold once they are rewritten, and what rewrites one."""

    files: tuple[Path, ...]
    kind: Literal["texts", "answers", "pairs", "labelled"]
    rewrite: Rewrite


def entry(path: Path, name: str) -> Entry:
    """What dataset_info.json says about one data set. Raises ValueError where it is not there, lies elsewhere or means nothing."""
    told = read_json(path)
    if not isinstance(told, dict):
        raise ValueError(f"{path}: is no object of data sets")
    if name not in told:
        names = ", ".join(list(told)[:8]) or "nothing"
        raise ValueError(f"{path}: there is no data set {name!r:.60} in it; it has {names}. Write {path.name}#NAME")
    said, where = told[name], f"{path}: {name}"
    if not isinstance(said, dict):
        raise ValueError(f"{where}: is no object")
    _refuse(said, where)
    file = path.parent / str(said["file_name"])
    files = tuple(sorted(p for p in file.iterdir() if p.is_file())) if file.is_dir() else (file,)
    if not files or not all(p.is_file() for p in files):
        raise ValueError(f"{where}: there is no file {file}")
    for one in files:
        format_of(one)
    return _Entry(said, where).made(files)


def _refuse(said: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for an entry that is not a file here, or only a part of one."""
    for key in _ELSEWHERE:
        if key in said:
            raise ValueError(
                f"{where}: {key}: data sets elsewhere are not fetched; bring its file here and name it in file_name"
            )
    if "file_name" not in said:
        raise ValueError(f"{where}: names no file_name")
    for key, usual in (("split", "train"), ("subset", None), ("folder", None), ("num_samples", None)):
        if said.get(key, usual) != usual:
            raise ValueError(
                f"{where}: {key}: parts of a data set are not read; make a file of the part, and leave {key} out"
            )
    formatting = said.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise ValueError(f"{where}: formatting is {formatting!r:.40}, not alpaca, sharegpt or openai")
    for key in ("columns", "tags"):
        if not isinstance(said.get(key, {}), dict):
            raise ValueError(f"{where}: {key} is no object")
    media = [key for key in _MEDIA if said.get("columns", {}).get(key)]
    if media:
        raise ValueError(
            f"{where}: {media[0]}: only text and pictures are tuned on; leave the column out, or tune on rows without it"
        )


class _Entry:
    """One entry's columns and tags, as they stand after what it names has reset what it does not."""

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.talks = said.get("formatting", "alpaca") != "alpaca"
        self.ranking = bool(said.get("ranking", False))
        self.columns: Mapping[str, str | None] = said.get("columns", _COLUMNS)
        self.tags: Mapping[str, str | None] = said.get("tags", _TAGS)
        self.roles = {tag: role for key, role in _ROLES.items() if (tag := self.tags.get(key))}

    def made(self, files: tuple[Path, ...]) -> Entry:
        need = ["messages"] if self.talks else ["prompt"]
        need += ["chosen", "rejected"] if self.ranking else []
        for key in need:
            if not self.columns.get(key):
                raise self._nothing("columns", key)
        if self.talks:
            for key in ("role_tag", "content_tag", "user_tag", "assistant_tag"):
                if not self.tags.get(key):
                    raise self._nothing("tags", key)
        if self.columns.get("kto_tag"):
            return Entry(files, "labelled", self.labelled)
        if self.ranking:
            return Entry(files, "pairs", self.pair)
        if self.talks or self.columns.get("response"):
            return Entry(files, "answers", self.answer)
        return Entry(files, "texts", self.text)

    def _nothing(self, table: str, key: str) -> ValueError:
        return ValueError(
            f"{self.where}: {table} does not name {key}, and naming one of the {table} leaves all others without a default (in "
            f"LLaMA-Factory too), so that every row would have nothing there; name {key} as well"
        )

    def _value(self, row: Mapping[str, Any], key: str) -> Any:
        name = self.columns.get(key)
        return row.get(name) if name else None

    def text(self, row: Any) -> dict[str, Any] | str:
        """A row without an answer: what stands under prompt and query is a text to go on reading."""
        if not isinstance(row, dict):
            return f"is a {type(row).__name__}, not an object"
        parts = [self._value(row, "prompt"), self._value(row, "query")]
        texts = [part for part in parts if isinstance(part, str) and part]
        return {"text": "\n".join(texts)} if texts else f"has no text under {self.columns['prompt']!r:.40}"

    def _begun(self, row: Any) -> dict[str, Any] | str:
        """What stands in front of the answers, or with them: the rewritten row without them."""
        if not isinstance(row, dict):
            return f"is a {type(row).__name__}, not an object"
        out = {key: value for key in ("system", "tools", "images") if (value := self._value(row, key))}
        if self.talks:
            turns = self._turns(self._value(row, "messages"))
            return turns if isinstance(turns, str) else {**out, "messages": turns}
        pairs = {"instruction": "prompt", "input": "query"}
        return {
            **out,
            "history": self._value(row, "history"),
            **{k: self._value(row, c) or "" for k, c in pairs.items()},
        }

    def answer(self, row: Any) -> dict[str, Any] | str:
        """A conversation."""
        out = self._begun(row)
        if isinstance(out, str) or self.talks:
            return out
        said = self._value(row, "response")
        return (
            {**out, "output": said} if isinstance(said, str) else f"has no text under {self.columns['response']!r:.40}"
        )

    def labelled(self, row: Any) -> dict[str, Any] | str:
        """An answer with its label."""
        out = self.answer(row)
        return out if isinstance(out, str) else {**out, "label": self._value(row, "kto_tag")}

    def pair(self, row: Any) -> dict[str, Any] | str:
        """Two answers to what stands in front of them."""
        out = self._begun(row)
        if isinstance(out, str):
            return out
        for key in ("chosen", "rejected"):
            value = self._value(row, key)
            turns = self._turns([value]) if isinstance(value, dict) else value
            if isinstance(turns, str) and isinstance(value, dict):
                return f"{key}: {turns}"
            out[key] = turns
        return out

    def _turns(self, turns: Any) -> list[Any] | str:
        """Turns with our names of roles, or what is wrong with them."""
        if not isinstance(turns, list) or not turns:
            return f"has no list of turns under {self.columns['messages']!r:.40}"
        out = []
        role_tag, content_tag = str(self.tags["role_tag"]), str(self.tags["content_tag"])
        for number, turn in enumerate(turns, 1):
            role = turn.get(role_tag) if isinstance(turn, dict) else None
            if not isinstance(role, str) or role not in self.roles:
                known = ", ".join(self.roles)
                return f"turn {number} has the role {role!r:.40} under {role_tag!r:.40}, and the tags name {known}"
            rest = {key: turn[key] for key in ("tool_calls", "reasoning_content") if key in turn}
            out.append({"role": self.roles[role], "content": turn.get(content_tag), **rest})
        return out
