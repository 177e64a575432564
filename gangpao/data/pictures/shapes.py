"""Coloured shapes: one or two circles, rectangles or triangles, asked about in English or Chinese (after easy-VQA's questions).

A test shows sizes, grounds and turns of shapes that training does not.
"""

import math
from random import Random

from gangpao.data.pictures.scene import (
    COLOURS,
    DESCRIBE,
    Canvas,
    Colour,
    Question,
    Scene,
    chosen,
    described,
    ground,
    shifted,
)

SHAPES = {"circle": "圆形", "rectangle": "长方形", "triangle": "三角形"}
QUESTIONS = 4  # about one picture, at most


def draw(random: Random, unseen: bool, size: int) -> Scene:
    """One picture of `size` x `size` pixels."""
    names = random.sample(list(SHAPES), random.choice((1, 1, 2)))
    colours = random.sample(list(COLOURS), len(names))
    canvas = Canvas(size, ground(random, unseen))
    middles = _middles(random, len(names), size)
    for name, colour, (x, y) in zip(names, colours, middles, strict=True):
        # Training leaves a band of sizes out, and a test takes that band.
        radius = size * (
            random.uniform(0.155, 0.185) if unseen else random.choice((0.13, 0.20, 0.22)) * _jitter(random)
        )
        turn = random.uniform(20, 28) if unseen else random.uniform(-14, 14)
        _put(
            canvas,
            name,
            shifted(COLOURS[colour][1], random, 6 if colour == "gray" else 14),
            x,
            y,
            radius,
            math.radians(turn),
        )
    left_first = sorted(range(len(names)), key=lambda i: middles[i][0])
    names, colours = [names[i] for i in left_first], [colours[i] for i in left_first]
    chinese = random.random() < 0.5
    asked = (_chinese if chinese else _english)(names, colours, random)
    about = {"shapes": names, "colours": colours, "language": "zh" if chinese else "en"}
    picture, questions = canvas.finished(random, random.uniform(0, 3)), chosen(random, asked, QUESTIONS)
    return Scene(picture, questions, about, described(asked))


def _jitter(random: Random) -> float:
    return random.uniform(0.94, 1.06)


def _middles(random: Random, count: int, size: int) -> list[tuple[float, float]]:
    if count == 1:
        return [(size * random.uniform(0.28, 0.72), size * random.uniform(0.28, 0.72))]
    sides = [
        (random.uniform(0.25, 0.3), random.uniform(0.28, 0.72)),
        (random.uniform(0.7, 0.75), random.uniform(0.28, 0.72)),
    ]
    random.shuffle(sides)
    return [(size * x, size * y) for x, y in sides]


def _put(canvas: Canvas, name: str, colour: Colour, x: float, y: float, radius: float, turn: float) -> None:
    if name == "circle":
        canvas.disc(x, y, radius, colour)
        return
    if name == "rectangle":
        corner = math.atan2(0.62, 1.0)
        angles, length = [corner, math.pi - corner, math.pi + corner, -corner], 1.15 * radius
    else:
        angles, length = [-math.pi / 2, math.pi / 6, math.pi * 5 / 6], 1.2 * radius
    canvas.polygon([(x + length * math.cos(a + turn), y + length * math.sin(a + turn)) for a in angles], colour)


def _english(names: list[str], colours: list[str], random: Random) -> list[Question]:
    some, other = random.choice(list(SHAPES)), random.choice(list(COLOURS))
    out = [
        (f"is there a {some}?", "yes" if some in names else "no"),
        (f"is there a {other} shape?", "yes" if other in colours else "no"),
        ("how many shapes are there?", ("one", "two")[len(names) - 1]),
        (DESCRIBE[0], " and ".join(f"a {c} {name}" for c, name in zip(colours, names, strict=True))),
    ]
    out += [(f"what color is the {name}?", colour) for name, colour in zip(names, colours, strict=True)]
    out += [(f"what is the {colour} shape?", name) for name, colour in zip(names, colours, strict=True)]
    if len(names) == 1:
        return [*out, ("what shape is in the image?", names[0]), ("what is the color of the shape?", colours[0])]
    return [*out, ("what shape is on the left?", names[0]), ("what shape is on the right?", names[1])]


def _chinese(names: list[str], colours: list[str], random: Random) -> list[Question]:
    some, other = random.choice(list(SHAPES)), random.choice(list(COLOURS))
    shapes, tints = [SHAPES[name] for name in names], [COLOURS[colour][0] for colour in colours]
    out = [
        (f"图里有{SHAPES[some]}吗？", "有" if some in names else "没有"),
        (f"图里有{COLOURS[other][0]}的图形吗？", "有" if other in colours else "没有"),
        ("图里有几个图形？", ("一个", "两个")[len(names) - 1]),
        (DESCRIBE[1], "和".join(f"{tint}的{shape}" for tint, shape in zip(tints, shapes, strict=True))),
    ]
    out += [(f"{shape}是什么颜色？", tint) for shape, tint in zip(shapes, tints, strict=True)]
    out += [(f"{tint}的是什么图形？", shape) for shape, tint in zip(shapes, tints, strict=True)]
    if len(names) == 1:
        return [*out, ("图里是什么形状？", shapes[0]), ("这个图形是什么颜色？", tints[0])]
    return [*out, ("左边是什么图形？", shapes[0]), ("右边是什么图形？", shapes[1])]
