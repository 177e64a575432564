"""Prompts answered by a model with the journal in between: what was answered is not asked again, in this run or after a crash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from gangpao.evaluate.journal import Journal, key_of
from gangpao.evaluate.models.protocol import Generated, Model, Prompt

OnAnswer = Callable[[Generated, bool], Any]  # and whether it was asked for now


def identity_of(model: Model) -> str:
    """What tells models apart: the content of a file (and of the one that it sees with), or a server and its name for the model."""
    facts = model.facts
    weights = facts.sha256 or f"{facts.url} {facts.name}"
    return f"{weights} {facts.mmproj_sha256}" if facts.mmproj_sha256 else weights


def key_for(model: Model, prompt: Prompt) -> str:
    """The journal's key of a prompt to a model; of pictures it takes the hashes."""
    shown = {c: hashlib.sha256(picture.data).hexdigest() for c, picture in prompt.pictures.items()}
    said = asdict(replace(prompt, pictures={})) | {"pictures": shown}
    if not shown:  # as keys were before there were pictures
        del said["pictures"]
    return key_of("answer", identity_of(model), said)


def ask(model: Model, prompts: Sequence[Prompt], journal: Journal, on_answer: OnAnswer) -> list[Generated]:
    """One answer a prompt, in their order; equal prompts are asked once. on_answer gets each, those of the journal first.

    A prompt that does not fit is not written down: it cost nothing, and a wider context may take it.
    """
    keys = [key_for(model, prompt) for prompt in prompts]
    answers: dict[str, Generated] = {}
    missing: dict[str, Prompt] = {}
    for key, prompt in zip(keys, prompts, strict=True):
        known = answers.get(key) or (None if key in missing else journal.take(key, Generated.stored))
        if known is None:
            missing[key] = prompt
        else:
            answers[key] = known
            on_answer(known, False)
    names = list(missing)
    for place, answer in model.generate(list(missing.values())):
        key = names[place]
        answers[key] = answer
        if answer.finish != "too_long":
            journal.put(key, asdict(answer))
        for _ in range(keys.count(key)):
            on_answer(answer, True)
    return [answers[key] for key in keys]
