"""Documents out of thin air: small stories in Chinese and English, sums, and conversations about both; for tests and CI.

The idea: a grammar small enough for a model of a million weights to learn in minutes, with things to get right: a person
keeps a name, things are where they were put, sums are correct. Document i of a seed is always the same, whatever is
generated before it. It gives up everything that makes text interesting.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from gangpao.data.config import Kind
from gangpao.text.templates.chat import Message


class _Words(NamedTuple):
    names: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]
    colours: tuple[str, ...]
    times: tuple[str, ...]


_EN = _Words(
    ("Anna", "Ben", "Clara", "David", "Ella", "Felix", "Grace", "Henry", "Iris", "Jack"),
    ("apple", "ball", "book", "cup", "drum", "flower", "hat", "key", "lamp", "letter", "map", "stone"),
    ("garden", "kitchen", "school", "market", "harbour", "forest", "library", "station"),
    ("red", "blue", "green", "yellow", "white", "black"),
    ("In the morning", "At noon", "In the evening", "On Monday", "After the rain", "Before lunch"),
)
_ZH = _Words(
    ("小明", "小红", "小刚", "小丽", "王老师", "李医生", "张师傅", "陈奶奶"),
    ("苹果", "皮球", "书", "杯子", "鼓", "花", "帽子", "钥匙", "台灯", "信", "地图", "石头"),
    ("花园", "厨房", "学校", "市场", "码头", "森林", "图书馆", "车站"),
    ("红色", "蓝色", "绿色", "黄色", "白色", "黑色"),
    ("早上", "中午", "傍晚", "星期一", "雨停以后", "吃饭以前"),
)


def texts(kind: Kind, count: int, seed: int) -> Iterator[str]:
    """`count` documents of kind text or arithmetic."""
    for i in range(count):
        random = Random(f"{kind} {seed} {i}")
        yield _sums(random) if kind == "arithmetic" else _story(random)


def chats(count: int, seed: int) -> Iterator[list[Message]]:
    """`count` conversations of one or two questions with their answers."""
    for i in range(count):
        random = Random(f"chat {seed} {i}")
        out: list[Message] = []
        for _ in range(random.choice((1, 1, 2))):
            question, answer = random.choice((_sum_chat, _where_chat))(random)
            out.append({"role": "user", "content": question})
            out.append({"role": "assistant", "content": answer})
        yield out


def _story(random: Random) -> str:
    chinese = random.random() < 0.5
    words = _ZH if chinese else _EN
    name, friend = random.sample(words.names, 2)
    lines = []
    for _ in range(random.randint(3, 7)):
        thing, colour = random.choice(words.things), random.choice(words.colours)
        place, other = random.sample(words.places, 2)
        time = random.choice(words.times)
        if chinese:
            lines.append(
                random.choice(
                    (
                        f"{time}，{name}在{place}找到了一个{colour}的{thing}。{name}把{thing}送给了{friend}。",
                        f"{name}从{place}走到{other}，手里拿着{colour}的{thing}。",
                        f"{friend}问{name}：“{thing}在哪里？”{name}说：“{thing}在{place}。”",
                        f"{time}，{friend}和{name}一起去{other}，看见了{colour}的{thing}。",
                    )
                )
            )
        else:
            lines.append(
                random.choice(
                    (
                        f"{time} {name} found a {colour} {thing} in the {place}. {name} gave the {thing} to {friend}.",
                        f"{name} walked from the {place} to the {other} with a {colour} {thing}.",
                        f'{friend} asked {name}: "Where is the {thing}?" {name} said: "The {thing} is in the {place}."',
                        f"{time} {friend} and {name} went to the {other} and saw a {colour} {thing}.",
                    )
                )
            )
    return ("" if chinese else " ").join(lines)


def _operation(random: Random) -> tuple[int, str, int, int]:
    a, b = random.randint(0, 99), random.randint(0, 99)
    kind = random.choice("+-*")
    if kind == "-":
        a, b = max(a, b), min(a, b)
    if kind == "*":
        a, b = a % 13, b % 13
    return a, kind, b, {"+": a + b, "-": a - b, "*": a * b}[kind]


def _sums(random: Random) -> str:
    return "\n".join(
        f"{a} {sign} {b} = {c}" for a, sign, b, c in (_operation(random) for _ in range(random.randint(4, 12)))
    )


def _sum_chat(random: Random) -> tuple[str, str]:
    a, sign, b, c = _operation(random)
    if random.random() < 0.5:
        spoken = {"+": "加", "-": "减", "*": "乘"}[sign]
        return f"{a}{spoken}{b}等于多少？", f"{a}{spoken}{b}等于{c}。"
    return f"What is {a} {sign} {b}?", f"{a} {sign} {b} = {c}."


def _where_chat(random: Random) -> tuple[str, str]:
    chinese = random.random() < 0.5
    words = _ZH if chinese else _EN
    name, thing, place = random.choice(words.names), random.choice(words.things), random.choice(words.places)
    if chinese:
        return f"{name}把{thing}放在{place}。{thing}在哪里？", f"{thing}在{place}。"
    return f"{name} put the {thing} in the {place}. Where is the {thing}?", f"The {thing} is in the {place}."
