"""Pictures from files for a question: a path as it is typed, or as a terminal writes it when a file is dragged into it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gangpao.commands.terminal.screen import Percent
from gangpao.engine.generate import Engine
from gangpao.engine.pictures.rows import Hold, RowsFull
from gangpao.images import look
from gangpao.images.clips import any_of
from gangpao.images.decode import decode
from gangpao.images.look import Picture
from gangpao.optional import there

_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".mp4", ".mov", ".m4v", ".webm", ".mkv")
# A path in quotes, or up to the first space that has no backslash in front of it.
_PATH = re.compile(r"""\s*(?:'([^']+)'|"([^"]+)"|((?:\\.|[^\s\\])+))(?=\s|$)""")


def load(path: Path, *, whole: bool = False) -> Picture:
    """The picture, or the video, in a file. whole: decode a picture once, where that can be done here, so that a damaged one is
    found before it is asked about. Raises ValueError saying what is wrong with it."""
    try:
        if path.stat().st_size > look.MAX_BYTES:
            raise ValueError(f"{path}: larger than the {look.MAX_BYTES:,} bytes that are allowed")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    try:
        found = any_of(data)
        if whole and not found.clip and there("PIL"):
            decode(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def split_path(text: str) -> tuple[Path | None, str]:
    """The path at the beginning of a text, and what follows it; None where there is none. Quotes, backslashes, ~ and file: URLs are
    read as a shell or a file manager writes them, and a path with bare spaces is found where it is a file."""
    whole = Path(text.strip()).expanduser()
    if text.strip() and _is_file(whole):
        return whole, ""
    match = _PATH.match(text)
    if match is None:
        return None, text
    quoted = match[1] or match[2]
    typed = quoted or re.sub(r"\\(.)", r"\1", match[3])
    if typed.lower().startswith("file:"):
        typed = unquote(urlsplit(typed).path)
    return Path(typed).expanduser(), text[match.end() :].strip()


def dragged(text: str) -> tuple[Path | None, str]:
    """The picture's path that a line begins or ends with as a terminal writes one that is dragged into it, and the rest of the
    line; None where the line is only words."""
    path, rest = split_path(text)
    if path is not None and _is_dragged(path):
        return path, rest
    for match in re.finditer(r"(?<=\s)(?=['\"/~]|file:)", text):
        path, rest = split_path(text[match.start() :])
        if path is not None and not rest and _is_dragged(path):
            return path, text[: match.start()].strip()
    return None, text


def _is_dragged(path: Path) -> bool:
    return path.is_absolute() and path.suffix.lower() in _SUFFIXES and _is_file(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a path may be, or with a zero byte
        return False


def see(engine: Engine, pictures: Sequence[Picture]) -> Hold | None:
    """Have pictures encoded, with a line on a terminal's stderr that is gone again; None without pictures. Raises ValueError."""
    if not pictures:
        return None
    assert engine.seeing is not None
    if (found := engine.seeing.remembered(pictures)) is not None:
        return found
    counters, total = engine.seeing.counters, sum(len(engine.seeing.look(one).rows) for one in pictures)
    percent = Percent("looking at the picture" if len(pictures) == 1 else f"looking at {len(pictures)} pictures")
    before = counters.pieces + counters.pieces_cached

    def check() -> None:
        percent(min(counters.pieces + counters.pieces_cached - before, total), total)

    try:
        return engine.see(pictures, check)
    except RowsFull:
        raise ValueError("there is no memory for more pictures: leave some out, or take a larger --context") from None
    finally:
        percent.clear()


def as_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as OpenAI writes it: a content without pictures as it is, else as parts with data: URLs."""
    pictures = sorted(message.get("pictures", ()), key=lambda one: one[0])
    content = message["content"]
    if not pictures:
        return {"role": message["role"], "content": content}
    parts: list[dict[str, Any]] = []
    begin = 0
    for at, picture in [*pictures, (len(content), None)]:
        if content[begin:at]:
            parts.append({"type": "text", "text": content[begin:at]})
        begin = at
        if picture is not None:
            parts.append(look.as_part(picture))
    return {"role": message["role"], "content": parts}
