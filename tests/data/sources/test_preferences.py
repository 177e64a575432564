"""The forms in which other people publish preferences: each is found by itself and says the same pair."""

import pytest

from gangpao.data.sources.preferences import detect_preferences, parse_labelled, parse_pair, unpaired

TALK = [("user", "How high?"), ("assistant", "Two metres."), ("user", "And wide?")]
GOOD, BAD = ("assistant", "Three."), ("assistant", "No idea.")


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def sharegpt(*pairs):
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[role], "value": content} for role, content in pairs]


def transcript(*pairs):
    return "".join(f"\n\n{'Human' if role == 'user' else 'Assistant'}: {content}" for role, content in pairs)


def said(messages):
    return [(turn["role"], turn["content"]) for turn in messages]


ROWS = {
    "TRL, explicit": {"prompt": turns(*TALK), "chosen": turns(GOOD), "rejected": turns(BAD)},
    "TRL, implicit": {"chosen": turns(*TALK, GOOD), "rejected": turns(*TALK, BAD)},
    "UltraFeedback": {
        "prompt": "And wide?", "messages": turns(*TALK, GOOD), "chosen": turns(*TALK, GOOD), "rejected": turns(*TALK, BAD),
        "score_chosen": 8.0,
    },
    "HH": {"chosen": transcript(*TALK, GOOD), "rejected": transcript(*TALK, BAD)},
    "HH with its prompt": {"prompt": transcript(*TALK) + "\n\nAssistant:", "chosen": " Three.", "rejected": " No idea."},
    "messages and texts": {"messages": turns(*TALK), "chosen": "Three.", "rejected": "No idea."},
    "the whole conversation beside": {"messages": turns(*TALK, GOOD), "chosen": turns(GOOD), "rejected": turns(BAD)},
    "sharegpt ranking": {"conversations": sharegpt(*TALK), "chosen": sharegpt(GOOD)[0], "rejected": sharegpt(BAD)[0]},
    "alpaca ranking": {
        "instruction": "And wide?", "input": "", "history": [["How high?", "Two metres."]], "chosen": "Three.",
        "rejected": "No idea.",
    },
    "MiniCPM's marks": {"prompt": "<用户>How high?<AI>Two metres.<用户>And wide?<AI>", "chosen": "Three.", "rejected": "No idea."},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_forms_of_pairs_say_the_same(name):
    assert detect_preferences([ROWS[name]] * 3) == "pairs"
    pair = parse_pair(ROWS[name])
    assert said(pair.chosen.messages) == [*TALK, GOOD]
    assert said(pair.rejected.messages) == [*TALK, BAD]
    assert pair.prompt == 3
    assert [(one.prompt, one.desirable) for one in unpaired(pair)] == [(3, True), (3, False)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Why?", "response_j": "a", "response_k": "b"}, ("user", "Why?")),
        ({"instruction": "Add.", "input": "1, 2", "chosen": "3", "rejected": "4"}, ("user", "Add.\n1, 2")),
        ({"system": "Brief.", "prompt": "Why?", "chosen": "a", "rejected": "b"}, ("system", "Brief.")),
    ],
)
def test_further_forms(row, expected):
    pair = parse_pair(row)
    assert said(pair.chosen.messages)[0] == expected
    assert pair.prompt == len(pair.chosen.messages) - 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a", "chosen": "b"}, "no chosen and rejected"),
        ({"chosen": "b", "rejected": "c"}, "no prompt beside"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "same answer"),
        ({"chosen": turns(("user", "a"), GOOD), "rejected": turns(("user", "b"), BAD)}, "share no prompt"),
        ({"prompt": "a", "chosen": turns(GOOD), "rejected": [{"role": "wizard", "content": "x"}]}, "rejected: turn 2 has the role"),
        ({"prompt": turns(*TALK[:2]), "chosen": turns(GOOD), "rejected": turns(BAD)}, "ends in an answer"),
        ({"prompt": "a", "chosen": [], "rejected": "b"}, "chosen: is no list"),
        ([], "is a list"),
    ],
)  # fmt: skip
def test_what_is_no_pair_says_why(row, why):
    assert why in parse_pair(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "So.", "label": True},
        {"prompt": turns(("user", "Why?")), "completion": turns(("assistant", "So.")), "label": True},
        {"messages": turns(("user", "Why?"), ("assistant", "So.")), "kto_tag": True},
        {"conversations": sharegpt(("user", "Why?"), ("assistant", "So.")), "label": True},
        {"instruction": "Why?", "input": "", "output": "So.", "kto_tag": True},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:", "completion": "So.", "label": True},
    ],
)
def test_forms_of_labelled_answers_say_the_same(row):
    assert detect_preferences([row] * 3) == "labelled"
    found = parse_labelled(row)
    assert said(found.document.messages) == [("user", "Why?"), ("assistant", "So.")]
    assert (found.prompt, found.desirable) == (1, True)


def test_what_is_no_labelled_answer_says_why():
    assert "no label that is true or false" in parse_labelled({"prompt": "a", "completion": "b", "label": "good"})
    assert "no conversation" in parse_labelled({"text": "a", "label": True})
    assert "last turn is no answer" in parse_labelled({"messages": turns(*TALK), "label": True})
    # A label of a class beside a text is no preference.
    assert detect_preferences([{"text": "a", "label": 1}] * 3) is None
    assert detect_preferences([{"prompt": "a", "completion": "b"}] * 3) is None
    assert detect_preferences([]) is None


def test_an_answer_that_speaks_of_humans_is_no_transcript():
    row = {
        "messages": turns(*TALK),
        "chosen": "Human: that is what you are.\n\nAssistant: And I am not.",
        "rejected": "No.",
    }
    assert parse_pair(row).chosen.messages[-1] == {"role": "assistant", "content": row["chosen"]}
    assert parse_pair({"chosen": "Human: yes", "rejected": "No."}) == parse_pair({"chosen": "a", "rejected": "b"})
