"""What became of the rows of a tuning run's files: counts, what was dropped or cut and why, lengths."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gangpao.page import Language
from gangpao.tune.data.config import Kind
from gangpao.tune.data.rows import Fault, Reason

MOST_NAMED = 1000  # rows that are named one by one; all are counted

# Reason -> what a row that was dropped for it is, in English and Chinese.
REASONS: dict[Reason, tuple[str, str]] = {
    "encoding": ("wrong encoding", "编码错误"),
    "json": ("no JSON", "不是 JSON"),
    "role": ("wrong role", "角色不对"),
    "unanswered": ("no answer", "没有回答"),
    "content": ("content that is no text", "内容不是文本"),
    "turns": ("no turns", "没有对话轮次"),
    "order": ("wrong order of turns", "轮次顺序不对"),
    "malformed": ("not in a form that is read", "格式不对"),
    "empty": ("empty question or answer", "问题或回答为空"),
    "template": ("refused by the chat template", "对话模板不接受"),
    "long": ("too long", "太长"),
    "duplicate": ("says the same as another row", "与另一行相同"),
    "heldout": ("its prompt is held out", "提问已留作验证"),
    "picture": ("a picture that cannot be used", "图片不能用"),
    "unwanted": ("not wanted by the objective", "目标用不上"),
}


class Named(NamedTuple):
    """A row that was dropped or cut: of which file, where it stands, the reason ("cut" where it stayed), what exactly."""

    file: str
    where: str
    reason: str
    detail: str


@dataclass(slots=True)
class FileReport:
    """One file's rows: read, kept for training, held out; dropped by reason; note: what its rows hold.

    marked: where a row's own text holds what looks like a mark of the model (<|im_end|>), and which; it is read as text.
    """

    name: str
    note: str = ""
    read: int = 0
    train: int = 0
    heldout: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    thoughts_left_out: int = 0
    marked: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """All files. lengths, labels: tokens of every sequence for training, and how many of them are learned; a pair is two.

    named: the first MOST_NAMED rows that were dropped or cut.
    """

    kind: Kind
    seq_len: int
    limit: int
    files: list[FileReport] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    lengths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    heldout_tokens: int = 0
    rows_per_epoch: int = 0
    notes: list[str] = field(default_factory=list)

    def drop(self, file: FileReport, where: str, fault: Fault) -> None:
        """Count a row that is not used, and name it."""
        file.dropped[fault.reason] += 1
        self._name(Named(file.name, where, fault.reason, fault.detail))

    def cut(self, file: FileReport, where: str, what: str) -> None:
        """Count a row of which a part is not used, and name it."""
        file.cut += 1
        self._name(Named(file.name, where, "cut", f"left out: {what}"))

    def _name(self, row: Named) -> None:
        if len(self.named) < MOST_NAMED:
            self.named.append(row)

    def _rows(self, file: FileReport, most: int, total: int, *, cut: bool, zh: bool) -> list[str]:
        """The first `most` rows that were dropped or cut, one a line, and how many more there are."""
        rows = [row for row in self.named if row.file == file.name and (row.reason == "cut") == cut][:most]
        more = total - len(rows)
        words = ("and {} more, which --html lists" if len(self.named) < MOST_NAMED else "and {} more", "另有 {} 行")
        return [
            *(f"  {row.where}: {row.detail}" for row in rows),
            *([f"  {words[zh].format(f'{more:,}')}"] if more else []),
        ]

    def _first(self, file: FileReport, *, cut: bool) -> str:
        rows = (row for row in self.named if row.file == file.name and (row.reason == "cut") == cut)
        return next((f"; {row.where}: {row.detail}" for row in rows), "")

    @property
    def dropped(self) -> Counter[str]:
        """Rows that are not used, by reason."""
        return sum((file.dropped for file in self.files), Counter())

    @property
    def num_cut(self) -> int:
        """Rows of which a part is not used."""
        return sum(file.cut for file in self.files)

    @property
    def tokens(self) -> int:
        """Of training, once through."""
        return int(self.lengths.sum())

    @property
    def label_tokens(self) -> int:
        """Those that are learned."""
        return int(self.labels.sum())

    def facts(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "kind": self.kind,
            "seq_len": self.seq_len,
            "limit": self.limit,
            "rows_per_epoch": self.rows_per_epoch,
            "tokens": self.tokens,
            "label_tokens": self.label_tokens,
            "heldout_tokens": self.heldout_tokens,
            "lengths": self.quantiles(),
            "files": [
                {
                    "name": f.name, "note": f.note, "read": f.read, "train": f.train, "heldout": f.heldout,
                    "dropped": dict(f.dropped), "cut": f.cut, "thoughts_left_out": f.thoughts_left_out,
                    "marked": len(f.marked),
                }
                for f in self.files
            ],
            "named": [row._asdict() for row in self.named],
            "notes": self.notes,
        }  # fmt: skip

    def quantiles(self) -> dict[str, int]:
        """Lengths of sequences: the shortest, the middle one, 9 of 10, 99 of 100, the longest."""
        if not len(self.lengths):
            return {}
        shares = {"shortest": 0, "half": 50, "90 %": 90, "99 %": 99, "longest": 100}
        found = np.percentile(self.lengths, list(shares.values()), method="higher")
        return {name: int(value) for name, value in zip(shares, found, strict=True)}

    def lines(self, language: Language = "en", *, rows: int = 0) -> list[str]:
        """What somebody should know, one sentence a line; nothing where all rows are used whole.

        rows: how many dropped and how many cut rows of a file have a line of their own; 0: the first one stands in the sentence.
        """
        zh = language == "zh"
        out = list(self.notes)
        for file in self.files:
            if file.dropped:
                counts = [f"{n:,} {words[zh]}" for reason, words in REASONS.items() if (n := file.dropped[reason])]
                sentence = (
                    "{name}: {dropped:,} of {read:,} rows are not used ({why})",
                    "{name}：{read:,} 行中有 {dropped:,} 行没有使用（{why}）",
                )
                why, dropped = ("，" if zh else ", ").join(counts), file.dropped.total()
                line = sentence[zh].format(name=file.name, dropped=dropped, read=file.read, why=why)
                out.append(line if rows else line + self._first(file, cut=False))
                out += self._rows(file, rows, dropped, cut=False, zh=zh) if rows else []
            if file.cut:
                sentence = "{name}: {cut:,} rows are cut", "{name}：{cut:,} 行被截断"
                line = sentence[zh].format(name=file.name, cut=file.cut)
                out.append(line if rows else line + self._first(file, cut=True))
                out += self._rows(file, rows, file.cut, cut=True, zh=zh) if rows else []
            if file.marked:
                sentence = (
                    "{name}: {count:,} rows say {mark} or the like in their own text; the model gets that as text, not as the mark",
                    "{name}：{count:,} 行的正文里有 {mark} 之类的标记；模型把它当作普通文字，不当作标记",
                )
                out.append(sentence[zh].format(name=file.name, count=len(file.marked), mark=file.marked[0][1]))
                out += [f"  {where}: {mark}" for where, mark in file.marked[:rows]]
            if file.thoughts_left_out:
                sentence = (
                    "{name}: {count:,} answers have a thought beside them that is left out: the model has no marks for thoughts",
                    "{name}：{count:,} 个回答旁边有思考，模型没有思考的标记，已去掉",
                )
                out.append(sentence[zh].format(name=file.name, count=file.thoughts_left_out))
        return out
