"""A folder of pictures with a file of conversations about them: images/NNNNNN.png and rows.jsonl.

A row is {"messages": [{"role", "content"}, ...], "images": ["images/000000.png"]}, the first question with <image> in front: what
`gangpao tune` and LLaMA-Factory read. Paths are relative to the file. The folder appears whole or not at all.
"""

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from gangpao.atomic import new_folder
from gangpao.data.pictures import archives
from gangpao.data.pictures.archives import Found
from gangpao.data.pictures.strings import LENGTH, Strings
from gangpao.data.pictures.table import KINDS

MOST = 1_000_000
SMALLEST, LARGEST = 16, 2048
ROWS = "rows.jsonl"


def pictures(
    kind: str,
    *,
    count: int | None,
    seed: int = 0,
    unseen: bool = False,
    size: int | None = None,
    source: Path | None = None,
    fonts: Sequence[Path] = (),
    questions: int | None = None,
    describe: bool = False,
    lengths: tuple[int, int] | None = None,
) -> Iterator[Found]:
    """The pictures of a kind, one after the other. count: None is all that a source has. questions: about each, at most; None: as
    many as the kind has; of a source, further ones make another row. describe: only what asks for everything, of kinds that have
    it. lengths: of the shortest and the longest string; None: eight characters.

    Raises ValueError for a kind, size or source that is none, and for what is wrong with a source.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r:.40} is no kind of pictures; there are {', '.join(KINDS)}")
    if fonts and kind != "strings":
        raise ValueError(f"--font is for strings, not for {kind}")
    if lengths is not None and kind != "strings":
        raise ValueError(f"--lengths is for strings, not for {kind}")
    found = KINDS[kind]
    if not found.size:
        if size is not None:
            raise ValueError(f"{kind} keep the sizes that they have: leave --size out")
        for other in itertools.islice(_of_others(kind, source, unseen), count):
            most = max(1, questions or len(other.questions))
            for i in range(0, len(other.questions), most):  # none is cut off: what is never asked is never learned
                yield other._replace(questions=other.questions[i : i + most])
        return
    if source is not None:
        raise ValueError(f"{kind} are drawn: leave --from out")
    if count is None or not 1 <= count <= MOST:
        raise ValueError(f"--count says how many {kind} are drawn, from 1 to {MOST:,}")
    size = size or found.size
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"--size is {size}, and a side has {SMALLEST} to {LARGEST} pixels")
    draw = found.draw or Strings(fonts, lengths or (LENGTH, LENGTH))
    for i in range(count):
        scene = draw(Random(f"{kind} {seed} {unseen} {i}"), unseen, size)
        data = io.BytesIO()
        scene.picture.save(data, "PNG")
        asked = (scene.description,) if describe and scene.description else scene.questions[:questions]
        yield Found(data.getvalue(), ".png", asked)


def _of_others(kind: str, source: Path | None, unseen: bool) -> Iterator[Found]:
    if kind == "easy-vqa":
        return archives.of_easy_vqa(source, unseen)
    if source is None:
        raise ValueError(f"{kind} come from a tar archive: name it with --from")
    return archives.of_tar(source, kind, unseen)


def write(out: Path, found: Iterator[Found]) -> dict[str, Any]:
    """Write a folder; what it holds, as counts. Raises ValueError where nothing came, or the folder is there."""
    if out.exists():
        raise ValueError(f"{out} is there already: name another folder, or delete it")
    count = questions = size = 0
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        with (folder / ROWS).open("w", encoding="utf-8") as rows:
            for count, picture in enumerate(found, 1):
                name = f"images/{count - 1:06d}{picture.suffix}"
                (folder / name).write_bytes(picture.data)
                rows.write(json.dumps({"messages": messages(picture), "images": [name]}, ensure_ascii=False) + "\n")
                questions += len(picture.questions)
                size += len(picture.data)
        if not count:
            raise ValueError("no picture came: the source has none of this kind, or none for this split")
    return {"path": str(out / ROWS), "pictures": count, "questions": questions, "bytes": size}


def messages(picture: Found) -> list[dict[str, str]]:
    """The questions about a picture as one conversation."""
    out = []
    for number, (question, answer) in enumerate(picture.questions):
        out.append({"role": "user", "content": f"{'' if number else '<image>'}{question}"})
        out.append({"role": "assistant", "content": answer})
    return out
