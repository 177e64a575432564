"""Pictures in rows of conversations: where each stands becomes one private character in a turn, and what it is a reference.

    OpenAI          a part {"type": "image_url", "image_url": {"url": ...}}, input_image, or Anthropic's with a source
    LLaMA-Factory   "images": [path, ...] beside the turns, and <image> where each stands
    MiniCPM-V       "image": path and <image>, or "image": {"<image_00>": path, ...} and these names where they stand

A reference is a path, a data: URL, or bytes (Parquet). Without a place for it a picture stands in front of the first question, as
MiniCPM-V's own code has it. A row without pictures is left as it is, also where it spells <image>.

What it gives up: addresses of the web, which are not fetched, and videos: a row with one is refused, so that no model learns to
answer what it was not shown.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Reference = str | bytes

MOST = 256  # in one conversation
_FIRST = 0x10F000  # in a private plane: no text has these
_MARKS = re.compile(f"[{chr(_FIRST)}-{chr(_FIRST + MOST - 1)}]")
_PLACES = re.compile(r"<image(?:_\d+)?>")
_BESIDE = ("images", "image", "image_path")
_NOT_READ = ("videos", "video", "audios", "audio")  # beside the turns: LLaMA-Factory's
_PARTS = ("image_url", "input_image", "image")


class Placed(NamedTuple):
    """Turns whose contents have a mark for each picture, and the pictures in the order of their marks."""

    turns: list[Any]
    references: tuple[Reference, ...]


def mark(number: int) -> str:
    """The character that stands for a picture of a conversation, counted from 0."""
    return chr(_FIRST + number)


def marks_in(text: str) -> list[int]:
    """The numbers of the pictures in a text, in order."""
    return [ord(found) - _FIRST for found in _MARKS.findall(text)]


def cut(text: str) -> list[str | int]:
    """A text in pieces: texts, and numbers of pictures."""
    out: list[str | int] = []
    for piece, number in zip(_MARKS.split(text), [*marks_in(text), None], strict=True):
        out += [piece] if piece else []
        out += [] if number is None else [number]
    return out


def placed(row: Mapping[str, Any], turns: Sequence[Any]) -> Placed | str:
    """Find the pictures of a row's turns; or what is wrong with them. Turns without any come back as they are."""
    other = next((key for key in _NOT_READ if row.get(key)), None)
    if other is not None:
        return f"has {other}, which is not read: leave the row out, or give frames of a video as images"
    beside = _beside(row)
    if isinstance(beside, str):
        return beside
    if not beside and any(key in row for key in _BESIDE) and any(_asks_for_one(turn) for turn in turns):
        return "says <image>, and its list of images is empty"
    run = _Run(beside)
    out = [run.turn(number, turn) for number, turn in enumerate(turns, 1)]
    if run.fault:
        return run.fault
    left = len(run.beside) - len(run.used)
    if left and run.used:
        return f"has {len(run.beside)} images, and places <image> for {len(run.used)} of them"
    if left:
        first = next((i for i, turn in enumerate(out) if isinstance(turn, dict) and _says(turn) == "user"), None)
        if first is None:
            return "has images, and no question in front of which they could stand"
        marks = "".join(f"{run.new(reference)}\n" for reference in run.beside.values())
        out[first] = _with_content(out[first], marks)
    if len(run.references) > MOST:
        return f"has {len(run.references)} pictures, at most {MOST} may be in a conversation"
    return Placed(out, tuple(run.references))


def _asks_for_one(turn: Any) -> bool:
    """Whether a question has a place for a picture."""
    if not isinstance(turn, dict) or _says(turn) != "user":
        return False
    content = turn.get("content", turn.get("value"))
    return isinstance(content, str) and "<image>" in content


def _says(turn: Mapping[str, Any]) -> str:
    name = str(turn.get("role", turn.get("from", "")))
    return "user" if name in ("user", "human") else name


def _with_content(turn: Mapping[str, Any], front: str) -> dict[str, Any]:
    key = "content" if "content" in turn else "value"
    content = turn.get(key)
    behind = [{"type": "text", "text": front}, *content] if isinstance(content, list) else f"{front}{content}"
    return {**turn, key: behind}


