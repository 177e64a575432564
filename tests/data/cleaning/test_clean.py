"""Tidying changes nothing that a reader sees; each rejection has a text that causes it and a neighbour that does not."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.data.cleaning.clean import normalise, reject
from gangpao.data.cleaning.language import identify
from gangpao.data.config import Clean

PROSE = (
    "The river rises in the hills and flows through three towns before it reaches the sea. Farmers along its banks have used "
    "the water for their fields since the old days, and there is a mill in every village. In winter the road is closed, but "
    "the people are used to it, and they say that the quiet months are the best part of the year.\n"
)
CHINESE = (
    "这条河发源于北方的山区，流经三个城镇后注入大海。沿岸的农民自古以来就用河水灌溉田地，每个村子里都有一座磨坊。"
    "冬天道路封闭，但是人们已经习惯了，他们说安静的几个月是一年中最好的时光。\n"
)


_PIECES = [
    "`", "```", "~~~", "\n", "\n\n\n\n", "  ", "\r\n", "\r", "a", "+", "\u212a", "\u200b", "\ufeff", "\0", "\x0c", "e\u0301",
    "x = 1;", "@@ -1 +1 @@", "words here ",
]  # fmt: skip


@given(st.text(st.characters(codec=None), max_size=60) | st.lists(st.sampled_from(_PIECES), max_size=25).map("".join))
@settings(max_examples=300, deadline=None)
def test_tidying_twice_is_tidying_once(text):
    for kind in ("auto", "prose", "code"):
        once = normalise(text, kind)
        assert normalise(once, kind) == once
        once.encode()
    once = normalise(text, "prose")
    if "```" in once or "~~~" in once:  # between fences everything is content
        return
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in once)


@pytest.mark.parametrize(
    ("raw", "tidy"),
    [
        ("a\r\nb\rc  \n\n\n\n\n\nd\n", "a\nb\nc\n\n\nd"),
        ("\ufeffx\u200by\x00z\x0c", "xyz"),
        ("e\u0301", "\u00e9"),
        ("\ud800x\ud83d\ude00", "\ufffdx\U0001f600"),
        ("  indented\n\ttoo", "  indented\n\ttoo"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
    ],
)
def test_what_tidying_does(raw, tidy):
    assert normalise(raw, "prose") == tidy


PATCH = (
    "Keep the sign of the Kelvin scale \u212a\n\n--- a/units.c\n+++ b/units.c\n@@ -1,4 +1,4 @@\n \n-degree = '\u212a';  \n"
    "+degree = 'K';\n \x0c\n return \u037e \ufa10 e\u0301\u200b;\n"
)


@pytest.mark.parametrize("text", [PATCH, "x = 1  \n\n\n\n\n\ny = [2]\t\n", "s = '\ufeff\u200b'\r\nt = 2\n"])
def test_code_and_patches_keep_every_character(text):
    assert normalise(text) == normalise(text, "code") == text
    assert normalise(text, "prose") != text
    assert normalise(f"\ufeff{text}\0") == text


def test_code_of_windows_gets_the_line_ends_of_the_others():
    assert normalise("a = 1;\r\nb = 2;\r\n") == "a = 1;\nb = 2;\n"


def test_what_stands_between_fences_in_prose_is_kept():
    around = PROSE + "\n{}\n" + PROSE
    fenced = "```diff\n \n-a  \n+\u212a\n\n\n\n\n```"
    assert normalise(around.format(fenced).replace(".\n", ". \n")) == around.format(fenced).strip()
    assert "K" in normalise(around.format(fenced.replace("```", "")))


@pytest.mark.parametrize("text", [PROSE * 3, CHINESE * 3 + PROSE], ids=["en", "zh"])
def test_ordinary_texts_stay(text):
    distinct = "\n".join(f"{n}. {line}" for n, line in enumerate(text.splitlines()))
    assert reject(normalise(distinct), Clean(), "zh" if "这" in text else "en") is None


@pytest.mark.parametrize(
    ("text", "options", "language", "reason"),
    [
        (" \n \n", {}, "", "empty"),
        ("short", {}, "", "too short"),
        (PROSE, {"max_chars": 100}, "", "too long"),
        (PROSE + "Lorem Ipsum", {"blocked": ("Lorem",)}, "", "blocked phrase"),
        (CHINESE + "\ufffd" * 3, {}, "", "damaged"),
        ("<>|{}[]" * 20 + "some words", {}, "", "symbols"),
        (PROSE * 4, {}, "", "repeated lines"),
        ("tick tock " * 500, {}, "", "repetitive"),
        (PROSE, {"max_mean_line": 80}, "", "long lines"),
        (PROSE, {}, "zh", "language"),
        (CHINESE, {}, "en", "language"),
    ],
)
def test_each_rejection(text, options, language, reason):
    assert reject(text, Clean(**options), language) == reason


def test_zero_switches_a_limit_off():
    off = dict.fromkeys(("min_chars", "max_symbols", "max_repeated_lines", "min_compression", "language_share"), 0)
    for text in ("x", "<>|{}[]" * 200, PROSE * 9, "tick tock " * 500):
        assert reject(text, Clean(**off), "zh") is None


SAMPLES = {
    "en": PROSE,
    "zh": CHINESE,
    "ja": "この川は北の山から流れ出し、三つの町を通って海に注ぎます。農民は昔からこの水を畑に使ってきました。",
    "ko": "이 강은 북쪽 산에서 시작하여 세 마을을 지나 바다로 흘러갑니다. 농부들은 예로부터 이 물을 써 왔습니다.",
    "ru": "Река начинается в горах и течёт через три города, прежде чем впадает в море. Крестьяне берут из неё воду.",
    "de": "Der Fluss entspringt in den Bergen und fließt durch drei Städte, bevor er das Meer erreicht. Die Bauern nutzen das "
    "Wasser für ihre Felder, und in jedem Dorf ist eine Mühle.",
    "fr": "La rivière prend sa source dans les montagnes et traverse trois villes avant de se jeter dans la mer. Les paysans "
    "qui vivent sur ses rives utilisent son eau pour leurs champs.",
    "es": "El río nace en las montañas y pasa por tres ciudades antes de llegar al mar. Los campesinos usan el agua para sus "
    "campos, pero en invierno el camino está cerrado.",
}


@pytest.mark.parametrize("language", SAMPLES)
def test_languages_are_told_apart(language):
    guess = identify(SAMPLES[language])
    assert guess.language == language
    assert sum(guess.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "text", ["", "12345 67 !?", "def f(x): return x[0] + kwargs.get('y')", "Xyzzy plugh frobnicate"]
)
def test_no_language_is_no_language(text):
    assert identify(text).language == "und"


def test_a_chinese_manual_full_of_commands_is_chinese():
    text = "使用 git commit 提交修改，再用 git push origin main 推送到远程仓库。参数 --force 表示强制覆盖远程分支，请谨慎使用。"
    assert identify(text).shares["zh"] > 0.3
