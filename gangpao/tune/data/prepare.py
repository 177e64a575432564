"""From files to batches for tuning: `prepare` reads, renders, splits and packs, and says what became of every row.

    files -> rows -> examples            rows.py     what they hold, where they stand, what is wrong with them
    examples -> ids and what is learned  render.py   through the chat template that chat uses
    ids -> training and held-out         here        by the hash of the prompt, so that no prompt is in both
    -> batches                           gangpao/data/tokens/pack.py for texts and conversations, batches.py for preferences

Everything follows from the files and the configuration alone: the same rows are held out and the order is the same on every
machine, however many ranks there are.

What it gives up: data that does not fit into memory as ids (four bytes a token and one for what is learned); such a corpus is built
with `gangpao data build`.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.data.sources.forms import Document, said
from gangpao.data.sources.preferences import Labelled, Pair
from gangpao.data.tokens.pack import Batch, Loader, Part, evaluation_batches, rows_in_epoch
from gangpao.data.tokens.shards import Shards
from gangpao.text.templates.chat import ChatTemplate, Masked
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.data.batches import Answers, PreferenceLoader, Preferences, preference_batches
from gangpao.tune.data.config import Kind, TuneData, TuneFile
from gangpao.tune.data.render import Renderer
from gangpao.tune.data.report import FileReport, Report
from gangpao.tune.data.rows import UNREAD, Example, Fault, Opened, converted, open_file, refuse_other_kinds
from gangpao.tune.pictures.table import PictureTable

MOST_SHOWN = 200  # training rows of a file whose places are remembered, to be shown


@dataclass(frozen=True, slots=True)
class Shown:
    """A training row as the model gets it: where it stands, its sequences with what is learned of them."""

    file: str
    where: str
    sequences: tuple[Masked, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Data ready for the loop. parts: training data by file; held: what is held out of each file, where that is anything.

    fingerprint: changes when anything changes that a batch could show.
    """

    kind: Kind
    seq_len: int
    seed: int
    parts: tuple[Part | Answers, ...]
    held: tuple[Part | Answers, ...]
    report: Report
    shown: tuple[Shown, ...]
    fingerprint: str

    @property
    def rows_per_epoch(self) -> int:
        """How many rows of `train().take(rows)` go by until the rows of a file of weight 1 were seen once: packed rows of seq_len
        tokens, or pairs, or answers with labels."""
        return self.report.rows_per_epoch

    def train(self, position: dict[str, Any] | None = None) -> Loader | PreferenceLoader:
        """A new source of batches, at its beginning or at a saved position (gangpao.train.loop.Stage.source)."""
        answers = [part for part in self.parts if isinstance(part, Answers)]
        texts = [part for part in self.parts if isinstance(part, Part)]
        loader = (
            PreferenceLoader(answers, seq_len=self.seq_len, seed=self.seed)
            if answers
            else Loader(texts, seq_len=self.seq_len, seed=self.seed)
        )
        if position is not None:
            loader.restore(position)
        return loader

    def heldout(self, rows: int) -> Iterator[Batch | Preferences]:
        """What is held out, once, in the order of the files; nothing where nothing is. rows: as in take."""
        for part in self.held:
            if isinstance(part, Answers):
                yield from preference_batches([part], self.seq_len, rows)
            else:
                yield from evaluation_batches(part.shards, self.seq_len, rows, whole=part.whole)


