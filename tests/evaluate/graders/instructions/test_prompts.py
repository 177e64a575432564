"""The set of prompts, and the verdicts over it."""

import hashlib
import json
from collections import Counter
from math import isclose, sqrt
from pathlib import Path

import pytest

from gangpao.evaluate.graders.instructions import checks, follow, prompts, table
from gangpao.evaluate.graders.instructions.follow import Followed, Instruction


def test_the_set_is_the_same_everywhere(tmp_path: Path) -> None:
    prompts.write(tmp_path / "a.jsonl")
    prompts.write(tmp_path / "b.jsonl")
    data = (tmp_path / "a.jsonl").read_bytes()
    assert data == (tmp_path / "b.jsonl").read_bytes()
    # Another digest means another set: raise SET_VERSION, for scores are no longer comparable.
    assert (prompts.SET_VERSION, hashlib.sha256(data).hexdigest()[:16]) == (1, "0e153f40a14c0744")
    assert prompts.rows(seed=1) != prompts.rows(seed=2)


def test_the_set_covers_the_table() -> None:
    made = prompts.prompts()
    assert len(made) == prompts.COUNT == 120
    assert len({p.name for p in made}) == len(made)
    assert len({p.text for p in made}) > 115
    assert Counter(p.language for p in made) == {"en": 60, "zh": 60}
    for language in ("en", "zh"):
        kinds = {i.kind for p in made if p.language == language for i in p.instructions}
        assert kinds == {k.name for k in table.KINDS if k.only in ("", language)}
    assert {k.name for k in table.KINDS} == set(checks.CHECKS)
    assert Counter(len(p.instructions) for p in made)[1] < 60


def test_instructions_of_a_prompt_can_stand_together() -> None:
    groups = {name: {g for k in table.KINDS if k.name == name for g in k.groups} for name in checks.CHECKS}
    for p in prompts.prompts(seed=7, count=300):
        kinds = [i.kind for i in p.instructions]
        assert len(kinds) == len(set(kinds))
        taken = [g for kind in kinds for g in groups[kind]]
        assert len(taken) == len(set(taken)), p.text
        assert "{" not in p.text


def test_every_instruction_can_be_checked_and_read_back() -> None:
    for row, p in zip(prompts.rows(), prompts.prompts(), strict=True):
        again = prompts.instructions_of(json.loads(json.dumps(row)))
        assert again == p.instructions
        follow.follow("An answer.\n\n一个回答。", again)
    with pytest.raises(ValueError, match="no instructions with kind"):
        prompts.instructions_of({"instructions": [{"kind": "title"}]})


TITLE, NO_COMMAS = Instruction("title", {}), Instruction("no_commas", {})
STARTS = Instruction("starts_with", {"text": "In my view"})
JSON = Instruction("json_only", {})


def test_loose_forgives_what_stands_around_an_answer() -> None:
    assert follow.follow("Sure, here it is:\nIn my view", [STARTS, NO_COMMAS]) == Followed((False, False), (True, True))
    assert follow.follow("{}\nI hope, it helps", [JSON]) == Followed((False,), (True,))
    assert follow.follow("Here:\n{}\nBye", [JSON]) == Followed((False,), (True,))
    assert follow.follow("***In*** my view", [STARTS]) == Followed((False,), (True,))
    assert follow.follow("Here:\n\nthere, {}\nBye", [JSON]).loose == (False,)
    assert follow.follow("", [NO_COMMAS, TITLE]) == Followed((False, False), (False, False))


def test_a_grade_names_what_was_not_kept() -> None:
    grade = follow.grade("<<T>> a, b", [TITLE, NO_COMMAS, STARTS])
    assert (grade.correct, grade.why) == (False, "not kept: no_commas, starts_with")
    assert follow.grade("<<T>>", [TITLE]).correct
    assert follow.grade("Oh:\n{}", [JSON], loose=True).correct


def test_accuracies() -> None:
    found = follow.accuracies(
        [Followed((True, False), (True, True)), Followed((True,), (True,)), Followed((False,), (False,))]
    )
    assert isclose(found["prompt_strict"][0], 1 / 3)
    assert isclose(found["prompt_loose"][0], 2 / 3)
    assert isclose(found["instruction_strict"][0], 2 / 4)
    assert isclose(found["instruction_loose"][0], 3 / 4)
    error = found["prompt_strict"][1]
    assert error is not None
    assert isclose(error, sqrt((1 / 3) * (2 / 3) / 2))  # of a share over three prompts
    assert follow.accuracies([Followed((True,), (True,))])["prompt_strict"] == (1.0, None)
    with pytest.raises(ValueError, match="no prompts"):
        follow.accuracies([])
