"""From the file of a small model to what drafts: checked against the large one before anything of it is loaded."""

import os
from dataclasses import dataclass

from gangpao.engine.config import ModelConfig
from gangpao.engine.layers.kept import KVType
from gangpao.engine.speculate.draft_model import DraftModel, check_config, check_vocabulary
from gangpao.engine.transformer import Transformer
from gangpao.formats.gguf import GGUF
from gangpao.formats.split_names import stem_of
from gangpao.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class SmallModel:
    """The open file of a model that can draft for another one."""

    name: str
    gguf: GGUF
    config: ModelConfig

    def load(self, context: int, kv_dtype: KVType, large_bytes: int) -> DraftModel:
        """The model itself. large_bytes: what a step of the large one reads of its weights."""
        model = Transformer.load(self.gguf)
        return DraftModel(self.name, model, context, kv_dtype, model.bytes_per_token / max(1, large_bytes))


def open_draft(file: str | os.PathLike[str] | GGUF, tokenizer: Tokenizer) -> SmallModel:
    """The file of a draft model, or one that is open already. Raises ValueError where it cannot draft for a model with this
    tokenizer, naming what differs, and ModelFileError for a damaged or unsupported file."""
    gguf = file if isinstance(file, GGUF) else GGUF.open(file)
    config = ModelConfig.from_gguf(gguf)
    name = stem_of(gguf.path.name)
    check_config(config, name)
    check_vocabulary(tokenizer, Tokenizer.from_gguf(gguf.metadata), name)
    return SmallModel(name, gguf, config)
