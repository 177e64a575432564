"""Messages with pictures: from (place in the content, picture) to one private character each, and back to where they stand."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gangpao.formats.vision import Marks
from gangpao.images.canvas import MarkIds
from gangpao.images.look import Picture
from gangpao.text.templates.pictures import free_characters
from gangpao.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]

LEFT_OUT = "[image left out]"


def placed(messages: Messages) -> tuple[list[dict[str, Any]], dict[str, Picture]]:
    """Messages in whose contents a character stands for each of their `pictures` (place in the content, picture), which they lose,
    and the picture of each character."""
    count = sum(len(message.get("pictures", ())) for message in messages)
    said = [{key: value for key, value in message.items() if key != "pictures"} for message in messages]
    characters = iter(free_characters(count, said))
    out: list[dict[str, Any]] = []
    pictures: dict[str, Picture] = {}
    for message, one in zip(messages, said, strict=True):
        found = [(at, next(characters), picture) for at, picture in message.get("pictures", ())]
        if found:
            one["content"] = with_characters(one["content"], [(at, c) for at, c, _ in found])
            pictures |= {c: picture for _, c, picture in found}
        out.append(one)
    return out, pictures


def left_out(messages: Messages) -> list[dict[str, Any]]:
    """The messages as a model that reads text only is told them: a line instead of each of their `pictures`."""
    out = []
    for message in messages:
        one = {key: value for key, value in message.items() if key != "pictures"}
        if "pictures" in message:
            one["content"] = "\n".join([*[LEFT_OUT for _ in message["pictures"]], one["content"]]).rstrip()
        out.append(one)
    return out


def with_characters(content: str, characters: Iterable[tuple[int, str]]) -> str:
    """The content with characters put in, each at its place of what the content was before."""
    out, begin = [], 0
    for at, character in sorted(characters, key=lambda one: one[0]):
        out += [content[begin:at], character]
        begin = max(begin, at)
    return "".join([*out, content[begin:]])


def arranged(
    messages: Messages, characters: Collection[str], marks: Marks, parts: bool
) -> tuple[Sequence[Mapping[str, Any]], Marks]:
    """The messages with the line breaks that a model has between pictures and words, and the marks that go with them.

    parts: whether the chat template takes contents as parts, so that it says itself what stands between them. This is the one
    place for it: prompts and what is trained on have to be the same.
    """
    if not parts and marks.number is None:
        return messages, marks
    return messages if parts else on_own_lines(messages, characters), replace(marks, behind="")


def mark_ids(tokenizer: Tokenizer, marks: Marks, name: str) -> MarkIds:
    """The tokens of the marks, for positions on a canvas. Raises ValueError where one is no token of the model `name`."""
    texts = (*marks.image, *marks.slice, marks.row)
    found = [tokenizer.encode(text, parse_special=True, start=False) for text in texts]
    if any(len(one) != 1 for one in found):
        raise ValueError(f"{name}: the marks of pictures, {', '.join(map(repr, texts))}, are no tokens of this model")
    return MarkIds(*(one[0] for one in found))


def on_own_lines(messages: Messages, characters: Iterable[str]) -> list[Mapping[str, Any]]:
    """The messages with a line break between a picture and what stands beside it, as MiniCPM-V from 2.6 on joins its parts."""
    any_of = "[" + "".join(map(re.escape, characters)) + "]"
    between = re.compile(rf"(?<=[^\n])(?={any_of})|(?<={any_of})(?=[^\n])")
    return [
        {**message, "content": between.sub("\n", message["content"])}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]
