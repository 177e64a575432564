"""Bar and line charts with an axis and names below, and questions whose answers can be read off them.

Values are whole numbers of 1 to 9, so that every answer can be seen: the axis has a mark for each. A test shows colours and
counts of columns that training does not.
"""

from random import Random

from PIL import ImageDraw

from gangpao.data.pictures import fonts
from gangpao.data.pictures.scene import COLOURS, SCALE, Canvas, Question, Scene, chosen, shifted

QUESTIONS = 4
_NAMES = "ABCDEFGH"
_TOP = 9
_SEEN, _UNSEEN = (3, 4, 6), (5,)


def draw(random: Random, unseen: bool, size: int) -> Scene:
    """One picture of `size` x `size` pixels."""
    count = random.choice(_UNSEEN if unseen else _SEEN)
    names = random.sample(_NAMES, count)
    values = [random.randint(1, _TOP) for _ in names]
    bars = random.random() < 0.6
    canvas = Canvas(size, (255, 255, 255))
    _axes(canvas, size)
    colour = shifted(random.choice([c for _, c in COLOURS.values() if max(c) > 60]), random, 40 if unseen else 12)
    step = 0.84 * size / count
    middles = [0.13 * size + (i + 0.5) * step for i in range(count)]
    if bars:
        for x, value in zip(middles, values, strict=True):
            half = 0.32 * step
            corners = [
                (x - half, _y(0, size)),
                (x - half, _y(value, size)),
                (x + half, _y(value, size)),
                (x + half, _y(0, size)),
            ]
            canvas.polygon(corners, colour)
    else:
        points = [(x, _y(value, size)) for x, value in zip(middles, values, strict=True)]
        canvas.line(points, max(1.2, size / 90), colour)
        for x, y in points:
            canvas.disc(x, y, max(1.6, size / 60), colour)
    _texts(canvas, size, names, middles)
    chinese = random.random() < 0.5
    asked = _questions(names, values, bars, chinese, random)
    about = {"kind": "bars" if bars else "line", "values": dict(zip(names, values, strict=True))}
    return Scene(canvas.finished(random), chosen(random, asked, QUESTIONS), about)


def _y(value: int, size: int) -> float:
    return size * (0.88 - 0.82 * value / _TOP)


def _axes(canvas: Canvas, size: int) -> None:
    for value in range(_TOP + 1):
        canvas.line([(0.12 * size, _y(value, size)), (0.98 * size, _y(value, size))], 0.4, (215, 215, 215))
    canvas.line(
        [(0.12 * size, _y(_TOP, size)), (0.12 * size, _y(0, size)), (0.98 * size, _y(0, size))], 1, (30, 30, 30)
    )


def _texts(canvas: Canvas, size: int, names: list[str], middles: list[float]) -> None:
    draw, font = ImageDraw.Draw(canvas.image), fonts.load(None, round(0.075 * size * SCALE))
    for value in range(1, _TOP + 1, 2):
        draw.text((0.06 * size * SCALE, _y(value, size) * SCALE), str(value), (0, 0, 0), font, anchor="mm")
    for name, x in zip(names, middles, strict=True):
        draw.text((x * SCALE, 0.94 * size * SCALE), name, (0, 0, 0), font, anchor="mm")


def _questions(names: list[str], values: list[int], bars: bool, chinese: bool, random: Random) -> list[Question]:
    i, j = random.sample(range(len(names)), 2)
    words = {
        "value": (f"what is the value of {names[i]}?", f"{names[i]}的值是多少？"),
        "kind": ("is this a bar chart or a line chart?", "这是柱状图还是折线图？"),
        "count": ("how many values are shown?", "图里有几个值？"),
        "more": (f"which is larger, {names[i]} or {names[j]}?", f"{names[i]}和{names[j]}哪个大？"),
        "sum": (f"what is {names[i]} plus {names[j]}?", f"{names[i]}加{names[j]}等于多少？"),
        "most": ("which is the largest?", "哪个最大？"),
        "least": ("which is the smallest?", "哪个最小？"),
    }
    kinds = ("柱状图" if bars else "折线图") if chinese else ("bar chart" if bars else "line chart")
    answers = {
        "value": str(values[i]), "kind": kinds, "count": str(len(values)), "sum": str(values[i] + values[j])
    }  # fmt: skip
    if values[i] != values[j]:
        answers["more"] = names[i if values[i] > values[j] else j]
    for key, best in (("most", max(values)), ("least", min(values))):
        if values.count(best) == 1:  # two largest ones have no answer
            answers[key] = names[values.index(best)]
    return [(words[key][chinese], answer) for key, answer in answers.items()]
