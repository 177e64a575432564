"""Pictures in a conversation: one private character each while it is rendered, then marks and rows in its place.

    free_characters    characters that occur nowhere in a conversation, to stand for its pictures
    image_mark_of      what a foreign template writes for a part {"type": "image"}; such templates get contents as parts
    cut                a rendered text at its pictures

A template that takes texts only sees a character it passes through as any other. One that loops over parts may set its marks
and lines where it wants; its mark is found by rendering a question without and with a picture, and what it wrote for each is
given up for what the model's own processor would have put there. What it gives up: templates that number pictures themselves
get the character.
"""

import functools
import itertools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from gangpao.text.templates import sandbox_parent
from gangpao.text.templates.call_format import common_start
from gangpao.text.templates.disguise import texts_in

Layout = Sequence[str | Sequence[int]]  # texts, in which control tokens count, and ids
Pictures = Mapping[str, Layout]
Messages = Sequence[Mapping[str, Any]]

_FIRST, _LAST = 0x100000, 0x10FFF0  # a plane of private characters
_WORDS = "\U0010fffc"  # what no conversation says


def free_characters(count: int, said: Any) -> list[str]:
    """So many characters that occur in none of the texts in something like JSON. Raises ValueError where there are not so many."""
    used = set().union(*texts_in(said)) if count else set()
    found = list(itertools.islice((chr(c) for c in range(_FIRST, _LAST) if chr(c) not in used), count))
    if len(found) < count:
        raise ValueError(f"{count} pictures are more than a conversation can hold")
    return found


def cut(text: str, pictures: Pictures) -> Iterator[str | Layout]:
    """The text in pieces: strings, and what stands for the pictures between them."""
    if not pictures:
        yield text
        return
    for piece in re.split(f"([{''.join(map(re.escape, pictures))}])", text):
        if piece in pictures:
            yield pictures[piece]
        elif piece:
            yield piece


def in_order(messages: Messages, pictures: Container[str]) -> list[str]:
    """The characters that stand for pictures, as they follow each other in the contents."""
    return [c for m in messages if isinstance(m.get("content"), str) for c in m["content"] if c in pictures]


def with_parts(messages: Messages, pictures: Pictures) -> list[Mapping[str, Any]]:
    """The messages with contents that have pictures as parts, OpenAI's form without what is in them."""
    out: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str) or not any(c in pictures for c in content):
            out.append(message)
            continue
        pieces = re.split(f"([{''.join(map(re.escape, pictures))}])", content)
        parts = [{"type": "image"} if p in pictures else {"type": "text", "text": p} for p in pieces if p]
        out.append({**message, "content": parts})
    return out


def put_back(text: str, mark: str, order: Sequence[str]) -> str:
    """A rendered text with its pictures' characters in the places of the template's marks. Raises ValueError where a picture was
    left out."""
    pieces = text.split(mark)
    if len(pieces) != len(order) + 1:
        raise ValueError(
            f"the chat template writes {len(pieces) - 1} pictures of a conversation that has {len(order)}: put them into "
            "questions"
        )
    return "".join(a + b for a, b in itertools.zip_longest(pieces, order, fillvalue=""))


@functools.lru_cache(maxsize=16)
def image_mark_of(source: str, special: tuple[tuple[str, str], ...]) -> str:
    """What the template writes for each picture, without white space around it; "" where it takes no parts or no pictures."""
    if "image" not in source:
        return ""
    image, words = {"type": "image"}, {"type": "text", "text": _WORDS}
    try:
        none, one, two = (_rendered(source, special, [*[image] * count, words]) for count in range(3))
    except sandbox_parent.TemplateError:
        return ""
    if none.count(_WORDS) != 1 or one.count(_WORDS) != 1:
        return ""
    start = len(common_start(none, one))
    behind = len(common_start(none[start:][::-1], one[start:][::-1]))
    mark = one[start : len(one) - behind].strip()
    return mark if mark and (one.count(mark), two.count(mark)) == (1, 2) else ""


def _rendered(source: str, special: tuple[tuple[str, str], ...], content: Any) -> str:
    context = {
        "messages": [{"role": "user", "content": content}], "add_generation_prompt": True, "tools": None, "documents": None,
        "bos_token": "", "eos_token": "", **dict(special),
    }  # fmt: skip
    return sandbox_parent.shared().render(source, context)
