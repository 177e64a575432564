"""From the file of a small model or a draft head to what drafts: checked against the large one before anything of it is loaded."""

import os
from dataclasses import dataclass
from typing import Protocol

from gangpao.engine.config import ModelConfig
from gangpao.engine.layers.kept import KVType
from gangpao.engine.speculate.draft_model import DraftModel, check_config, check_vocabulary
from gangpao.engine.speculate.heads.config import HeadConfig, is_head
from gangpao.engine.speculate.heads.head import DraftHead
from gangpao.engine.speculate.heads.weights import load_head
from gangpao.engine.speculate.speculation import Draft
from gangpao.engine.transformer import CHUNK, Transformer
from gangpao.formats.gguf import GGUF
from gangpao.formats.split_names import stem_of
from gangpao.text.tokenizer import Tokenizer


class DraftFile(Protocol):
    """The open file of what can draft for a model. work: bytes of work space of a draft head, None for a small model."""

    @property
    def gguf(self) -> GGUF: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def work(self) -> int | None: ...

    def load(self, context: int, kv_dtype: KVType, model: Transformer, large: GGUF) -> Draft:
        """What drafts for `model`, which came from the file `large`."""


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A model that can draft for another one."""

    name: str
    gguf: GGUF
    config: ModelConfig

    @property
    def work(self) -> None:
        return None

    def load(self, context: int, kv_dtype: KVType, model: Transformer, large: GGUF) -> DraftModel:
        small = Transformer.load(self.gguf)
        return DraftModel(self.name, small, context, kv_dtype, small.bytes_per_token / max(1, model.bytes_per_token))


@dataclass(frozen=True, slots=True)
class HeadFile:
    """A draft head of one model."""

    gguf: GGUF
    head: HeadConfig

    @property
    def config(self) -> ModelConfig:
        return self.head.model

    @property
    def work(self) -> int:
        return self.head.work_bytes(CHUNK)

    def load(self, context: int, kv_dtype: KVType, model: Transformer, large: GGUF) -> DraftHead:
        weights = load_head(self.gguf, self.head, large, model.weights.head)
        block = weights.nbytes + (weights.output.nbytes if weights.output is model.weights.head else 0)
        head = DraftHead(self.head, weights, block / max(1, model.bytes_per_token))
        model.reader = head
        return head


def open_draft(file: str | os.PathLike[str] | GGUF, tokenizer: Tokenizer, large: ModelConfig) -> SmallModel | HeadFile:
    """The file of what drafts, or one that is open already. Raises ValueError where it cannot draft for a model with this
    tokenizer and this configuration, naming what differs, and ModelFileError for a damaged or unsupported file."""
    gguf = file if isinstance(file, GGUF) else GGUF.open(file)
    name = stem_of(gguf.path.name)
    if is_head(gguf):
        head = HeadConfig.from_gguf(gguf, name, large)
        check_vocabulary(tokenizer, Tokenizer.from_gguf(gguf.metadata), name)
        return HeadFile(gguf, head)
    config = ModelConfig.from_gguf(gguf)
    check_config(config, name)
    check_vocabulary(tokenizer, Tokenizer.from_gguf(gguf.metadata), name)
    return SmallModel(name, gguf, config)
