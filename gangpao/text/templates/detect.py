"""Which of our families a checkpoint's jinja template is, found by trying both and comparing.

Looking for marks in the template's text would be quicker and wrong: templates that share all their marks differ in a
system prompt, in stripping white space, in what becomes of earlier thoughts. So a template is rendered (in the worker)
on conversations chosen to bring such differences out, and a family is accepted when every text is equal, or both sides
refuse. The default system prompt and a written BOS are read off the template's own output. A template that behaves like
a family on all of these and differently elsewhere is thereby replaced by the family; that changes its text, never what
it may do. Templates whose sha256 is in families.KNOWN are not tried again.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gangpao.text.templates import sandbox_parent
from gangpao.text.templates.formats import FAMILIES, KNOWN, Family
from gangpao.text.templates.render import render_parts

_QUESTION = {"role": "user", "content": " What is\n2 + 2? "}
_ANSWER = {"role": "assistant", "content": "\nFour. "}
_THOUGHT = {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nFour."}
_SYSTEM = {"role": "system", "content": " Be brief.\n"}
_NEXT = {"role": "user", "content": "为什么？"}

_PROBES: tuple[tuple[list[dict[str, str]], bool], ...] = (
    ([_QUESTION], True),
    ([_QUESTION], False),
    ([_SYSTEM, _QUESTION], True),
    ([_QUESTION, _ANSWER], False),
    ([_QUESTION, _ANSWER, _NEXT], True),
    ([_SYSTEM, _QUESTION, _THOUGHT, _NEXT, _THOUGHT, _QUESTION], True),
    ([_SYSTEM, _QUESTION, _THOUGHT], False),
    ([_QUESTION, _NEXT], True),
    ([_QUESTION, _ANSWER, _SYSTEM, _NEXT], True),
    ([_QUESTION, {"role": "assistant", "content": ""}, _NEXT], True),
)


def family_of(source: str, special: Mapping[str, str]) -> Family | None:
    """The family that `source` is, with its default system prompt and BOS filled in; None when it is none of them.

    `special` holds bos_token and eos_token as text, as far as there are any.
    """
    known = KNOWN.get(hashlib.sha256(source.encode("utf-8", "replace")).hexdigest())
    if known is not None:
        return known
    first = _foreign(source, special, *_PROBES[0])
    if first is None:
        return None
    texts = [first, *(_foreign(source, special, *probe) for probe in _PROBES[1:])]
    for family in FAMILIES:
        for candidate in _variants(family, first, special.get("bos_token", "")):
            if all(_ours(candidate, *probe) == text for probe, text in zip(_PROBES, texts, strict=True)):
                return candidate
    return None


def _variants(family: Family, first: str, bos: str) -> Iterator[Family]:
    """The family, and the family with what the template's first text shows in front: a BOS, a default system prompt."""
    begin = bos if bos and first.startswith(bos) and not family.user.before.startswith(bos) else ""
    family = replace(family, begin=begin)
    yield family
    plain = _ours(replace(family, begin=""), *_PROBES[0])
    if family.system is None or plain is None or not first.endswith(plain):
        return
    head = first.removeprefix(begin).removesuffix(plain)
    if head.startswith(family.system.before) and head.endswith(family.system.after):
        prompt = head[len(family.system.before) : len(head) - len(family.system.after)]
        yield replace(family, default_system=prompt)


def _ours(family: Family, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str | None:
    try:
        return "".join(part.text for part in render_parts(family, messages, add_generation_prompt))
    except ValueError:
        return None


def _foreign(
    source: str, special: Mapping[str, str], messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
) -> str | None:
    context = {
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
        "bos_token": "",
        "eos_token": "",
        **special,
    }
    try:
        return sandbox_parent.shared().render(source, context)
    except sandbox_parent.TemplateError:
        return None
