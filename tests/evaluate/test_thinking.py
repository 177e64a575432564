"""Options about thinking of which nothing comes are told."""

import pytest

from tests.evaluate.test_run import Said, data, model_of, run, tiny  # noqa: F401


@pytest.mark.parametrize(
    ("thinks", "options", "note"),
    [
        (False, {"think": True, "chat": True}, "--think: no effect, since the chat template of tiny has no thoughts"),
        (
            False,
            {"think": False, "think_budget": 3},
            "--no-think and --think-budget: no effect, since the chat template",
        ),
        (True, {"think_budget": 3}, "--think-budget: no effect, since no task is asked as a conversation"),
        (True, {"think_budget": 3, "chat": True}, None),
        (None, {"think": True, "chat": True}, None),
        (False, {}, None),
    ],
)
def test_words_about_thinking_without_effect_are_told(tiny, data, tmp_path, thinks, options, note):  # noqa: F811
    model = Said(tiny, {})
    model.thinks = thinks
    notes = run(model, data, tmp_path, ("gsm8k",), shots=0, **options).notes
    assert len(notes) == (note is not None)
    assert note is None or notes[0].startswith(note)
    assert model_of(tiny).thinks is False
