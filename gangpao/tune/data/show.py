"""What a tuning run will see, for a person: rendered rows with what is learned in colour, lengths, what was dropped or cut and why.

On a terminal what is learned is green and the rest is grey; in a file or a pipe it stands between » and «. The page says the same
and more of it, needs no network, and is in English or Chinese.
"""

import html
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gangpao.atomic import new_file
from gangpao.data.command import stretches, table
from gangpao.page import STYLE, Language, frame, html_table
from gangpao.text.templates.chat import Masked
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.data.prepare import Prepared, Shown
from gangpao.tune.data.report import REASONS, Report
from gangpao.tune.data.rows import Reason
from gangpao.units import plain

_GREEN, _GREY, _END = "\x1b[32m", "\x1b[2m", "\x1b[0m"
_MOST_CHARS = 4000  # of one row on a terminal
_MOST_ROWS = 20  # dropped or cut rows of a file that are named on a terminal
_BINS, _BAR = 12, 40
_PAGE_STYLE = STYLE + (
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#8881;padding:.7em;border-radius:.3em;color:#888}"
    "pre b{font-weight:normal;color:light-dark(#063,#7e9);background:#2a61}svg{max-width:100%}"
)

# English and Chinese.
_WORDS: dict[str, tuple[str, str]] = {
    "title": ("Data for tuning", "微调数据"),
    "file": ("file", "文件"),
    "read": ("rows", "行数"),
    "train": ("training", "训练"),
    "heldout": ("held out", "验证"),
    "dropped": ("dropped", "丢弃"),
    "cut": ("cut", "截断"),
    "holds": ("holds", "内容"),
    "rows": ("Rows as the model gets them", "模型看到的样子"),
    "legend": ("Green is learned, grey is only read.", "绿色要学，灰色只读。"),
    "lengths": ("Tokens of a row", "每行的词元数"),
    "named": ("Rows that are dropped or cut", "丢弃或截断的行"),
    "where": ("where", "位置"),
    "why": ("why", "原因"),
    "what": ("what", "详情"),
    "none": ("None: every row is used whole.", "没有：每一行都完整使用。"),
    "chosen": ("chosen", "较好的回答"),
    "rejected": ("rejected", "较差的回答"),
    "more": ("and {} more, which are only counted", "另有 {} 行，只计数"),
    "totals": (
        "{rows:,} rows of {seq_len:,} tokens an epoch; {tokens:,} tokens, {labels:,} are learned; {held:,} are held out",
        "每轮 {rows:,} 行，每行 {seq_len:,} 个词元；共 {tokens:,} 个词元，其中 {labels:,} 个要学；{held:,} 个词元留作验证",
    ),
    "units": (
        "{rows:,} comparisons an epoch; {tokens:,} tokens, {labels:,} in answers; {held:,} are held out",
        "每轮 {rows:,} 个比较；共 {tokens:,} 个词元，其中回答 {labels:,} 个；{held:,} 个词元留作验证",
    ),
    "cut reason": ("cut", "截断"),
}


def show(
    prepared: Prepared,
    tokenizer: Tokenizer,
    *,
    rows: int = 5,
    language: Language = "en",
    color: bool = False,
    page: Path | None = None,
) -> str:
    """What to print about prepared data. rows: how many are shown. color: for a terminal (gangpao.units.colors says whether).

    page: where an HTML page of the same, with ten times as many rows, is written.
    """
    if page is not None:
        with new_file(page) as temporary:
            temporary.write_text(data_page(prepared, tokenizer, rows=10 * rows, language=language), encoding="utf-8")
    report, word = prepared.report, _words(language)
    lines = [_totals(report, language), "", *table(_files(report, language), left=6)]
    for shown in _spread(prepared.shown, rows):
        lines += ["", f"--- {shown.where}"]
        for name, pieces in _pieces(shown, tokenizer):
            lines += [f"[{word[name]}]"] if name else []
            lines.append(_on_a_terminal(pieces, color))
    lines += ["", word["lengths"], *_bars(report)]
    notes = report.lines(language, rows=_MOST_ROWS)
    lines += ["", *notes] if notes else []
    return "\n".join(lines)


def facts(prepared: Prepared, tokenizer: Tokenizer, rows: int = 5) -> dict[str, Any]:
    """The same as JSON."""
    shown = [
        {
            "where": one.where,
            "sequences": [[{"text": t, "learned": m} for t, m in pieces] for _, pieces in _pieces(one, tokenizer)],
        }
        for one in _spread(prepared.shown, rows)
    ]
    return {"fingerprint": prepared.fingerprint, **prepared.report.facts(), "rows": shown}


def data_page(prepared: Prepared, tokenizer: Tokenizer, *, rows: int = 50, language: Language = "en") -> str:
    """A page of its own in HTML."""
    report, word = prepared.report, _words(language)
    body = [
        f"<h1>{word['title']}</h1>",
        f"<p>{html.escape(_totals(report, language))}</p>",
        html_table(_files(report, language)),
    ]
    body += [f"<p>{html.escape(note)}</p>" for note in report.notes]
    body += [f"<h2>{word['lengths']}</h2>", _histogram(report)]
    body.append(f"<h2>{word['named']}</h2>")
    if report.named:
        head = [word["where"], word["why"], word["what"]]
        body.append(
            html_table(
                [head, *([row.where, _reason(row.reason, language), row.detail] for row in report.named)], "words"
            )
        )
        more = report.dropped.total() + report.num_cut - len(report.named)
        body += [f"<p>{word['more'].format(f'{more:,}')}</p>"] if more else []
    else:
        body.append(f"<p>{word['none']}</p>")
    body += [f"<h2>{word['rows']}</h2>", f"<p>{word['legend']}</p>"]
    for shown in _spread(prepared.shown, rows):
        body.append(f"<h3>{html.escape(shown.where)}</h3>")
        for name, pieces in _pieces(shown, tokenizer):
            marked = "".join(f"<b>{html.escape(text)}</b>" if mine else html.escape(text) for text, mine in pieces)
            body += [f"<p>{word[name]}</p>"] if name else []
            body.append(f"<pre>{marked}</pre>")
    return frame(word["title"], language, "\n".join(body), _PAGE_STYLE)


