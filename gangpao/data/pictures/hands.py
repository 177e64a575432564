"""Rock, paper, scissors: hands out of a palm, a wrist and five fingers, each with its length and angle.

What varies: left or right hand, skin, size, place, turn, spread and lengths of the fingers, sleeve, ground. A test shows skins,
turns and grounds that training leaves out. What it gives up: light, depth, and everything else that a camera sees.
"""

import math
from collections.abc import Callable
from random import Random

from gangpao.data.pictures.scene import (
    DESCRIBE,
    Canvas,
    Colour,
    Question,
    Scene,
    chosen,
    described,
    ground,
    near,
    shifted,
)

GESTURES = {"rock": "石头", "paper": "布", "scissors": "剪刀"}
_SKINS: tuple[Colour, ...] = ((255, 219, 186), (236, 188, 146), (198, 138, 92), (150, 98, 62), (94, 58, 40))
_UNSEEN_SKINS: tuple[Colour, ...] = ((245, 203, 168), (172, 118, 76), (122, 76, 50))
_TURNS, _UNSEEN_TURNS = ((-70, -45), (-22, 22), (45, 70)), ((-42, -26), (26, 42))
# Of the four fingers, index to little: where they leave the palm (across, in palm widths), and their lengths and angles.
_ACROSS = (-0.36, -0.12, 0.12, 0.36)
_LENGTHS = (0.92, 1.04, 0.96, 0.74)
_WIDTH = 0.25
_STRETCHED = {"rock": (False,) * 4, "paper": (True,) * 4, "scissors": (True, True, False, False)}

Point = tuple[float, float]


def draw(random: Random, unseen: bool, size: int) -> Scene:
    """One picture of `size` x `size` pixels."""
    gesture = random.choice(list(GESTURES))
    skin = shifted(random.choice(_UNSEEN_SKINS if unseen else _SKINS), random, 8)
    below = ground(random, unseen)
    for _ in range(9):  # a hand that nobody can see teaches nothing
        below = ground(random, unseen) if near(below, skin) else below
    canvas = Canvas(size, below)
    _hand(canvas, gesture, skin, random, unseen, size)
    chinese = random.random() < 0.5
    asked = _questions(gesture, chinese, random)
    questions = chosen(random, asked, 2)
    about = {"gesture": gesture, "language": "zh" if chinese else "en"}
    return Scene(canvas.finished(random, random.uniform(0, 4)), questions, about, described(asked))


def _questions(gesture: str, chinese: bool, random: Random) -> list[Question]:
    beats = {"rock": "scissors", "paper": "rock", "scissors": "paper"}
    wins = next(name for name, loser in beats.items() if loser == gesture)
    other = random.choice(list(GESTURES))
    if chinese:
        return [
            ("这是什么手势？", GESTURES[gesture]),
            ("石头、剪刀还是布？", GESTURES[gesture]),
            ("出什么能赢它？", GESTURES[wins]),
            (f"这是{GESTURES[other]}吗？", "是" if other == gesture else "不是"),
            (DESCRIBE[1], f"一只手，出的是{GESTURES[gesture]}"),
        ]
    return [
        ("what gesture is this?", gesture),
        ("rock, paper or scissors?", gesture),
        ("what beats it?", wins),
        (f"is this {other}?", "yes" if other == gesture else "no"),
        (DESCRIBE[0], f"a hand that shows {gesture}"),
    ]


def _hand(canvas: Canvas, gesture: str, skin: Colour, random: Random, unseen: bool, size: int) -> None:
    palm = size * random.uniform(0.25, 0.31)
    turn = math.radians(random.uniform(*random.choice(_UNSEEN_TURNS if unseen else _TURNS)))
    side = random.choice((-1, 1))
    x = size * random.uniform(0.45, 0.55) - 0.5 * palm * math.sin(turn)
    y = size * random.uniform(0.54, 0.62) + 0.2 * palm * math.cos(turn)
    dark: Colour = (int(skin[0] * 0.72), int(skin[1] * 0.7), int(skin[2] * 0.7))

    def at(across: float, up: float) -> Point:
        """A point of the hand (in palms, up is towards the fingers) on the picture."""
        a, u = side * across * palm, up * palm
        return x + a * math.cos(turn) + u * math.sin(turn), y + a * math.sin(turn) - u * math.cos(turn)

    sleeve = shifted((90, 90, 120), random, 80)
    canvas.line([at(0, -0.4), at(0, -1.1)], 0.68 * palm, skin)
    canvas.line([at(0, -0.95), at(0, -4.0)], 0.9 * palm, sleeve)
    spread = random.uniform(9, 15) if gesture == "paper" else random.uniform(11, 19)
    for i in range(4):
        stretched = _STRETCHED[gesture][i]
        angle = math.radians(spread * (i - (1.5 if gesture == "paper" else 0.5)) + random.uniform(-2, 2))
        length = _LENGTHS[i] * random.uniform(0.93, 1.07) if stretched else random.uniform(0.16, 0.22)
        tip = (
            (_ACROSS[i] + length * math.sin(angle), 0.5 + length * math.cos(angle))
            if stretched
            else (_ACROSS[i], 0.5 + length)
        )
        _finger(canvas, [at(_ACROSS[i], 0.3), at(*tip)], palm, skin, dark)
    _palm(canvas, at, palm, skin, dark)
    if gesture != "paper":  # bent fingers lie on the palm, and the thumb over them
        for i in range(4):
            if not _STRETCHED[gesture][i]:
                _finger(canvas, [at(_ACROSS[i], 0.5), at(_ACROSS[i], 0.12)], palm, skin, dark)
        _finger(
            canvas, [at(-0.46, -0.12), at(random.uniform(-0.06, 0.1), random.uniform(-0.1, 0.02))], palm, skin, dark
        )
        return
    out = math.radians(random.uniform(42, 60))
    length = random.uniform(0.62, 0.76)
    _finger(
        canvas, [at(-0.38, -0.18), at(-0.38 - length * math.sin(out), -0.18 + length * math.cos(out))], palm, skin, dark
    )


def _finger(canvas: Canvas, points: list[Point], palm: float, skin: Colour, dark: Colour) -> None:
    """A capsule with a darker edge."""
    for width, colour in ((_WIDTH * palm, dark), ((_WIDTH - 0.05) * palm, skin)):
        canvas.line(points, width, colour)
        for x, y in points:
            canvas.disc(x, y, width / 2, colour)


def _palm(canvas: Canvas, at: Callable[[float, float], Point], palm: float, skin: Colour, dark: Colour) -> None:
    corners = [(-0.3, -0.42), (0.3, -0.42), (0.37, 0.34), (-0.37, 0.34)]
    for grow, colour in ((0.14, dark), (0.11, skin)):
        points = [at(a, u) for a, u in corners]
        canvas.line([*points, points[0]], 2 * grow * palm, colour)
        for px, py in points:
            canvas.disc(px, py, grow * palm, colour)
        canvas.polygon(points, colour)
