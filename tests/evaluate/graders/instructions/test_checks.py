"""Every kind of instruction with answers that keep it and answers that do not."""

from typing import Any

import pytest

from gangpao.evaluate.graders.instructions import checks

LEAST3 = {"relation": "at least", "number": 3}
KEPT: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    # kind, parameters, kept by, broken by
    (
        "word_count",
        LEAST3,
        ["one two three", "我爱你", "it's well-known now", "我 love 你"],
        ["one two", "我爱。", "--- ... !", "it's mine"],
    ),
    (
        "word_count",
        {"relation": "at most", "number": 3},
        ["one two three", "我爱你！", "a"],
        ["one two three four", "我爱你们"],
    ),
    ("word_count", {"relation": "exactly", "number": 2}, ["five kg", "你好"], ["one", "one two three"]),
    (
        "sentence_count",
        LEAST3,
        ["One. Two! Three?", "一。二！三？", "One.\n\nTwo.\n\nThree.", "He left. “Why?” She asked."],
        ["One. Two.", "一，二，三。", "Mr. Fox and Dr. Li paid 3.5 dollars e.g. here.", "J. S. Bach lived."],
    ),
    (
        "sentence_count",
        {"relation": "exactly", "number": 2},
        ["Wait... what is it? I see.", "No end. At the last", "他说：“好。”我走了。"],
        ["One", "One. Two. Three."],
    ),
    (
        "paragraph_count",
        {"number": 2, "mark": "***"},
        ["one\n***\ntwo", "***\none\n***\ntwo\n***", "一\n\n***\n\n二"],
        ["one", "one\n***\n***\ntwo", "a\n***\nb\n***\nc"],
    ),
    ("paragraph_count", {"number": 2}, ["one\n\ntwo", "a b\n \nc"], ["one\ntwo", "a\n\nb\n\nc"]),
    (
        "nth_paragraph_starts",
        {"paragraph": 2, "word": "However", "number": 2},
        ["One.\n\nHowever, two.", "One.\n\n**However** two", "a\n\n\n\nhowever"],
        ["However.\n\nTwo", "One.\n\nHowevery two", "One.\n\nTwo however", "a\n\nHowever\n\nb", "However"],
    ),
    (
        "nth_paragraph_starts",
        {"paragraph": 1, "word": "首先", "number": 2},
        ["首先我们看。\n\n然后"],
        ["我们首先看。\n\n然后", "首先"],
    ),
    ("keywords", {"words": ["art", "time"]}, ["Time for ART.", "art, time"], ["A party in time", "art", "timely art"]),
    ("keywords", {"words": ["河流", "朋友"]}, ["朋友在河流边"], ["朋友在河边"]),
    ("forbidden", {"words": ["bad", "very"]}, ["A badge, every day", "fine"], ["Bad!", "it is VERY good"]),
    ("forbidden", {"words": ["好"]}, ["不错"], ["很好看"]),
    (
        "keyword_count",
        {"word": "people", "relation": "at least", "number": 2},
        ["People and people", "people's people"],
        ["people", "peoples peopled"],
    ),
    ("keyword_count", {"word": "人们", "relation": "exactly", "number": 2}, ["人们看人们"], ["人们", "人们人们人们"]),
    ("letter_count", {"letter": "q", **LEAST3}, ["Quick quiet quiz", "qqq"], ["quick quiet", ""]),
    ("letter_count", {"letter": "大", "relation": "at most", "number": 1}, ["大", "小"], ["大大"]),
    (
        "json_only",
        {},
        ['{"a": [1, 2]}', " [1]\n", '```json\n{"a": 1}\n```', "```\n[]\n```"],
        ["{'a': 1}", "Sure: {}", "12", '"text"', "", "{} {}", "```json\n{}", "[" * 5000],
    ),
    (
        "bullet_count",
        {"number": 2},
        ["* a\n* b", "Intro:\n- a\n  - b", "• 一\n• 二"],
        ["* a", "* a\n* b\n* c", "*a* b\n*c* d", "---\n***\n* a"],
    ),
    (
        "numbered_count",
        {"number": 2},
        ["1. a\n2. b", "1) a\n2) b", "1、一\n2、二", "Intro\n 1. a\ntext\n 2. b"],
        ["1. a", "1. a\n3. b", "1. a\n2. b\n3. c", "2. a\n1. b", "12 a\n13 b"],
    ),
    (
        "section_count",
        {"name": "Section", "number": 2},
        ["Section 1\na\nSECTION 2\nb", "## Section 1: x\n**Section 2**", "Section I\nSection II"],
        ["Section 1", "In Section 1 and Section 2 we", "Sections 1\nSections 2"],
    ),
    (
        "section_count",
        {"name": "节", "number": 2},
        ["第1节\n甲\n第2节\n乙", "# 第一节 甲\n# 第二节", "【第1节】\n【第2节】"],
        ["第1节", "第1章\n第2章", "节1\n节2"],
    ),
    ("title", {}, ["<<A title>>\ntext", "<<标题>>"], ["<< >>", "<<>>", "《标题》", "«a»", "<a>", "a << b"]),
    (
        "highlighted",
        {"number": 2},
        ["*a* and *b*", "**a** b **c**", "* item *one*\n* item **two**"],
        ["*a*", "* a\n* b", "** ** *a*", "2 * 3 * 4"],
    ),
    (
        "placeholders",
        {"number": 2},
        ["[name], [place]", "我叫[姓名]，住在[地址]"],
        ["[name]", "[a] and [a]", "[x](http://y) [z]", "[] [ ]", "- [x] [ ] a"],
    ),
    (
        "postscript",
        {"mark": "P.S."},
        ["Text.\n\nP.S. More", "Text\nPS: more", "Text\n**P.S.** more", "a\np. s. more"],
        ["P.S. alone", "Text\nP.S.", "Text P.S. more", "Text\nPost"],
    ),
    (
        "postscript",
        {"mark": "附言"},
        ["正文\n附言：再见", "正文\n\n**附言** 再见"],
        ["附言：再见", "正文，附言：再见", "正文\n附言"],
    ),
    (
        "two_answers",
        {"mark": "******"},
        ["One\n******\nTwo"],
        ["One", "One\n******", "One\n******\nOne", "a\n******\nb\n******\nc"],
    ),
    (
        "repeated",
        {"text": "Say it."},
        ["Say it. I say.", "say  it.\n\nOk", '"Say it." Fine'],
        ["Say it.", "I say. Say it.", "", "Say it!  no"],
    ),
    (
        "one_of",
        {"options": ["Yes.", "No."]},
        ["Yes.", "no", '"Yes"', "**No.**"],
        ["Yes, because", "Maybe", "", "Yes. No."],
    ),
    ("one_of", {"options": ["我愿意", "我不愿意"]}, ["我愿意。", "“我不愿意”"], ["愿意", "我愿意，因为"]),
    (
        "language",
        {"code": "zh"},
        ["今天天气很好。", "我用 Python 写代码，很喜欢它。"],
        ["Hello 你好 to all", "123", "こんにちは", ""],
    ),
    (
        "language",
        {"code": "en"},
        ["All is well, 3 times.", "A café here is well known to us."],
        ["你好 hello", "Привет всем", "123", "Fußgänger größer"],
    ),
    ("lower_case", {}, ["all small 3.", "i am"], ["One", "你好", "", "123"]),
    ("upper_case", {}, ["ALL 3!", "I AM"], ["One", "你好", ""]),
    (
        "capital_words",
        {"relation": "at least", "number": 2},
        ["I AM here", "NASA and UN"],
        ["NASA only", "no Caps", "你好 AB"],
    ),
    (
        "starts_with",
        {"text": "In my view"},
        ["In my view, yes", '"in my view" it is', "**In my view**: no"],
        ["Well, in my view", "In our view"],
    ),
    ("starts_with", {"text": "说实话"}, ["说实话，不好", "“说实话”"], ["我说实话"]),
    (
        "ends_with",
        {"text": "That is all."},
        ["Done. That is all.", 'x "That is all."', "that is ALL.\n", "**That is all.**"],
        ["That is all", "That is all. Bye"],
    ),
    ("quoted", {}, ['"It is so."', "“是的。”", "「是」"], ['"It', "It is", '""', "'It is'", '"a" b']),
    ("no_commas", {}, ["One; two. 一、二。"], ["a, b", "一，二", "", "1,000"]),
    ("no_digits", {}, ["one two", "一二"], ["1", "no 2 go", "３", " "]),
]


@pytest.mark.parametrize(("kind", "parameters", "kept", "broken"), KEPT)
def test_a_check(kind: str, parameters: dict[str, Any], kept: list[str], broken: list[str]) -> None:
    assert [a for a in kept if not checks.check(a, kind, parameters)] == []
    assert [a for a in broken if checks.check(a, kind, parameters)] == []


def test_every_kind_is_tested() -> None:
    assert {kind for kind, *_ in KEPT} == set(checks.CHECKS)
    assert len(checks.CHECKS) >= 25


def test_what_is_no_instruction_is_named() -> None:
    with pytest.raises(ValueError, match="no such instruction: 'rhyme'"):
        checks.check("a", "rhyme", {})
    with pytest.raises(ValueError, match=r"instruction title: .*number"):
        checks.check("a", "title", {"number": 1})
    with pytest.raises(ValueError, match="no such relation: 'about'"):
        checks.check("a", "word_count", {"relation": "about", "number": 1})
    with pytest.raises(ValueError, match="language 'fr'"):
        checks.check("a", "language", {"code": "fr"})
