"""How a model's template closes a thought: the closing mark with the white space around it, read off what it renders.

A template that writes earlier thoughts shows it between a thought and its answer; one that has a switch for thinking shows it in
the empty thought that it writes without. Where neither is to be had it is as most checkpoints write it: the mark on a line of its
own and an empty line behind it.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from gangpao.text.templates import sandbox_parent
from gangpao.text.thoughts import Marks

_QUESTION = {"role": "user", "content": "Why?"}
_THOUGHT, _ANSWER = "Thoughtword", "Answerword"
_SAID = {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT}
_OFF = {"enable_thinking": False, "thinking": False}


@functools.lru_cache(maxsize=32)
def closing_of(source: str | None, special: tuple[tuple[str, str], ...], marks: Marks) -> str:
    """The text that ends a thought in front of its answer, as the template `source` writes it."""
    space = r"([ \t\r\n]*)"
    end = space + re.escape(marks.end) + space
    if source is not None:
        shown = _rendered(source, special, {"messages": [_QUESTION, _SAID], "add_generation_prompt": False})
        if found := re.search(_THOUGHT + end + _ANSWER, shown):
            return found[1] + marks.end + found[2]
        shown = _rendered(source, special, {"messages": [_QUESTION], "add_generation_prompt": True, **_OFF})
        if found := re.search(re.escape(marks.begin) + end + r"\Z", shown):
            # The first half of what an empty thought holds belongs to its opening mark.
            return found[1][(len(found[1]) + 1) // 2 :] + marks.end + found[2]
    return f"\n{marks.end}\n\n"


def _rendered(source: str, special: tuple[tuple[str, str], ...], more: Mapping[str, Any]) -> str:
    context = {"tools": None, "documents": None, "bos_token": "", "eos_token": "", **dict(special), **more}
    try:
        return sandbox_parent.shared().render(source, context)
    except sandbox_parent.TemplateError:
        return ""