def _beside(row: Mapping[str, Any]) -> dict[str, Reference] | str:
    """Pictures beside the turns, by the names that stand for them, or by numbers."""
    key = next((key for key in _BESIDE if row.get(key)), None)
    if key is None:
        return {}
    value = row[key]
    if isinstance(value, dict) and value and all(_PLACES.fullmatch(str(name)) for name in value):
        named = {name: _reference(one) for name, one in value.items()}
    else:
        listed = value if isinstance(value, list | tuple) else [value]
        named = {str(i): _reference(one) for i, one in enumerate(listed)}
    bad = next((name for name, one in named.items() if not isinstance(one, str | bytes) or not one), None)
    if bad is not None:
        return f"{key}: {bad} is no path, data: URL or bytes of a picture"
    return {name: one for name, one in named.items() if one is not None}


def _reference(value: Any) -> Reference | None:
    if isinstance(value, dict):  # as the data sets of Hugging Face hold pictures
        value = value.get("bytes") or value.get("path") or value.get("url")
    return value if isinstance(value, str | bytes) else None


class _Run:
    """One row: what stands beside it, how many of those were used, and all pictures in the order in which they stand."""

    def __init__(self, beside: dict[str, Reference]) -> None:
        self.beside, self.fault = beside, ""
        self.used: set[str] = set()
        self.named = any(_PLACES.fullmatch(name) for name in beside)
        self.references: list[Reference] = []

    def new(self, reference: Reference) -> str:
        self.references.append(reference)
        return mark(len(self.references) - 1)

    def turn(self, number: int, turn: Any) -> Any:
        """A turn with marks in its content; sets `fault` where there is one."""
        content = (
            turn
            if isinstance(turn, str)
            else turn.get("content", turn.get("value"))
            if isinstance(turn, dict)
            else None
        )
        before = len(self.references)
        if isinstance(content, str):
            found: Any = self._text(content)
        elif isinstance(content, list):
            found = [self._part(part) for part in content]
        else:
            return turn
        if len(self.references) == before:
            return turn
        answers = number % 2 == 0 if isinstance(turn, str) else _says(turn) in ("assistant", "gpt", "model")
        if answers:
            self.fault = self.fault or f"turn {number} is an answer that shows a picture"
        if isinstance(turn, str):
            return found
        return {**turn, "content" if "content" in turn else "value": found}

    def _text(self, text: str) -> str:
        if _MARKS.search(text):
            self.fault = self.fault or "has a private character that stands for pictures here (U+10F000 and on)"
        return _PLACES.sub(self._place, text) if self.beside else text

    def _place(self, found: re.Match[str]) -> str:
        name = found[0] if self.named else str(len(self.used))
        if self.named and name not in self.beside:
            return name  # words of the text
        if name not in self.beside:
            self.fault = self.fault or f"has {len(self.beside)} images, and more places <image> than that"
            return ""
        self.used.add(name)
        return self.new(self.beside[name])

    def _part(self, part: Any) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in (None, "text", "input_text") or not isinstance(part, dict):
            text = part.get("text") if isinstance(part, dict) else part
            return {"type": "text", "text": self._text(text)} if isinstance(text, str) else part
        if kind not in _PARTS:
            return part
        reference = _of_part(part)
        if reference is None and kind == "image" and self.beside and not self.named:
            return {"type": "text", "text": self._place(re.match("<image>", "<image>"))}  # type: ignore[arg-type]
        if reference is None:
            self.fault = self.fault or f"has a part of type {kind} without a picture"
            return part
        return {"type": "text", "text": self.new(reference)}


def _of_part(part: Mapping[str, Any]) -> Reference | None:
    """What an image part refers to, in any of the forms that APIs have."""
    source = part.get("source")
    if isinstance(source, dict) and isinstance(source.get("data"), str):
        return f"data:{source.get('media_type', 'image/png')};base64,{source['data']}"
    for key in ("image_url", "image", "url", "path", "source"):
        if (found := _reference(part.get(key))) is not None:
            return found
    return None
