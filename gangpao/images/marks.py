"""Where the rows of a picture stand in a prompt: the texts around them, and how many rows there are.

    layout(pieces, marks, number)  -> [text, 0, text, 1, ...]: texts, and the index of each piece, in order
    video(frames, marks, number)   -> the same for the frames of a video: (frame, piece) instead of a piece
    tokens_of(pieces)              rows of the language model, without the texts

A picture's number counts the pictures of a conversation from 0; None leaves it out, as do marks without numbers.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from gangpao.formats.vision import Marks
from gangpao.images.slices import Pieces, Plan

T = TypeVar("T")


def layout(pieces: Plan | Pieces, marks: Marks, number: int | None) -> list[str | int]:
    """Texts and indices of pieces, in order. No two texts follow one another, none is empty."""
    return _joined([*_numbered(marks, number), *_picture(pieces, marks), marks.behind])


def video(frames: Sequence[Plan | Pieces], marks: Marks, number: int | None) -> list[str | tuple[int, int]]:
    """Texts and (frame, piece), in order; one number for the whole, where the marks have numbers for videos."""
    parts: list[str | tuple[int, int]] = [*_numbered(marks, number if marks.video_number else None)]
    for index, frame in enumerate(frames):
        parts.append("\n" if index and marks.video_lines and marks.number is not None else "")
        parts += [part if isinstance(part, str) else (index, part) for part in _picture(frame, marks)]
    return _joined([*parts, marks.behind])


def tokens_of(pieces: Plan | Pieces) -> int:
    """Rows of the language model that a picture takes, marks not counted."""
    return sum(pieces.tokens)


def _numbered(marks: Marks, number: int | None) -> list[str]:
    return [] if marks.number is None or number is None else [f"{marks.number[0]}{number}{marks.number[1]}"]


def _picture(pieces: Plan | Pieces, marks: Marks) -> list[str | int]:
    parts: list[str | int] = [marks.image[0], 0, marks.image[1]]
    if not pieces.columns:
        return parts
    parts.append(marks.slices[0])
    for index in range(1, 1 + pieces.columns * pieces.rows):
        parts += [marks.slice[0], index, marks.slice[1]]
        if index % pieces.columns == 0 and index < pieces.columns * pieces.rows:
            parts.append(marks.row)
    return [*parts, marks.slices[1]]


def _joined(parts: Iterable[str | T]) -> list[str | T]:
    """Without empty texts, texts that follow one another as one."""
    out: list[str | T] = []
    for part in parts:
        if part == "":
            continue
        if out and isinstance(part, str) and isinstance(out[-1], str):
            out[-1] += part
        else:
            out.append(part)
    return out
