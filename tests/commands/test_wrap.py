"""Wrapped text on a screen: the same words, none broken, however the text is cut into pieces."""

import random
import textwrap

import pytest
from rich.cells import cell_len

from gangpao.commands.terminal.wrap import Wrapper
from tests.commands.screen import Screen

ENGLISH = "A hash table maps keys to values; it needs one comparison on average, whatever the number of keys is. " * 3
CHINESE = (
    "哈希表（散列表）是一种数据结构，它把“键”映射到“值”。平均来说，查找只需要一次比较！无论有多少个键，都是如此……" * 2
)
MIXED = "泰山 Mount Tai（1,532.7 m）在 Shandong 省，是五岳之首，the first of five. 很高！"
CODE = "Like this:\n```python\nprint('a line of code that nobody wants to have broken in its middle')\n```\nand on it goes, here."


def shown(text: str, columns: int, cuts: random.Random | None = None) -> list[str]:
    """The rows of a screen on which the text came in random pieces (cuts), or whole."""
    wrapper, screen = Wrapper(lambda: columns), Screen(columns)
    while text:
        size = cuts.randint(1, 7) if cuts else len(text)
        screen.feed(wrapper.push(text[:size]))
        text = text[size:]
    return screen.text


@pytest.mark.parametrize("columns", [20, 33, 40, 79])
def test_english_is_wrapped_as_textwrap_wraps_it(columns: int) -> None:
    assert shown(ENGLISH, columns) == textwrap.wrap(ENGLISH, columns - 1, break_on_hyphens=False)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, MIXED, CODE, f"{CODE}\n{MIXED}\n\n    {CHINESE}"])
@pytest.mark.parametrize("columns", [16, 25, 40])
def test_pieces_give_the_same_rows_as_the_whole(text: str, columns: int) -> None:
    whole = shown(text, columns)
    for seed in range(5):
        assert shown(text, columns, random.Random(seed)) == whole


@pytest.mark.parametrize("columns", range(12, 50, 3))
def test_chinese_fills_its_rows_and_keeps_signs_where_they_belong(columns: int) -> None:
    rows = shown(CHINESE, columns)
    assert "".join(rows) == CHINESE
    assert all(cell_len(row) < columns for row in rows)
    assert not [row for row in rows if row[0] in "，。、）”！…" or row[-1] in "（“"]
    assert all(cell_len(row) >= columns - 8 for row in rows[:-1])


def test_mixed_words_stay_whole() -> None:
    for columns in range(14, 40):
        rows = shown(MIXED, columns)
        assert "".join(rows).replace(" ", "") == MIXED.replace(" ", "")
        for word in ("Mount", "Tai", "1,532.7", "Shandong", "first", "five."):
            assert sum(word in row for row in rows) >= 1, (columns, word, rows)


def test_code_is_left_to_the_terminal() -> None:
    out = Wrapper(lambda: 30).push(CODE)
    assert CODE.split("```")[1] in out
    assert out.endswith("and on it goes, here.")
    assert shown(CODE + " And these words are wrapped again.", 30)[-3:] == [
        "and on it goes, here. And", "these words are wrapped", "again.",
    ]  # fmt: skip


def test_a_word_longer_than_a_row_can_be_copied_whole() -> None:
    address = "https://example.org/" + "a" * 70
    out = Wrapper(lambda: 30).push(f"See {address} for more words than fit in it")
    assert address in out
    for columns in range(10, 60):
        rows = shown(f"See {address} for more words than fit in it", columns)
        assert "".join(rows).replace(" ", "") == f"See{address}formorewordsthanfitinit"
        assert max(map(len, rows)) <= columns


def test_a_window_that_changes_is_followed() -> None:
    size = [60]
    wrapper = Wrapper(lambda: size[0])
    wide = wrapper.push(ENGLISH[:90])
    size[0] = 25
    narrow = wrapper.push("\n" + ENGLISH)
    assert max(map(len, Screen(60).feed(wide).text)) > 50
    assert max(map(len, Screen(25).feed(narrow).text)) < 25


def test_a_window_of_no_width_and_marks_of_no_width() -> None:
    assert Wrapper(lambda: 1).push("some words") == "some words"
    assert "".join(shown("e\u0301" * 40, 20)) == "e\u0301" * 40