def prepare(
    config: TuneData,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | str | None,
    seq_len: int,
    *,
    kind: Kind | None = None,
    architecture: str = "",
    pictures: PictureTable | None = None,
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """Read all files of a configuration.

    chat_template: of the base; as text, or None, it is looked for as chat does (ChatTemplate.for_model, with `architecture`).
    kind: what the objective needs, in place of config.kind. pictures: of a model that sees; filled with the pictures of the data.
    progress: called with the number of rows read.

    Raises ValueError where a file is missing, damaged or of another kind, where nothing is left, and with `strict` at the first row
    that is not used whole.
    """
    if not config.files:
        raise ValueError('data: no files; name them, for example files = ["rows.jsonl"], or --data FILE')
    return _Preparation(config, tokenizer, chat_template, seq_len, kind, architecture, pictures, progress).run()


class _Store:
    """Sequences as one growing array, and for each example its place, its prompt's hash and how many sequences it is."""

    def __init__(self) -> None:
        self.ids, self.mask = array("i"), bytearray()
        self.lengths, self.bytes = array("q"), array("q")
        self.prompts, self.desirable = array("Q"), bytearray()
        self.places: list[str] = []

    def add(self, where: str, example: Example, sequences: Sequence[Masked], prompt: int) -> None:
        sides, good = _sides(example)
        for masked, side, desirable in zip(sequences, sides, good, strict=True):
            self.ids.extend(masked.ids)
            self.mask.extend(masked.mask)
            self.lengths.append(len(masked.ids))
            self.bytes.append(_learned_bytes(side))
            self.desirable.append(desirable)
        self.prompts.append(prompt)
        if len(self.places) < MOST_SHOWN:
            self.places.append(where)

    def shards(self, name: str, kept: npt.NDArray[np.bool_], unit: int, vocab_size: int, *, supervised: bool) -> Shards:
        """Those examples that are kept. kept: bool [examples]."""
        of_sequences = np.repeat(kept, unit)
        lengths = np.frombuffer(self.lengths, np.int64)
        of_tokens = np.repeat(of_sequences, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths[of_sequences])])
        ids = np.frombuffer(self.ids, np.intc)[of_tokens]
        mask = np.frombuffer(self.mask, np.uint8)[of_tokens] if supervised else None
        size = int(np.frombuffer(self.bytes, np.int64)[of_sequences].sum())
        return Shards.in_memory(name, ids, offsets, mask, num_bytes=size, vocab_size=vocab_size)


@dataclass(slots=True)
class _Read:
    """One file, read: what was kept of it, and its line of the report."""

    opened: Opened
    report: FileReport
    store: _Store = field(default_factory=_Store)