def _words(language: Language) -> dict[str, str]:
    return {key: words[language == "zh"] for key, words in _WORDS.items()}


def _reason(reason: str, language: Language) -> str:
    words = _WORDS["cut reason"] if reason == "cut" else REASONS[_known(reason)]
    return words[language == "zh"]


def _known(reason: str) -> Reason:
    return next(known for known in REASONS if known == reason)


def _totals(report: Report, language: Language) -> str:
    words = _words(language)["units" if report.kind in ("pairs", "labelled") else "totals"]
    return words.format(
        rows=report.rows_per_epoch, seq_len=report.seq_len, tokens=report.tokens, labels=report.label_tokens,
        held=report.heldout_tokens,
    )  # fmt: skip


def _files(report: Report, language: Language) -> list[list[str]]:
    """A line a file, the head first."""
    word = _words(language)
    rows = [[word[key] for key in ("file", "read", "train", "heldout", "dropped", "cut", "holds")]]
    for file in report.files:
        counts = (file.read, file.train, file.heldout, file.dropped.total(), file.cut)
        rows.append([file.name, *(f"{count:,}" for count in counts), file.note])
    return rows


def _spread(shown: Sequence[Shown], count: int) -> list[Shown]:
    """`count` of them, evenly from the beginning to the end."""
    count = min(count, len(shown))
    return [shown[i * len(shown) // count] for i in range(count)]


def _pieces(shown: Shown, tokenizer: Tokenizer) -> list[tuple[str, list[tuple[str, bool]]]]:
    """What a row is called ("" where it has one sequence) and its text in pieces."""
    names = ("chosen", "rejected") if len(shown.sequences) == 2 else ("",)
    return [(name, _stretches(tokenizer, masked)) for name, masked in zip(names, shown.sequences, strict=True)]


def _stretches(tokenizer: Tokenizer, masked: Masked) -> list[tuple[str, bool]]:
    """Text in pieces; a picture is said by how many rows it is."""
    out: list[tuple[str, bool]] = []
    for picture, run in itertools.groupby(zip(*masked, strict=True), lambda one: one[0] >= tokenizer.vocab_size):
        ids, mask = zip(*run, strict=True)
        out += [(f"[{len(ids)} rows of pictures]", False)] if picture else stretches(tokenizer, list(ids), list(mask))
    return out


def _on_a_terminal(pieces: Sequence[tuple[str, bool]], color: bool) -> str:
    out, left = [], _MOST_CHARS
    for text, learned in pieces:
        part = plain(text[:left])
        left -= len(part)
        if color:
            # Colours end with the line, else a pager or a narrow terminal paints the margin.
            code = _GREEN if learned else _GREY
            out.append("\n".join(f"{code}{line}{_END}" if line else "" for line in part.split("\n")))
        else:
            out.append(f"»{part}«" if learned else part)
        if left <= 0:
            out.append(" ...")
            break
    return "".join(out)


def _binned(report: Report) -> list[tuple[int, int, int]]:
    """(from, to, how many sequences) in steps of a round number of tokens."""
    if not len(report.lengths):
        return []
    longest = int(report.lengths.max())
    step = max(1, math.ceil(longest / _BINS))
    scale = 10 ** max(0, len(str(step)) - 1)
    step = next(size * scale for size in (1, 2, 5, 10) if size * scale >= step)
    bins = range(int(report.lengths.min()) // step * step, longest + 1, step)
    return [(a, a + step - 1, int(((report.lengths >= a) & (report.lengths < a + step)).sum())) for a in bins]


def _bars(report: Report) -> list[str]:
    """The histogram as lines of text."""
    bins = _binned(report)
    most = max((count for _, _, count in bins), default=1)
    wide = max((len(f"{b:,}") for _, b, _ in bins), default=1)
    return [f"{a:>{wide},} - {b:>{wide},}  {'█' * math.ceil(_BAR * count / most)} {count:,}" for a, b, count in bins]


def _histogram(report: Report) -> str:
    """The histogram as a picture of its own."""
    bins = _binned(report)
    most = max((count for _, _, count in bins), default=1)
    parts = []
    for i, (a, b, count) in enumerate(bins):
        y = 22 * i
        parts.append(f'<text x="110" y="{y + 15}" text-anchor="end">{a:,} - {b:,}</text>')
        parts.append(f'<rect x="120" y="{y + 3}" width="{500 * count / most:.1f}" height="16" fill="#2a6"/>')
        parts.append(f'<text x="{125 + 500 * count / most:.1f}" y="{y + 15}">{count:,}</text>')
    size = f'width="700" height="{22 * len(bins)}" viewBox="0 0 700 {22 * len(bins)}"'
    return f'<svg {size} font-size="13" fill="currentColor" role="img">{"".join(parts)}</svg>'
