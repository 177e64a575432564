"""Where tokens lie in a text, for every way in which servers name them."""

import pytest

from gangpao.evaluate.models.align import tokens_behind


@pytest.mark.parametrize(
    ("tokens", "context", "continuation", "count"),
    [
        (["The", " capital", " is", " Paris"], "The capital is", " Paris", 1),
        (["<s>", "The", " capital", " is", " Paris"], "The capital is", " Paris", 1),
        (["The", " capital", " is"], "The capital ", "is", 0),  # the token lies across the border
        (["The", "bytes:\\x20\\xe5", "bytes:\\x8c", "bytes:\\x97", "京"], "The 北", "京", 1),
        (["The", " \ufffd", "\ufffd", "\ufffd", "\ufffd", "\ufffd"], "The 北", "京", None),  # 3 + 3 bytes, cut anywhere
        (["\ufffd", "\ufffd", "是", " Paris", "\ufffd", "\ufffd"], "北是", " Paris京", 3),
        (["北", "\ufffd", "\ufffd", "是"], "北", "京是", 3),
        (["<s>", "▁The", "▁capital"], "The", " capital", 1),
        (["", "The", "capital"], "The", " capital", 1),  # a server whose tokens lose their blanks
        ([" The", " capital"], "The", " capital", 1),
        (["The", "cat"], "The", " dog", None),
        (["The"], "The", " dog", None),
        (["The", " dog", "!"], "The", " dog", None),
        ([], "", "a", None),
        (["<s>", "a"], "", "a", 1),
        (["a", "", "b"], "a", "b", 1),
        (["\ud800"], "", "\ud800", 1),
    ],
)
def test_tokens_behind_the_border(tokens, context, continuation, count):
    assert tokens_behind(tokens, context + continuation, len(context)) == count


def test_long_texts_take_no_time():
    tokens = ["a", " b"] * 5000 + ["\ufffd", "\ufffd", "c"]
    text = "a b" * 5000 + "京c"
    assert tokens_behind(tokens, text, len(text) - 2) == 3
