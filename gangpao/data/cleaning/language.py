"""Which language a text is in, from its script and its commonest words; enough to notice what a source should not hold.

Scripts decide for Chinese, Japanese, Korean, Russian, Greek, Arabic, Hebrew, Thai and Hindi. For Latin script the words
that every sentence needs (the, und, que ...) are counted; they make up a quarter to a half of ordinary prose and hardly
occur in other languages. Shares are of words and single Han characters, the latter counted by half because two of
them make about one word.

What it gives up: short texts, closely related languages, languages outside the tables ("und", undetermined).
"""

import re
from collections import defaultdict
from typing import NamedTuple

SAMPLE_CHARS = 20_000

_SCRIPTS = {
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "ja": "\u3041-\u30ff",
    "ko": "\u1100-\u11ff\uac00-\ud7af",
    "ru": "\u0400-\u052f",
    "el": "\u0370-\u03ff",
    "ar": "\u0600-\u06ff",
    "he": "\u0590-\u05ff",
    "th": "\u0e00-\u0e7f",
    "hi": "\u0900-\u097f",
}
_RUNS = {name: re.compile(f"[{chars}]+") for name, chars in _SCRIPTS.items()}
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+(?:'[A-Za-z]+)?")

# Words of one language only, as far as that is possible: "in", "de" or "a" belong to too many.
_COMMON = {
    "en": "the of and to is that for it was with as are this be by from or have not they which you an has been will their "
    "would there what about when can your if more we he his she her but at on",
    "de": "der die und das ist nicht ein eine den von zu mit sich auf dem für im auch als wird sind einer werden bei oder",
    "fr": "le les des est une dans que pour pas qui sur avec sont du au ce cette par plus nous vous il elle être ou mais",
    "es": "el los las una por con para es del como más pero sus fue está este esta son también entre cuando muy sin lo",
    "pt": "uma não para por mais como mas foi ao das dos são também pelo pela ser está você isso seu sua",
    "it": "il di che è per una sono con non della gli nel alla anche dei questo più le delle come ma ha si lo",
    "nl": "het een van en dat niet zijn voor met aan ook maar naar worden wordt deze door bij nog wel dit heeft op te",
}
_WORDS = {name: frozenset(words.split()) for name, words in _COMMON.items()}
_ENOUGH = 0.08  # of the words; code comments in English reach it, identifiers alone do not


class Guess(NamedTuple):
    """The likeliest language ("und" when none is clear), and the share of each of the text's words."""

    language: str
    shares: dict[str, float]


def share(text: str, language: str) -> float:
    """The share of `language` in what is in any known language: code and formulas in a manual count for nobody.

    A text of hardly anything known has 1 for a language in Latin script: names and commands could be in that.
    """
    shares = identify(text).shares
    known = 1.0 - shares.get("und", 0.0)
    if known < _ENOUGH and language in _WORDS:
        return 1.0
    return shares.get(language, 0.0) / known if known > 0 else 0.0


def identify(text: str) -> Guess:
    """Look at the first 20,000 characters."""
    text = text[:SAMPLE_CHARS]
    counts: defaultdict[str, float] = defaultdict(float)
    for name, pattern in _RUNS.items():
        if name == "han" or not text.isascii():
            lengths = [len(run) for run in pattern.findall(text)]
            # Scripts with spaces are counted in words; Han, Kana and Thai in characters, two of which make a word.
            counts[name] = sum(lengths) / 2 if name in ("han", "ja", "th") else len(lengths)
    latin = [word.lower() for word in _LATIN.findall(text)]
    common = {name: sum(word in words for word in latin) for name, words in _WORDS.items()}
    best = max(common, key=lambda name: common[name])
    counts[best if latin and common[best] >= _ENOUGH * len(latin) else "und"] += len(latin)
    # Japanese text is Han and Kana together; a few Kana in a Chinese text are a quotation.
    han = counts.pop("han")
    counts["ja" if counts["ja"] > 0.15 * han else "zh"] += han
    total = sum(counts.values())
    shares = {name: count / total for name, count in counts.items() if count}
    top = max(shares, key=lambda name: shares[name], default="und")
    return Guess(top, shares)
