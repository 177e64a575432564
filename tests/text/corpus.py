"""Lines to tokenize: Chinese, English, code, emoji, broken and odd text, mixed at random from a seed.

Everything is written here or drawn from Unicode; nothing is copied from a corpus.
"""

import random
from collections.abc import Callable

_HAN = (
    "今天天气很好我们去公园散步吧小模型语言训练数据泰山黄山海拔多少米钢炮便宜电脑"
    "回答问题写一段代码的了是，。！？；：“”‘’（）《》、…—"
)
_WORDS = (
    "the", "quick", "model", "answers", "a", "question", "about", "Mountains", "isn't", "it's", "we'll", "they've", "I'm",
    "HE'S", "don'T", "code", "runs", "FAST", "3", "times", "in", "2024", "naïve", "café", "Zürich", "straße",
    "over-the-counter", "e.g.", "U.S.A.", "won’t",
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x**2  # 注释\n",
    "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\r\n",
    '<div class="a">&nbsp;</div>',
    "SELECT * FROM t WHERE a='b';",
    'x = [1,2,3]; print(f"{x!r}")',
    "https://example.org/a?b=c&d=%20",
    "\\frac{a}{b}",
    "#!/bin/sh\necho $HOME/.x",
    "a != b ===> c::d->e /* f */",
    "```python\n",
    "0x1F 1e-5 1,234,567.89",
)
_EMOJI = (
    "😀", "👨‍👩‍👧‍👦", "🇨🇳", "🇫🇷🇩🇪", "👍🏽", "🏳️‍🌈", "❤️", "1️⃣", "🧑🏿‍🚀", "☺", "🀄", "🫠", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
)  # fmt: skip
_ODD = (
    "\ufffd", "\x00", "\x01\x02", "\x7f", "\x85", "\xa0", "\u3000", "\u2003", "\u200b", "\u200d", "\ufeff", "\u202e",
    "e\u0301", "a\u0308\u0323", "ก\u0e33", "नमस्ते", "한국어", "ひらがなカタカナ", "Привет", "Ελληνικά", "עברית", "العربية", "ǅ", "ſ",
    "'ſ", "ß", "ﬁ", "Ⅷ", "½", "²", "٣", "一二三", "𝒜𝟘", "𠀀𠮷", "\U000e0001", "\ue000", "\U0010ffff", "\u1680", "\u2028",
    "\u2029", "\x0b", "\x0c", "\x1c", "\x1f", "'S", "'LL", "'RE ",
)  # fmt: skip
_SPACE = (" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n ", "    ", "\n\n\n\n", " \t ")
_REPEATED = ("a", "ab", " ", "\n", "=", "-", "。", "哈", "0", "12", "😀", "é", "\t", "_", "!", "aA", "\u0301")
SPECIAL_LOOKING = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "<unk>", "<eos>", "<bos>", "<start_of_turn>", "<0x0A>", "<|",
    "|>", "<tool_call>", "</tool_call>", "<unused5>", "[PAD151665]", "▁", "▁▁", "Ġ", "<reponame>", "[multimodal]",
)  # fmt: skip
_RANGES = ((0x20, 0x250), (0x250, 0x3000), (0x3000, 0xA000), (0xE000, 0x11000), (0x1F000, 0x20000), (0x20000, 0x2A000))


def lines(count: int, seed: int = 0) -> list[str]:
    """`count` lines, the same for the same seed."""
    r = random.Random(seed)

    def scattered() -> str:
        return "".join(chr(r.randrange(*r.choice(_RANGES))) for _ in range(r.randint(1, 6)))

    kinds: list[tuple[int, Callable[[], str]]] = [
        (10, lambda: "".join(r.choices(_HAN, k=r.randint(1, 25)))),
        (12, lambda: " ".join(r.choices(_WORDS, k=r.randint(1, 10)))),
        (6, lambda: r.choice(_CODE)),
        (5, lambda: r.choice(_EMOJI) * r.randint(1, 2)),
        (5, lambda: r.choice(_ODD)),
        (14, lambda: r.choice(_SPACE)),
        (1, lambda: r.choice(_REPEATED) * r.choice((3, 7, 16, 33, 70, 200))),
        (4, lambda: str(r.randrange(10 ** r.randint(1, 12)))),
        (3, lambda: r.choice(SPECIAL_LOOKING)),
        (2, scattered),
    ]
    weights, makers = zip(*kinds, strict=True)
    return ["".join(make() for make in r.choices(makers, weights, k=r.randint(1, 14))) for _ in range(count)]
