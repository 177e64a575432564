"""Contents of messages in other programs' words -> text and images.

Parts that are text are taken as they are, thoughts are left out, and what can be said in words is (a document's text, a tool that a
search found). Types that nobody here knows are read as their text where they have one; else they are left out, and noted.
Empty is not missing: a content of "", [], null, or of empty parts is an empty text.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from gangpao.serve.answers.chat import Message, Role
from gangpao.serve.answers.pictures import Image
from gangpao.serve.api.dialect import Notes
from gangpao.serve.api.schema import IMAGES, TEXTS, ImageURL, Part, Source
from gangpao.serve.http.errors import ApiError

_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_text", "reasoning_content"})
# Roles of others' words and older APIs; what is none of ours and not here is read as the user's.
_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant", "model": "assistant",
    "ai": "assistant", "tool": "tool", "function": "tool", "ipython": "tool",
}  # fmt: skip


class Content(NamedTuple):
    """What a message says: its text, and its images in their order and with their places in it."""

    text: str
    images: tuple[Image, ...] = ()


def role_of(role: str, where: str, notes: Notes) -> Role:
    """One of our roles for any role."""
    if role not in _ROLES:
        notes.add(where, f"role {role!r:.40} is read as user")
    return _ROLES.get(role, "user")


# Claude Code's first block of a system prompt: its version, and letters that are others with each request, so that no prompt would
# begin as the one before it and nothing of 15,000 tokens could be taken from the prefix cache.
_ATTRIBUTION = "x-anthropic-billing-header:"


def without_attribution(content: str | Sequence[Part] | None) -> str | Sequence[Part] | None:
    """The content of a system message without such a line at the head of any part."""
    if content is None or isinstance(content, str):
        return _behind_attribution(content or "")
    parts: list[Part] = []
    for part in content:
        if part.type in TEXTS and part.text is not None and part.text.startswith(_ATTRIBUTION):
            rest = _behind_attribution(part.text)
            parts += [part.model_copy(update={"text": rest})] if rest else []
        else:
            parts.append(part)
    return parts


def _behind_attribution(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(_ATTRIBUTION) else text


def read(content: str | Sequence[Part] | None, where: str, notes: Notes, *, between: str = "") -> Content:
    """A content's text, its parts' texts with `between` between them, and its images (`settled` sees to those of nothing)."""
    if content is None or isinstance(content, str):
        return Content(content or "")
    text, pictures, any_text = "", [], False
    for i, part in enumerate(content):
        if part.type in IMAGES:
            pictures.append(_image(part)._replace(at=len(text)))
        elif (more := _text(part, f"{where}.content.{i}", notes)) is not None:
            text += between + more if any_text else more
            any_text = True
    return Content(text, tuple(pictures))


def _text(part: Part, where: str, notes: Notes) -> str | None:
    """What a part says in words; None where it says nothing and is left out."""
    if part.type in TEXTS:
        return part.text or ""
    if part.type in _THOUGHTS:
        return None
    if part.type == "refusal":
        return part.refusal or ""
    if part.type == "tool_reference":
        return f"Tool available: {part.tool_name or ''}"
    if (text := _inside(part, where, notes)) is not None:
        return text
    notes.add(where, f"a part of type {part.type!r:.40} is left out")
    return None


def _inside(part: Part, where: str, notes: Notes) -> str | None:
    """The text of a part of any other type: its own, that of its content, or that of its source, behind its title."""
    source = part.source
    if part.text is not None:
        text = part.text
    elif part.content is not None:
        text = read(part.content, where, notes, between="\n").text
    elif isinstance(source, Source) and source.type == "text" and source.data is not None:
        text = source.data
    elif isinstance(source, Source) and source.content is not None:
        text = read(source.content, where, notes, between="\n").text
    else:
        return None
    head = " ".join(filter(None, (part.title, source if isinstance(source, str) else None)))
    return f"{head}\n{text}\n" if head else text


def _image(part: Part) -> Image:
    source: Any = part.source
    if part.type == "video_url":
        url = part.video_url
        return Image(url=url.url if isinstance(url, ImageURL) else url or "", clip=True)
    if isinstance(source, Source):
        return Image(url=source.url or "") if source.type == "url" else Image(base64=source.data or "")
    if part.image_url is None or isinstance(part.image_url, str):
        return Image(url=part.image_url or "", whole=part.detail == "low")
    return Image(url=part.image_url.url, whole="low" in (part.detail, part.image_url.detail))


def settled(messages: Sequence[Message], notes: Notes) -> tuple[Message, ...]:
    """The messages without images of nothing (a file of another server, an empty address), which are left out before the latest
    question. Raises ApiError (400) for one in that."""
    latest = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    out = []
    for i, message in enumerate(messages):
        there = tuple(image for image in message.images if image.url or image.base64)
        if len(there) < len(message.images):
            if i >= latest:
                raise ApiError(400, f"{i}: an image needs its data or an address", field="messages")
            notes.add(f"messages.{i}", "an image that is not in the request is left out")
        out.append(replace(message, images=there))
    return tuple(out)
