"""A conversation with pictures as the engine's prompts have it: the same line breaks, marks and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gangpao.data.sources.pictures import mark
from gangpao.engine.pictures.prompts import arranged
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.pictures import Pictures, in_order
from gangpao.tune.pictures.table import PictureTable

Messages = Sequence[Mapping[str, Any]]


def with_pictures(
    messages: Messages, numbers: Sequence[int], table: PictureTable, template: ChatTemplate
) -> tuple[Messages, Pictures]:
    """The messages as the template is to see them, and what the characters in them stand for.

    numbers: of the pictures of the whole conversation in the table, by the numbers of their marks. Marks count the pictures of
    these messages, of which earlier ones may have been cut off.
    """
    by_character = {mark(place): number for place, number in enumerate(numbers)}
    messages, marks = arranged(messages, by_character, table.vision.marks, template.writes_images)
    if marks.behind:  # rows write the line break behind <image> that belongs to the mark
        doubled = re.compile(f"([{''.join(map(re.escape, by_character))}]){re.escape(marks.behind)}")
        messages = [{**m, "content": doubled.sub(r"\1", m["content"])} for m in messages]
    order = in_order(messages, by_character)
    return messages, {c: table.layout(by_character[c], place, marks) for place, c in enumerate(order)}
