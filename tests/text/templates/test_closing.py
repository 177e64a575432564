"""How a thought is closed is read off the template."""

import pytest

from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.closing import closing_of
from gangpao.text.thoughts import KNOWN, Marks
from tests.text.templates import thinkers
from tests.text.templates.test_chat import BPE, user

THINK = KNOWN[0]
MAGISTRAL = Marks("[THINK]", "[/THINK]")


@pytest.mark.parametrize(
    ("source", "marks", "expected"),
    [
        (thinkers.QWEN3, THINK, "\n</think>\n\n"),
        (thinkers.QWEN35, THINK, "\n</think>\n\n"),
        (thinkers.MINICPM5, THINK, "\n</think>\n\n"),
        (thinkers.MINICPM41, THINK, "\n</think>\n\n"),
        (thinkers.R1, THINK, "\n</think>\n\n"),
        (thinkers.MAGISTRAL, MAGISTRAL, "[/THINK]"),
        (None, THINK, "\n</think>\n\n"),
        ("{{ 1 / 0 }}", THINK, "\n</think>\n\n"),
        # Without earlier thoughts it is what an empty one looks like.
        ("{{ messages[0].content }}{% if not enable_thinking %}{{ '<think></think>\n' }}{% endif %}", THINK, "</think>\n"),
        ("{{ messages[0].content }}{% if not enable_thinking %}{{ '<think> </think>' }}{% endif %}", THINK, "</think>"),
    ],
)  # fmt: skip
def test_the_closing_mark_has_the_white_space_of_its_template(source, marks, expected):
    assert closing_of(source, (), marks) == expected


def test_a_template_knows_its_own():
    template = ChatTemplate.for_model(thinkers.QWEN3, tokenizer=BPE)
    assert template.thoughts == THINK
    assert template.closing == "\n</think>\n\n"
    assert ChatTemplate.named("chatml").closing == ""


@pytest.mark.parametrize(
    ("name", "on", "end", "opened"),
    [
        ("qwen3", None, "assistant\n", False), ("qwen3", True, "assistant\n", False),
        ("qwen3", False, "<think>\n\n</think>\n\n", False), ("qwen3.5", None, "<think>\n", True),
        ("qwen3.5", True, "<think>\n", True), ("qwen3.5", False, "<think>\n\n</think>\n\n", False),
        ("minicpm5", None, "assistant\n", False), ("minicpm5", True, "<think>\n", True),
        ("minicpm5", False, "<think>\n\n</think>\n\n", False), ("minicpm4.1", None, "assistant\n", False),
        ("minicpm4.1", False, "<think>\n\n</think>\n\n", False), ("r1", False, "<think>\n", True),
    ],
)  # fmt: skip
def test_the_states_of_each_switch(name, on, end, opened):
    template = ChatTemplate.for_model(thinkers.ALL[name], tokenizer=BPE)
    variables = {} if on is None else {"enable_thinking": on, "thinking": on}
    ids = template.encode(BPE, [user("Why?")], variables=variables)
    assert BPE.decode(ids, keep_special=True).endswith(f"{end}")
    assert template.splitter(BPE, ids).thinking is opened
