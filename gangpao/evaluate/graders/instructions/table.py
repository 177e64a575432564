"""One row a kind of instruction: its wording in English and Chinese, what it draws, and what it cannot stand beside.

Two kinds that share a group would ask for what no answer can keep (JSON in quotation marks), or for nearly the same; a prompt has
at most one kind of a group. A parameter that is drawn per language is a dict by language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = Sequence[Any] | Mapping[str, Sequence[Any]]  # for both languages, or by language

RELATIONS = {"en": {"at least": "at least", "at most": "at most"}, "zh": {"at least": "至少", "at most": "至多"}}


@dataclass(frozen=True)
class Kind:
    """A row. name: a key of checks.CHECKS; `{x}` in a wording is the parameter x."""

    name: str
    en: str
    zh: str
    groups: tuple[str, ...]
    draws: Mapping[str, Values] = field(default_factory=dict)
    only: str = ""  # a language, where the instruction means nothing in the other
    alone: bool = False  # not beside any other instruction


_LEAST_MOST = ("at least", "at most")
KINDS: tuple[Kind, ...] = (
    Kind(
        "word_count",
        "Use {relation} {number} words.",
        "回答{relation}要有{number}个字。",
        ("length",),
        {"relation": ("at least",), "number": (60, 100, 150, 200)},
    ),
    Kind(
        "word_count",
        "Use {relation} {number} words.",
        "回答{relation}写{number}个字。",
        ("length",),
        {"relation": ("at most",), "number": (30, 50, 80)},
    ),
    Kind(
        "sentence_count",
        "Write {relation} {number} sentences.",
        "{relation}写{number}句话。",
        ("length", "sentences"),
        {"relation": _LEAST_MOST, "number": (3, 5, 8)},
    ),
    Kind(
        "paragraph_count",
        "Write exactly {number} paragraphs, with the line {mark} between them.",
        "恰好写{number}段，段与段之间单独用一行 {mark} 隔开。",
        ("shape",),
        {"number": (2, 3, 4), "mark": ("***",)},
    ),
    Kind(
        "nth_paragraph_starts",
        "Write exactly {number} paragraphs with an empty line between them; paragraph {paragraph} must begin with the word {word}.",
        "恰好写{number}段，段与段之间空一行；第{paragraph}段必须以“{word}”开头。",
        ("shape", "start", "end", "title"),
        {
            "number": (2, 3),
            "paragraph": (1, 2),
            "word": {"en": ("However", "First", "Today"), "zh": ("然而", "首先", "今天")},
        },
    ),
    Kind(
        "keywords",
        "Include the words {words}.",
        "回答中要出现以下词语：{words}。",
        ("include",),
        {
            "words": {
                "en": (["river", "friend"], ["music", "water"], ["simple", "time"]),
                "zh": (["河流", "朋友"], ["音乐", "水"], ["简单", "时间"]),
            }
        },
    ),
    Kind(
        "forbidden",
        "Do not use the words {words}.",
        "不要使用以下词语：{words}。",
        ("forbid",),
        {
            "words": {
                "en": (["very", "really"], ["good", "bad"], ["also", "because"]),
                "zh": (["非常", "真的"], ["好", "坏"], ["而且", "因为"]),
            }
        },
    ),
    Kind(
        "keyword_count",
        "Use the word {word} {relation} {number} times.",
        "“{word}”这个词{relation}出现{number}次。",
        ("include",),
        {
            "word": {"en": ("people", "every", "small"), "zh": ("人们", "每个", "小")},
            "relation": ("at least",),
            "number": (2, 3),
        },
    ),
    Kind(
        "letter_count",
        "The letter {letter} must appear {relation} {number} times.",
        "“{letter}”字{relation}出现{number}次。",
        ("letter",),
        {"letter": {"en": ("q", "z", "j"), "zh": ("大", "一", "有")}, "relation": ("at least",), "number": (2, 3)},
    ),
    Kind(
        "json_only",
        "Give the whole answer as JSON and nothing else.",
        "只用 JSON 格式输出整个回答，不要有任何其他内容。",
        ("shape", "start", "end", "title", "case", "bracket", "comma", "sentences", "digits"),
    ),
    Kind(
        "bullet_count",
        "Give the answer as a list of exactly {number} bullet points, each line beginning with *.",
        "用恰好{number}个要点回答，每个要点单独一行并以 * 开头。",
        ("shape", "sentences"),
        {"number": (3, 4, 5)},
    ),
    Kind(
        "numbered_count",
        "Give the answer as a numbered list of exactly {number} points: 1. 2. and so on.",
        "用恰好{number}条编号列表回答，写成 1. 2. 的形式。",
        ("shape", "sentences", "digits"),
        {"number": (3, 4, 5)},
    ),
    Kind(
        "section_count",
        "Divide the answer into {number} sections with the headings {name} 1, {name} 2 and so on, each on its own line.",
        "把回答分成{number}部分，各部分标题单独一行，写成“第1{name}”“第2{name}”的形式。",
        ("shape", "digits", "sentences"),
        {"number": (2, 3), "name": {"en": ("Section", "Part"), "zh": ("节", "章")}},
    ),
    Kind(
        "title",
        "Give the answer a title in double angle brackets, like <<a title>>.",
        "给回答加一个标题，用双尖括号括起来，例如 <<标题>>。",
        ("title",),
    ),
    Kind(
        "highlighted",
        "Highlight at least {number} parts with asterisks, like *this*.",
        "至少用星号标出{number}处重点，例如 *重点*。",
        ("mark",),
        {"number": (2, 3)},
    ),
    Kind(
        "placeholders",
        "Leave at least {number} places to fill in, in square brackets, like [name].",
        "至少留{number}处待填写的内容，用方括号表示，例如 [姓名]。",
        ("bracket",),
        {"number": (2, 3)},
    ),
    Kind(
        "postscript",
        "At the end add a postscript that begins with {mark}",
        "在最后加一段附言，以“{mark}”开头。",
        ("end",),
        {"mark": {"en": ("P.S.",), "zh": ("附言", "又及")}},
    ),
    Kind(
        "two_answers",
        "Give two different answers, with a line of six asterisks ****** between them and nowhere else.",
        "给出两个不同的回答，中间单独用一行六个星号 ****** 隔开，别处不要使用。",
        ("shape", "mark", "end", "title"),
        {"mark": ("******",)},
    ),
    Kind(
        "repeated",
        "First repeat this request word for word, up to this point without this sentence, then answer.",
        "先逐字重复上面的要求（不包括这句话），然后再回答。",
        (),
        alone=True,
    ),
    Kind(
        "one_of",
        "Answer with one of these and nothing else: {options}.",
        "只能从以下选项中选一个作答，不要写其他内容：{options}。",
        (),
        {
            "options": {
                "en": (["Yes, I would.", "No, I would not.", "I am not sure."],),
                "zh": (["我愿意", "我不愿意", "我不确定"],),
            }
        },
        alone=True,
    ),
    Kind(
        "language",
        "Answer in Chinese only.",
        "只用英文回答。",
        ("include", "forbid", "letter", "case", "start", "end", "shape", "length", "title"),
        {"code": {"en": ("zh",), "zh": ("en",)}},
    ),
    Kind(
        "lower_case",
        "Write in lower case only, without a single capital letter.",
        "",
        ("case", "start", "shape", "end"),
        only="en",
    ),
    Kind("upper_case", "WRITE IN CAPITAL LETTERS ONLY.", "", ("case", "start", "shape", "end", "include"), only="en"),
    Kind(
        "capital_words",
        "Write {relation} {number} words in capital letters.",
        "",
        ("case",),
        {"relation": _LEAST_MOST, "number": (3, 5)},
        only="en",
    ),
    Kind(
        "starts_with",
        "Begin the answer with: {text}",
        "回答要以“{text}”开头。",
        ("start", "title"),
        {"text": {"en": ("In my view", "To be honest"), "zh": ("在我看来", "说实话")}},
    ),
    Kind(
        "ends_with",
        "End the answer with exactly these words: {text}",
        "回答的最后一句必须是：{text}",
        ("end",),
        {
            "text": {
                "en": ("That is all.", "Do you have other questions?"),
                "zh": ("以上就是全部。", "还有其他问题吗？"),
            }
        },
    ),
    Kind(
        "quoted",
        "Put the whole answer in double quotation marks.",
        "把整个回答放在双引号里。",
        ("start", "end", "shape", "title"),
    ),
    Kind("no_commas", "Do not use any comma.", "不要使用任何逗号。", ("comma",)),
    Kind("no_digits", "Do not use any digit.", "不要使用任何阿拉伯数字。", ("digits",)),
)

TASKS: dict[str, tuple[str, ...]] = {
    "en": (
        "Describe a rainy day in a small town.",
        "Explain why leaves are green.",
        "Give advice to somebody who starts to learn to cook.",
        "Write about a journey by train.",
        "Explain what a library is for.",
        "Recommend a hobby for the winter.",
        "Describe your ideal breakfast.",
        "Write a short letter to a neighbour about a lost cat.",
        "Explain how to keep a plant alive.",
        "Tell a short story about a lighthouse.",
        "Compare bicycles and cars in a city.",
        "Explain why sleep matters.",
        "Write a notice for a village market.",
        "Describe a day in the life of a baker.",
        "Explain how a mirror works.",
        "Suggest how to save water at home.",
        "Write about the sea at night.",
        "Explain what makes a good friend.",
        "Describe a walk through a forest.",
        "Write an invitation to a picnic.",
    ),
    "zh": (
        "描写小城里的一个雨天。",
        "说明树叶为什么是绿色的。",
        "给刚开始学做饭的人提些建议。",
        "写一次坐火车的旅行。",
        "说明图书馆有什么用。",
        "推荐一个适合冬天的爱好。",
        "描写你理想中的早餐。",
        "给邻居写一封关于猫走丢的短信。",
        "说明怎样把植物养活。",
        "讲一个关于灯塔的小故事。",
        "比较城市里的自行车和汽车。",
        "说明睡眠为什么重要。",
        "为村里的集市写一则通知。",
        "描写面包师的一天。",
        "说明镜子的原理。",
        "建议在家里怎样节约用水。",
        "写一写夜晚的大海。",
        "说明什么样的人是好朋友。",
        "描写一次林中散步。",
        "写一份野餐的邀请。",
    ),
}
QUESTIONS = {  # where the answer is one of three
    "en": ("Would you live on a boat?", "Would you give up sugar?", "Would you travel alone?"),
    "zh": ("你愿意住在船上吗？", "你愿意不吃糖吗？", "你愿意独自旅行吗？"),
}
