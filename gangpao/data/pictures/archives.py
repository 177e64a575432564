"""Pictures of others with their words: tar archives of NNNNN.jpg with NNNNN.json, and easy-VQA as its package has it.

    figures   JSON with "alt" and "caption" (or one of them): what a figure of a book shows
    dishes    JSON with "title" and "text": what a dish is called, and a sentence about it
    easy-vqa  a wheel, or its unpacked folder: images/N.png and questions.json below train and test; the split is the package's own

The bytes of a picture go through as they are. Of an archive one picture in twenty is for tests, by the hash of its name.
Members are read one after another and never unpacked to where their names say.
"""

import hashlib
import importlib.util
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gangpao.data.pictures.scene import Question

MAX_MEMBER = 20_000_000
_TEST = 20
_PACKAGE = "easy_vqa"


class Found(NamedTuple):
    """A picture's bytes as they lie in its file, the end of its name, and what is asked."""

    data: bytes
    suffix: str
    questions: tuple[Question, ...]


def of_tar(path: Path, kind: str, unseen: bool) -> Iterator[Found]:
    """Pictures of an archive, in its order. kind: figures or dishes. Raises ValueError naming the archive and the member."""
    waiting: dict[str, tuple[bytes | None, str, Any]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp", ".json"):
                    continue
                if member.size > MAX_MEMBER:
                    raise ValueError(
                        f"{path}: {member.name} has {member.size:,} bytes, at most {MAX_MEMBER:,} are read"
                    )
                stream = archive.extractfile(member)
                assert stream is not None
                data = stream.read()
                picture, suffix, words = waiting.pop(name.stem, (None, "", None))
                if name.suffix.lower() == ".json":
                    words = _words(data, f"{path}: {member.name}")
                else:
                    picture, suffix = data, name.suffix.lower()
                if picture is None or words is None:
                    waiting[name.stem] = (picture, suffix, words)
                elif _is_test(name.stem) == unseen and (questions := _QUESTIONS[kind](words)):
                    yield Found(picture, suffix, questions)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path}: is no tar archive that can be read ({error})") from error
    if waiting:
        raise ValueError(
            f"{path}: {len(waiting)} members have no partner (.jpg and .json), the first is {min(waiting)}"
        )


def _is_test(stem: str) -> bool:
    return int.from_bytes(hashlib.blake2b(stem.encode(), digest_size=2).digest(), "little") % _TEST == 0


def _words(data: bytes, where: str) -> dict[str, Any]:
    try:
        words = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is no JSON ({error})") from error
    if not isinstance(words, dict):
        raise ValueError(f"{where}: holds a {type(words).__name__}, and an object is needed")
    return words


def _text(words: dict[str, Any], key: str) -> str:
    value = words.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _of_figure(words: dict[str, Any]) -> tuple[Question, ...]:
    asked = (
        ("what does the figure show?", _text(words, "alt")),
        ("write a caption for the figure.", _text(words, "caption")),
    )
    return tuple((question, answer) for question, answer in asked if answer)


def _of_dish(words: dict[str, Any]) -> tuple[Question, ...]:
    asked = (("这是什么菜？", _text(words, "title")), ("介绍一下这道菜。", _text(words, "text")))
    return tuple((question, answer) for question, answer in asked if answer)


_QUESTIONS = {"figures": _of_figure, "dishes": _of_dish}


def of_easy_vqa(path: Path | None, unseen: bool) -> Iterator[Found]:
    """easy-VQA, all questions about a picture together. path: a wheel or a folder; None: the package that is installed.

    Raises ValueError where it is not there, or not whole.
    """
    path = path or _installed()
    split = f"{_PACKAGE}/data/{'test' if unseen else 'train'}"
    if path.is_dir():
        root = path / split if (path / split).is_dir() else path / PurePosixPath(split).relative_to(_PACKAGE)
        yield from _with_questions(lambda name: (root / name).read_bytes(), path)
        return
    try:
        with zipfile.ZipFile(path) as wheel:
            yield from _with_questions(lambda name: wheel.read(f"{split}/{name}"), path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: is no wheel of easy-vqa ({error})") from error


def _installed() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            "the package easy-vqa is not installed: `pip download --no-deps easy-vqa` and name the wheel with --from, or install it"
        )
    return Path(spec.origin).parent


def _with_questions(read: Any, path: Path) -> Iterator[Found]:
    try:
        rows = json.loads(read("questions.json"))
        by_picture: dict[int, list[Question]] = {}
        for question, answer, number in rows:
            by_picture.setdefault(int(number), []).append((str(question), str(answer)))
        for number, questions in by_picture.items():
            yield Found(read(f"images/{number}.png"), ".png", tuple(questions))
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is not easy-vqa 1.0, or not all of it ({error})") from error
