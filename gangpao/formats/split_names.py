"""The names of a split model's files: NAME-00001-of-0000N.gguf and so on, as llama.cpp writes them."""

import re

MAX_PARTS = 512
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def parts_of(file: str) -> list[str]:
    """All files of the model that a file belongs to: itself, or x-00001-of-0000N.gguf and so on, whichever part it is."""
    found = _SPLIT.fullmatch(file)
    count = int(found["count"]) if found else 1
    if found is None or not 1 <= int(found["number"]) <= count <= MAX_PARTS:
        return [file]
    return [part_name(found["stem"], i, count, found["suffix"]) for i in range(1, count + 1)]


def part_name(stem: str, number: int, count: int, suffix: str = ".gguf") -> str:
    """The name of part `number` (from 1) of `count`."""
    return f"{stem}-{number:05d}-of-{count:05d}{suffix}"


def stem_of(file: str) -> str:
    """What a model's file is called, without its suffix and the number of its part."""
    found = _SPLIT.fullmatch(file)
    return found["stem"] if found else file.rpartition(".")[0] or file
