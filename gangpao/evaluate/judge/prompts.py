"""What a judge is told: sections of a TOML file, with questions and answers in the places that are marked {question_1} ...

The names of the places are FastChat's, so that its published prompts can be put into a file of this form as they are. A text
that is put in is not looked through for further places.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, model_validator

from gangpao.config import Frozen, load_toml
from gangpao.evaluate.journal import key_of

OWN = Path(__file__).with_name("prompts.toml")
PLACES = (
    "question", "question_1", "question_2", "answer", "answer_1", "answer_2", "ref_answer_1", "ref_answer_2",
    "answer_a", "answer_b", "answer_a_1", "answer_a_2", "answer_b_1", "answer_b_2",
)  # fmt: skip
_PLACE = re.compile(r"\{([a-z_0-9]+)\}")
# What a section cannot do without.
_NEEDED = {
    "single": ("question", "answer"),
    "single_reference": ("question", "answer", "ref_answer_1"),
    "single_second": ("question_2", "answer_2"),
    "single_second_reference": ("question_2", "answer_2", "ref_answer_2"),
    "pair": ("question", "answer_a", "answer_b"),
    "pair_reference": ("question", "answer_a", "answer_b", "ref_answer_1"),
    "pair_second": ("question_2", "answer_a_2", "answer_b_2"),
    "pair_second_reference": ("question_2", "answer_a_2", "answer_b_2", "ref_answer_2"),
    "arena": ("question", "answer_a", "answer_b"),
}  # fmt: skip
# Two names of one place.
_SAME = {"question": "question_1", "answer": "answer_1", "answer_a": "answer_a_1", "answer_b": "answer_b_1"}


class Prompt(Frozen):
    """One section."""

    system: str = ""
    user: str = Field(min_length=1)

    def messages(self, texts: dict[str, str]) -> list[dict[str, str]]:
        """With the texts in their places."""
        filled = _PLACE.sub(lambda m: texts.get(_SAME.get(m[1], m[1]), ""), self.user.strip())
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, {"role": "user", "content": filled}]


class Again(Frozen):
    """What is said when an answer of a judge holds no mark, or no verdict of the kind asked for."""

    mark: str
    letter: str
    degree: str


class Prompts(Frozen):
    """The whole file."""

    version: str = Field(min_length=1)
    single: Prompt
    single_reference: Prompt
    single_second: Prompt
    single_second_reference: Prompt
    pair: Prompt
    pair_reference: Prompt
    pair_second: Prompt
    pair_second_reference: Prompt
    arena: Prompt
    again: Again

    @model_validator(mode="after")
    def _places(self) -> Prompts:
        for name, needed in _NEEDED.items():
            found = set(_PLACE.findall(getattr(self, name).user))
            if unknown := sorted(found - set(PLACES)):
                raise ValueError(f"{name}: no place is called {{{unknown[0]}}}; there are {', '.join(PLACES)}")
            have = {_SAME.get(place, place) for place in found}
            if missing := [place for place in needed if _SAME.get(place, place) not in have]:
                raise ValueError(f"{name}: {{{missing[0]}}} is missing, so the judge would not see it")
        return self

    def named(self, kind: str, *, second: bool, reference: bool) -> Prompt:
        """The section for a kind (single, pair, arena), turn and question."""
        name = kind if kind == "arena" else kind + "_second" * second + "_reference" * reference
        chosen: Prompt = getattr(self, name)
        return chosen

    @property
    def digest(self) -> str:
        """Of all words; equal for equal prompts."""
        return key_of(self.model_dump())[:12]


def load(file: Path | None = None) -> Prompts:
    """Our own, with the sections of a user's file in their place. Raises ValueError naming the file and what is wrong with it."""
    if file is None:
        return load_toml(OWN, Prompts)
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; docs/evaluation-judge.md has its form")
    prompts = load_toml(OWN, Prompts, user_files=[file])
    if prompts.version == load_toml(OWN, Prompts).version:
        raise ValueError(
            f'{file}: version is missing: name your prompts, for example version = "mine-1"; results carry it'
        )
    return prompts
