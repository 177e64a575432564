"""Eight characters to read: letters and digits in fonts that are here, or common Chinese characters in fonts that are named.

A test shows strings that training never does (by their hash) and turns that it does not. Shorter ones (`lengths`) are what reading
is learned from: of eight characters at once a new model learns for long that any could stand anywhere (docs/log.md, 2026-11-30).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

from gangpao.data.pictures import fonts
from gangpao.data.pictures.scene import SCALE, Colour, Scene, ground

LENGTH = 8
_HIGHEST = 0.9  # of the picture's side
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghijkmnpqrtuvwy23456789"  # without those that only their context tells apart
HAN = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进"
    "着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各"
    "重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次"
    "品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据处队南给色光门即保治"
    "北造百规热领七海口东导器压志世金增争济阶油思术极交受联什认六共权收证改清己美再采转更单风切打白教速花带安场身车例真务具万每目至达走积示"
)


class Strings:
    """Draws strings. chinese: files of fonts with Chinese characters; none: letters and digits alone. lengths: of the shortest and
    the longest one, in characters. Raises ValueError for fonts that lack characters, and for other lengths."""

    def __init__(self, chinese: Sequence[Path] = (), lengths: tuple[int, int] = (LENGTH, LENGTH)) -> None:
        fonts.check(chinese, HAN)
        if not 1 <= lengths[0] <= lengths[1] <= LENGTH:
            raise ValueError(
                f"strings of {lengths[0]} to {lengths[1]} characters: they have 1 to {LENGTH}, the shortest first"
            )
        self.latin, self.chinese, self.lengths = fonts.latin(), tuple(chinese), lengths

    def __call__(self, random: Random, unseen: bool, size: int) -> Scene:
        """One picture of `size` x `size` pixels."""
        han = bool(self.chinese) and random.random() < 0.5
        length = random.randint(*self.lengths)
        text = _string(random, HAN if han else LETTERS, length, unseen)
        font = random.choice(self.chinese if han else self.latin)
        picture = _drawn(random, text, font, unseen, size)
        zh = han or random.random() < 0.5
        question = "图里写的是什么？" if zh else "what is written in the image?"
        return Scene(picture, ((question, text),), {"text": text, "font": font.stem if font else "pillow"})


def _string(random: Random, alphabet: str, length: int, unseen: bool) -> str:
    """A string of the wanted part: one in sixteen belongs to tests. Those of one or two characters are in both."""
    while True:
        text = "".join(random.choice(alphabet) for _ in range(length))
        if length < 3:
            return text
        if (hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 16 == 0) == unseen:
            return text


def _drawn(random: Random, text: str, path: Path | None, unseen: bool, size: int) -> Image.Image:
    below = ground(random, unseen)
    ink: Colour = (random.randint(0, 90), random.randint(0, 90), random.randint(0, 90))
    if random.random() < 0.3:
        below, ink = ink, below
    wide = size * SCALE
    mask = Image.new("L", (wide, wide))  # how much ink lies where: one channel is turned and made small, not three
    probe = fonts.load(path, 64)
    left, _, right, _ = probe.getbbox(text)
    width = random.uniform(0.84, 0.94) * wide
    if len(text) < LENGTH:  # as large as of eight, or larger, up to the whole width: small print is learned last
        width *= (len(text) / LENGTH) ** random.random()
    pixels = max(8, int(64 * width / (right - left)))
    font = fonts.load(path, pixels)
    box = font.getbbox(text)
    if (high := box[3] - box[1]) > _HIGHEST * wide:  # a single letter is higher than it is wide
        font = fonts.load(path, max(8, int(pixels * _HIGHEST * wide / high)))
        box = font.getbbox(text)
    x = random.uniform(0.03 * wide, max(0.03 * wide, 0.97 * wide - (box[2] - box[0]))) - box[0]
    y = random.uniform(0.1, 0.9) * (wide - (box[3] - box[1])) - box[1]
    ImageDraw.Draw(mask).text((x, y), text, 255, font)
    turn = random.choice((-1, 1)) * random.uniform(2.0, 3.0) if unseen else random.uniform(-1.5, 1.5)
    small = mask.rotate(turn, Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.BOX)
    return Image.composite(Image.new("RGB", small.size, ink), Image.new("RGB", small.size, below), small)