class _Preparation:
    """One run of `prepare`."""

    def __init__(
        self, config: TuneData, tokenizer: Tokenizer, chat_template: ChatTemplate | str | None, seq_len: int,
        kind: Kind | None, architecture: str, pictures: PictureTable | None, progress: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.config, self.tokenizer, self.seq_len = config, tokenizer, seq_len
        self.pictures = pictures
        self.root = Path(config.root)
        self.progress = progress or (lambda _: None)
        self.opened = [self._open(file) for file in config.files]
        self.opened_heldout = [self._open(file) for file in config.heldout_files]
        self.kind: Kind = kind or (self.opened[0].kind if config.kind == "auto" else config.kind)
        for opened in (*self.opened, *self.opened_heldout):
            refuse_other_kinds(opened, self.kind)
        self.unit = 2 if self.kind == "pairs" else 1
        template = chat_template if isinstance(chat_template, ChatTemplate) else None
        if template is None and self.kind != "texts":
            template = ChatTemplate.for_model(chat_template, tokenizer=tokenizer, architecture=architecture)  # type: ignore[arg-type]
        limit = min(config.max_length or seq_len, seq_len)
        self.render = Renderer(config, tokenizer, template, limit, pictures)
        self.report = Report(self.kind, seq_len, limit)
        self.seen: dict[bytes, str] = {}
        self.count = 0
        control = sorted(tokenizer.token_bytes(i).decode(errors="replace") for i in tokenizer.control_ids)
        marks = [
            re.escape(text) for text in reversed(control) if len(text) > 2
        ]  # the longest of those that begin alike first
        self.marks = re.compile("|".join(marks)) if marks else None

    def _open(self, file: TuneFile) -> Opened:
        try:
            return open_file(file, self.root)
        except ValueError as error:
            raise ValueError(f"data: {error}") from error

    def run(self) -> Prepared:
        apart = [self._read(opened) for opened in self.opened_heldout]
        held_prompts = {prompt for read in apart for prompt in read.store.prompts}
        reads = [self._read(opened, held_prompts) for opened in self.opened]
        chosen = np.zeros(0, np.uint64) if apart else self._held_out(reads)
        parts, held, shown = [], [], []
        for read in reads:
            out = np.isin(np.frombuffer(read.store.prompts, np.uint64), chosen)
            part = self._part(read, ~out)
            parts.append(part)
            shown += self._shown(read, ~out, part.shards)
            held += [self._part(read, out)] if out.any() else []
            read.report.train, read.report.heldout = int((~out).sum()), int(out.sum())
        for read in apart:
            everything = np.ones(len(read.store.prompts), bool)
            held.append(self._part(read, everything))
            read.report.heldout = len(everything)
        for read in reads:
            if not read.report.train:
                raise ValueError(
                    f"data: all {read.report.heldout} rows of {read.opened.name} are held out; lower "
                    f"heldout = {self.config.heldout}"
                )
        self._count(parts, held)
        prints = [[part.name, part.weight, part.shards.fingerprint] for part in (*parts, *held)]
        seen = [self.pictures.fingerprint] if self.pictures is not None and self.pictures.entries else []
        told = json.dumps([self.kind, self.seq_len, self.config.seed, prints, *seen])
        fingerprint = hashlib.sha256(told.encode()).hexdigest()
        return Prepared(
            self.kind, self.seq_len, self.config.seed, tuple(parts), tuple(held), self.report, tuple(shown), fingerprint
        )

    # --- rows

    def _read(self, opened: Opened, held: set[int] | frozenset[int] = frozenset()) -> _Read:
        read = _Read(opened, FileReport(opened.name, opened.note))
        self.report.files.append(read.report)
        for where, found in opened.examples():
            read.report.read += 1
            self.count += 1
            self.progress(self.count)
            examples = found if isinstance(found, Fault) else converted(found, self.kind)
            if isinstance(examples, Fault):
                self._drop(read, where, examples)
                continue
            for example in examples:
                self._keep(read, where, example, held)
        if not len(read.store.prompts):
            raise ValueError(self._why_nothing(read))
        return read

    def _keep(self, read: _Read, where: str, example: Example, held: set[int] | frozenset[int]) -> None:
        """Render an example and put it into the store, or say why not."""
        sides, good = _sides(example)
        try:
            prompt = _prompt_hash(sides[0], self._digests(sides[0], read.opened.folder))
        except ValueError as error:
            self._drop(read, where, Fault("picture", str(error)))
            return
        if prompt in held:
            self._drop(read, where, Fault("heldout", "its prompt is in a held-out file"))
            return
        rendered = self.render(example, read.opened.folder)
        if isinstance(rendered, Fault):
            self._drop(read, where, rendered)
            return
        if self.config.duplicates == "drop":
            content = repr([(masked.ids, masked.mask) for masked in rendered.sequences]) + repr(good)
            key = hashlib.blake2b(content.encode(), digest_size=16).digest()
            if (first := self.seen.setdefault(key, where)) != where:
                self._drop(read, where, Fault("duplicate", f"says the same as {first}"))
                return
        if cut := ", ".join(words for words in (read.opened.left, rendered.cut) if words):
            self.report.cut(read.report, where, cut)
            self._stop_if_strict(where, f"was cut: {cut}")
        read.report.thoughts_left_out += rendered.thoughts_left_out
        if self.marks is not None and (mark := self.marks.search("\n".join(side.contents() for side in sides))):
            read.report.marked.append((where, mark[0]))
        read.store.add(where, example, rendered.sequences, prompt)

    def _digests(self, document: Document, folder: Path) -> list[bytes]:
        """Of its pictures, by what is in them. Raises ValueError for one that is none."""
        table = self.pictures
        return (
            [table.entries[table.add(image, folder)].digest for image in document.images] if table is not None else []
        )

    def _drop(self, read: _Read, where: str, fault: Fault) -> None:
        self.report.drop(read.report, where, fault)
        if fault.reason not in ("heldout", "unwanted"):
            self._stop_if_strict(where, fault.detail)

    def _stop_if_strict(self, where: str, what: str) -> None:
        if self.config.strict:
            raise ValueError(f"{where}: {what} (strict stops at the first row that is not used whole)")

    def _why_nothing(self, read: _Read) -> str:
        dropped, name = read.report.dropped, read.opened.name
        if not read.report.read:
            return f"data: {name} has no rows"
        if sum(dropped[reason] for reason in UNREAD) == read.report.read:
            first = next(row for row in self.report.named if row.file == name)
            return f"data: {name}: {read.opened.explain(read.report.read)} ({first.where}: {first.detail})"
        why = next(line for line in self.report.lines() if line.startswith(f"{name}: "))
        ways = "take other rows"
        if dropped["long"]:
            ways = 'raise seq_len or max_length, or set too_long = "cut"'
        return f"data: nothing of it is left: {why}; {ways}"

    # --- what is held out

    def _held_out(self, reads: Sequence[_Read]) -> npt.NDArray[np.uint64]:
        """Hashes of the prompts that are held out: those with the smallest, so that a file that grows keeps what it held out, or
        nearly."""
        wanted = self.config.heldout
        prompts = np.unique(np.concatenate([np.frombuffer(read.store.prompts, np.uint64) for read in reads]))
        if not wanted:
            return prompts[:0]
        if len(prompts) < 2:
            self.report.notes.append("nothing is held out: all rows have the same prompt")
            return prompts[:0]
        count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(prompts)))
        if count >= len(prompts):
            raise ValueError(f"data: heldout = {wanted} is all of the {len(prompts)} prompts; lower it")
        return prompts[:count]

    def _part(self, read: _Read, kept: npt.NDArray[np.bool_]) -> Part | Answers:
        preferences = self.kind in ("pairs", "labelled")
        supervised = self.kind != "texts"
        name, weight, store = read.opened.name, read.opened.weight, read.store
        ids = self.tokenizer.vocab_size + (self.pictures.rows if self.pictures is not None else 0)
        shards = store.shards(name, kept, self.unit, ids, supervised=supervised)
        if preferences:
            good = np.frombuffer(store.desirable, np.uint8)[np.repeat(kept, self.unit)] != 0
            return Answers(name, shards, good, self.unit, weight * max(1, len(good)))
        return Part(name, shards, weight * max(1, shards.num_tokens), whole=supervised)

    def _shown(self, read: _Read, kept: npt.NDArray[np.bool_], shards: Shards) -> list[Shown]:
        out = []
        places = [where for where, stays in zip(read.store.places, kept.tolist(), strict=False) if stays]
        for i, where in enumerate(places):
            documents = range(i * self.unit, (i + 1) * self.unit)
            sequences = tuple(Masked(shards.document(d).tolist(), shards.document_mask(d).tolist()) for d in documents)
            out.append(Shown(read.opened.name, where, sequences))
        return out

    def _count(self, parts: Sequence[Part | Answers], held: Sequence[Part | Answers]) -> None:
        report, rows = self.report, 0.0
        report.lengths = np.concatenate([np.diff(part.shards.offsets.astype(np.int64)) for part in parts])
        learned = []
        for part, opened in zip(parts, self.opened, strict=True):
            shards = part.shards
            mask = np.ones(shards.num_tokens, np.int64) if shards.mask is None else shards.mask.astype(np.int64)
            mask[shards.offsets[:-1].astype(np.int64)] = 0  # nothing stands in front of a document's first token
            learned.append(np.add.reduceat(mask, shards.offsets[:-1].astype(np.int64)))
            units = part.units if isinstance(part, Answers) else rows_in_epoch(part, self.seq_len, self.config.seed)
            rows += opened.weight * units
        report.labels = np.concatenate(learned)
        report.heldout_tokens = sum(part.shards.num_tokens for part in held)
        report.rows_per_epoch = max(1, round(rows))


def _sides(example: Example) -> tuple[list[Document], list[bool]]:
    """The documents of an example, and whether each is a good answer."""
    if isinstance(example, Pair):
        return [example.chosen, example.rejected], [True, False]
    if isinstance(example, Labelled):
        return [example.document], [example.desirable]
    return [example], [True]


def _learned_bytes(document: Document) -> int:
    """UTF-8 bytes of what is learned: the answers, or the text."""
    if not document.messages:
        return len(document.text.encode())
    return sum(len(said(turn).encode()) for turn in document.messages if turn["role"] == "assistant")


def _prompt_hash(document: Document, images: Sequence[bytes] = ()) -> int:
    """64 bits of what a conversation begins with, up to its first answer and without its system turn, and of its pictures; of a
    text, all of it. Signs of upper case and white space make no other prompt."""
    said_first = [document.text]
    if document.messages:
        roles = [turn["role"] for turn in document.messages]
        first = document.messages[: roles.index("assistant")]
        said_first = [turn["content"] for turn in first if turn["role"] != "system"] or [said(document.messages[0])]
        said_first += [image.hex() for image in images]
    text = " ".join("\n".join(said_first).casefold().split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
