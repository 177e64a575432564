"""Tidy a text, and decide whether it is worth training on; every rejection has a name, so that they can be counted.

The tidying of prose is what no reader would see: line ends, control and zero-width characters, spaces at line ends (Markdown's
line break of two spaces among them), runs of blank lines, Unicode's several spellings of one letter (NFC; the Kelvin sign
becomes a K). In code all of these may be content: a patch has lines of one space, a test has a Kelvin sign. So code, and
what stands between Markdown's fences in prose, keeps everything but NUL, a byte order mark at the start, halves of
surrogate pairs, and CRLF where every line ends so. The rejections are cheap statistics of the whole document: length,
damaged characters, symbols, repeated lines, how well it compresses, language, blocked phrases. Each has its limit in
config.Clean; a limit that fits prose is wrong for tables and code, so a source may set its own.

What it gives up: judging what a text says. No model, no list of sites.
"""

import re
import unicodedata
import zlib

import numpy as np

from gangpao.data.cleaning.kinds import is_code
from gangpao.data.cleaning.language import share
from gangpao.data.cleaning.ngrams import SPACE, SYMBOL, classes
from gangpao.data.config import Clean, TextKind

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\u0080-\u009f\u200b\u2060\ufeff\ufff9-\ufffb]")
_FENCED = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[^\n]*$", re.M | re.S)
_BLANK_LINES = re.compile(r"\n{4,}")
_DAMAGED = re.compile("[\ufffd\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]")
_ZLIB_SAMPLE = 1 << 16
_ZLIB_LEAST = 512  # bytes; the ratio says nothing about shorter texts
_LINE_LEAST = 8  # characters; shorter lines (brackets, bullets) may repeat


def normalise(text: str, kind: TextKind = "auto") -> str:
    """The tidied text; lone surrogates become U+FFFD. Idempotent. kind: of the text, where it is known."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = text.replace("\0", "").lstrip("\ufeff")
    if is_code(text, kind):
        windows = "\r\r\n" not in text and text.count("\r\n") == text.count("\n")
        return text.replace("\r\n", "\n") if windows else text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "```" in (bare := _visible(text)) or "~~~" in bare:
        # A fence is one with what a reader does not see taken away.
        lines = [(line, _visible(line)) for line in text.split("\n")]
        text = "\n".join([seen if seen.startswith(("```", "~~~")) else line for line, seen in lines])
    out, at = [], 0
    for fenced in _FENCED.finditer(text):
        out += [_tidy_prose(text[at : fenced.start()]), fenced.group()]
        at = fenced.end()
    return "".join([*out, _tidy_prose(text[at:])]).strip("\n")


def _visible(text: str) -> str:
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text))


def _tidy_prose(text: str) -> str:
    text = "\n".join([line.rstrip() for line in _visible(text).split("\n")])
    return _BLANK_LINES.sub("\n\n\n", text)


def reject(text: str, options: Clean, language: str = "") -> str | None:
    """Why a tidied text is dropped, in one or two words, or None when it stays."""
    size = len(text)
    if not text.strip():
        return "empty"
    if size < options.min_chars:
        return "too short"
    if options.max_chars and size > options.max_chars:
        return "too long"
    if any(phrase in text for phrase in options.blocked):
        return "blocked phrase"
    if not text.isascii() and len(_DAMAGED.findall(text)) > options.max_damaged * size:
        return "damaged"
    if options.max_symbols and symbols(text) > options.max_symbols:
        return "symbols"
    if options.max_repeated_lines and repeated_lines(text) > options.max_repeated_lines:
        return "repeated lines"
    if options.min_compression and compression(text) < options.min_compression:
        return "repetitive"
    if options.max_mean_line and size > options.max_mean_line * (text.count("\n") + 1):
        return "long lines"
    if language and options.language_share and share(text, language) < options.language_share:
        return "language"
    return None


def symbols(text: str) -> float:
    """Share of the characters that are neither letters nor digits, spaces apart."""
    counts = np.bincount(classes(text), minlength=4)
    return float(counts[SYMBOL]) / max(1, len(text) - int(counts[SPACE]))


def repeated_lines(text: str) -> float:
    """Share of the text that lies in lines which occurred before."""
    seen: set[str] = set()
    total = again = 0
    for line in text.split("\n"):
        line = line.strip()
        if len(line) < _LINE_LEAST:
            continue
        total += len(line)
        if line in seen:
            again += len(line)
        seen.add(line)
    return again / total if total else 0.0


def compression(text: str) -> float:
    """Compressed size over size of the first 64 KiB; 1 for texts too short to say."""
    data = text[:_ZLIB_SAMPLE].encode()[:_ZLIB_SAMPLE]
    return len(zlib.compress(data, 1)) / len(data) if len(data) >= _ZLIB_LEAST else 1.0
