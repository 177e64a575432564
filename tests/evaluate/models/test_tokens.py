"""Contexts and continuations become the ids that lm-eval's own rules give; what has no score says why."""

import pytest

from gangpao.evaluate.models.harness import moved
from gangpao.evaluate.models.protocol import Group
from gangpao.evaluate.models.tokens import encode_group, encode_text, scores_of, windows


class Letters:
    """A tokenizer of letters in which "ab" is one token; 1 begins, 2 ends."""

    adds_bos = False
    bos_id: int | None = None
    eos_id: int | None = 2

    def encode(self, text, *, add_bos=False, parse_special=False):
        return [300 if c == "\0" else ord(c) for c in text.replace("ab", "\0")]


def test_contexts_and_continuations_are_cut_by_the_context_s_own_ids():
    found = encode_group(Letters(), Group("xy", [" z", "  zz"]), 100)
    assert found.context == [ord("x"), ord("y")]
    assert found.endings == [[32, ord("z")], [32, 32, ord("z"), ord("z")]]
    assert found.places == [0, 1]


def test_a_choice_that_merges_into_the_context_has_no_token_and_says_so():
    found = encode_group(Letters(), Group("xa", ["b", "bc"]), 100)
    assert found.places == ["empty_choice", 0]
    scores = scores_of(found, [(-1.5, True)])
    assert [(s.logprob, s.fault, s.tokens) for s in scores] == [(float("-inf"), "empty_choice", 0), (-1.5, "", 1)]


def test_what_does_not_fit_is_not_cut():
    found = encode_group(Letters(), Group("x" * 8, ["y", "yy", "yyy", "yyyy"]), 10)
    assert found.places == [0, 1, 2, "too_long"]


def test_an_empty_context_is_the_token_that_a_text_begins_with():
    assert encode_group(Letters(), Group("", ["xy"]), 9).context == [2]
    tokenizer = Letters()
    tokenizer.bos_id = 1
    assert encode_group(tokenizer, Group("", ["xy"]), 9)[:2] == ([1], [[ord("x"), ord("y")]])
    tokenizer.bos_id = tokenizer.eos_id = None
    with pytest.raises(ValueError, match="neither a first nor a last token"):
        encode_group(tokenizer, Group("", ["xy"]), 9)


def test_a_first_token_stands_in_front_once():
    tokenizer = Letters()
    tokenizer.adds_bos, tokenizer.bos_id = True, ord("s")
    assert encode_text(tokenizer, "xs") == [ord("s"), ord("x"), ord("s")]
    assert encode_text(tokenizer, "sx") == [ord("s"), ord("x")]


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("a ", "b", ("a", " b")), ("a\n\t\u3000", "b", ("a", "\n\t\u3000b")), ("a", " b", ("a", " b")), (" ", "b", (" ", "b")),
        ("", "b", ("", "b")),
    ],
)  # fmt: skip
def test_white_space_moves_into_the_continuation(context, continuation, expected):
    assert moved(context, continuation) == expected


@pytest.mark.parametrize("size", [0, 1, 5, 6, 7, 12, 13, 31])
def test_windows_are_lm_eval_s(size):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    ids = list(range(100, 100 + size))
    theirs = [make_disjoint_window(w) for w in get_rolling_token_windows(ids, 7, 6, 1)]
    assert [(w.context, w.ending) for w in windows(ids, 7, 6)] == [(list(a), list(b)) for a, b in theirs]
