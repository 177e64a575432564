"""What `gangpao data build` is told: sources, cleaning, tokenizer, duplicates, evaluation sets, mixtures of the stages.

The idea: one TOML file describes a corpus completely, so that its content follows from the file and the inputs alone. A
source is a table under [sources], named by its key; a stage is a table of weights under [stages].

What it gives up: sources that need a program to be read; write their documents as JSON lines first.
"""

import codecs
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from gangpao.config import Frozen, PathText, load_toml

Format = Literal["auto", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt", "huggingface", "public", "generated"]
Form = Literal["auto", "text", "messages", "sharegpt", "alpaca", "prompt"]
TextKind = Literal["auto", "prose", "code"]
Kind = Literal["text", "arithmetic", "chat"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Clean(Frozen):
    """Which documents of a source are thrown away. 0 switches a limit off."""

    min_chars: int = Field(default=20, ge=0, description="Shorter documents are dropped.")
    max_chars: int = Field(default=0, ge=0, description="Longer documents are dropped.")
    max_damaged: float = Field(
        default=0.001, ge=0, le=1, description="Share of U+FFFD, private and unassigned characters."
    )
    max_symbols: float = Field(
        default=0.7, ge=0, le=1, description="Share of characters, spaces apart, that are no letter or digit."
    )
    max_repeated_lines: float = Field(
        default=0.5, ge=0, le=1, description="Share of the text in lines that occurred before."
    )
    min_compression: float = Field(
        default=0.07, ge=0, le=1, description="zlib size / size; below it a text repeats itself."
    )
    max_mean_line: int = Field(
        default=0, ge=0, description="Characters a line on average; for code, against generated files."
    )
    language_share: float = Field(
        default=0.1, ge=0, le=1, description="At least this share of the words in the source's language."
    )
    blocked: tuple[str, ...] = Field(
        default=(), description="A document that contains one of these phrases is dropped."
    )


class Source(Frozen):
    """Where documents come from. path: relative to `root`; * and ** match several files, read in order of name."""

    path: str = Field(
        default="", description="A file or pattern; the name of a data set for huggingface, of a text for public."
    )
    format: Format = Field(default="auto", description="auto goes by the file's suffix; compression always does.")
    form: Form = Field(default="auto", description="What a row holds: see forms.py; auto looks at the first rows.")
    text: str = Field(default="text", description="Key of a row's text.")
    messages: str = Field(default="", description="Key of a row's conversation; set it instead of text.")
    encoding: str = Field(default="utf-8", description="Of text and JSON files: gb18030, big5, utf-16, latin-1 ...")
    text_kind: TextKind = Field(
        default="auto",
        description="code: signs and spaces are content (programs, patches, tables); auto looks at each document.",
    )
    language: str = Field(
        default="", description="zh, en, ...: documents in another language are dropped. Empty: no check."
    )
    share: float = Field(default=1.0, gt=0, le=1, description="Share of the documents to read, chosen by their hash.")
    max_documents: int = Field(default=0, ge=0, description="Stop after this many documents.")
    max_bytes: int = Field(default=0, ge=0, description="Stop after this many bytes of text.")
    heldout: int | float = Field(
        default=0.01, ge=0, description="Kept out of training: a share (0.01) or a count (200)."
    )
    dedup: Literal["auto", "near", "exact", "none"] = Field(
        default="auto", description="auto: near for texts, exact for conversations, which share passages on purpose."
    )
    clean: Clean = Clean()
    files: str = Field(default="**/*.parquet", description="huggingface: which files of the data set.")
    revision: str = Field(default="main", description="huggingface: branch, tag or commit.")
    kind: Kind = Field(default="text", description="generated: what to write.")
    documents: int = Field(default=1000, ge=1, le=10_000_000, description="generated: how many.")
    seed: int = Field(default=0, ge=0, description="generated: another seed, other documents.")
    licence: str = Field(default="", description="Goes into the report.")

    @property
    def known_form(self) -> Form:
        """The form, as far as it is known without looking at rows (source.resolve does)."""
        if self.form != "auto":
            return self.form
        return "messages" if self.messages or (self.format == "generated" and self.kind == "chat") else "text"

    @property
    def supervised(self) -> bool:
        """Whether the documents are conversations."""
        return self.known_form != "text"

    @property
    def dedup_mode(self) -> str:
        """near, exact or none."""
        return self.dedup if self.dedup != "auto" else "exact" if self.supervised else "near"

    @model_validator(mode="after")
    def _complete(self) -> "Source":
        if self.format != "generated" and not self.path:
            raise ValueError("path is missing; only generated sources have none")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise ValueError(f"encoding {self.encoding!r:.40} is unknown; gb18030, big5, utf-16 are some") from error
        if isinstance(self.heldout, float) and self.heldout >= 1:
            raise ValueError(
                f"heldout = {self.heldout} is a share and must be below 1; write a whole number for a count"
            )
        return self


class TrainTokenizer(Frozen):
    """A byte-level BPE vocabulary trained on the cleaned documents."""

    vocab_size: int = Field(default=8192, ge=300, le=1 << 20, description="Pieces, special ones included.")
    bos: str = Field(default="<s>", min_length=1, description="In front of every document.")
    eos: str = Field(default="</s>", min_length=1, description="Behind every document.")
    special: tuple[str, ...] = Field(
        default=(), description="Further control pieces; those of ChatML are always there."
    )
    min_frequency: int = Field(default=2, ge=1, description="A pair must occur this often to be merged.")
    sample_bytes: int = Field(default=32_000_000, ge=1000, description="Train on about this much text, chosen by hash.")


class TokenizerConfig(Frozen):
    """A Hugging Face folder (`dir`), or settings to train a vocabulary with."""

    dir: PathText = Field(
        default="",
        description="A folder with tokenizer.json, tokenizer.model, or vocab.json and merges.txt; relative to this file.",
    )
    train: TrainTokenizer | None = Field(default=None, description="Train our own.")

    @model_validator(mode="after")
    def _one(self) -> "TokenizerConfig":
        if bool(self.dir) == (self.train is not None):
            raise ValueError("give either tokenizer.dir or a table tokenizer.train")
        return self


class Dedup(Frozen):
    """Near-duplicates: see dedup.py."""

    ngram: int = Field(default=5, ge=1, le=50, description="Words or Han characters in a run.")
    threshold: float = Field(
        default=0.8, gt=0, le=1, description="Jaccard similarity from which on a document is a duplicate."
    )
    bands: int = Field(default=20, ge=1, le=500, description="More bands find less similar pairs.")
    rows: int = Field(default=6, ge=1, le=50, description="More rows make a band pickier.")


class Decontaminate(Frozen):
    """Evaluation sets that must not be in training: see decontaminate.py."""

    files: tuple[str, ...] = Field(
        default=(), description="JSON lines, zst or parquet files or patterns, relative to root."
    )
    ngram: int = Field(default=13, ge=4, le=100, description="Words or Han characters in a run.")
    share: float = Field(
        default=0.5, gt=0, le=1, description="A document with this share of an item's runs is dropped,"
    )
    enough: int = Field(default=25, ge=1, description="or with this many of them.")
    max_items: int = Field(default=10, ge=1, description="Runs that are in more items than this do not count.")


class DataConfig(Frozen):
    """A corpus. Names of sources are letters, digits, dots, dashes and underscores."""

    root: PathText = Field(
        default="", description="Where paths of sources start, itself relative to this file. Empty: this file's folder."
    )
    sources: dict[str, Source]
    tokenizer: TokenizerConfig
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate = Decontaminate()
    stages: dict[str, dict[str, float]] = Field(
        default={}, description="Stage -> source -> weight. Empty: all, by their size."
    )

    @model_validator(mode="after")
    def _fits(self) -> "DataConfig":
        if not self.sources:
            raise ValueError("there are no sources; add at least one table [sources.NAME]")
        for name in (*self.sources, *self.stages):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the name {name!r:.80} must be letters, digits, dots, dashes, underscores, at most 64"
                )
        for stage, weights in self.stages.items():
            unknown = sorted(set(weights) - set(self.sources))
            if unknown:
                raise ValueError(f"stage {stage} names unknown sources: {', '.join(unknown)}")
            if not any(weight > 0 for weight in weights.values()) or not all(0 <= w < 1e12 for w in weights.values()):
                raise ValueError(f"stage {stage}: weights must be numbers from 0 up, at least one of them above 0")
        return self

    def root_dir(self) -> Path:
        """The folder that paths start from. Raises ValueError saying how to name it when it is not there."""
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            raise ValueError(
                f"root: {folder} is not a folder; write another one into the configuration. Text that everybody can "
                "have: gangpao data fetch"
            )
        return folder


def load_data_config(path: Path | str, overrides: Iterable[str] = ()) -> DataConfig:
    """A corpus description from TOML, with `a.b=c` overrides on top. Raises ValueError naming file and key.

    Paths in the file are relative to its folder, those in overrides to the current one; both come out absolute.
    """
    config = load_toml(Path(path), DataConfig, overrides)
    return config.model_copy(update={"root": config.root or os.path.abspath(Path(path).parent)})
