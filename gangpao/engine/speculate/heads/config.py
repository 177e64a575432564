"""What the file of a draft head says, checked against the large model that it is to draft for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gangpao.engine.config import ModelConfig
from gangpao.formats.architectures import (
    BLOCK,
    CAUSAL,
    FROM_ANCHOR,
    MARKOV,
    MASK_TOKEN,
    SECTIONS,
    TARGET_LAYERS,
    WINDOW,
    WINDOW_PATTERN,
    heads_by_gguf_name,
)
from gangpao.formats.gguf import GGUF, ModelFileError

USUAL_BLOCK = 16  # of a file that does not say it
LONGEST_BLOCK = 64
# Keys of further steps that llama.cpp's heads may have, with the values that say there is none.
_STEPS: tuple[tuple[str, int | float | str], ...] = (
    ("hyper_connection.count", 0),
    ("attention.scale", 0.0),
    ("attention.value_scale", 0.0),
    ("hidden_activation", "silu"),
    ("selector_top_k", 0),
    ("conv_kernel_size", 0),
)


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """A head. model: its layers as those of a model with the large one's tokens. reads: the layers of the large model whose inputs
    it reads, by number; the number of layers for what the last norm reads. block: the last token and mask tokens, computed
    together; from_anchor: whether the row of the last token says a guess, too. causal: a token of a block does not see those
    behind it. embedding_scale: of the tokens of a block. markov: the rank of its Markov head, 0 without one. windows: of
    each layer, positions in front of a token that it sees, itself among them; 0: all."""

    name: str
    model: ModelConfig
    reads: tuple[int, ...]
    block: int
    mask: int
    from_anchor: bool
    causal: bool
    embedding_scale: float
    markov: int
    windows: tuple[int, ...]

    @classmethod
    def from_gguf(cls, gguf: GGUF, name: str, large: ModelConfig) -> HeadConfig:
        """Raises ModelFileError for a file that is damaged or of a kind that is not computed, and ValueError for a head of another
        model, saying what differs."""
        model = ModelConfig.from_gguf(gguf, head_of=large)
        arch = model.architecture
        get = {int: gguf.get_int, float: gguf.get_float, str: gguf.get_str}
        for key, none in _STEPS:
            if (found := get[type(none)](f"{arch}.{key}", none)) != none:
                raise ModelFileError(
                    f"{gguf.path}: {arch}.{key} is {found!r:.40}: this kind of draft head is not supported"
                )
        if model.hidden_size != large.hidden_size:
            raise ValueError(
                f"{name} cannot draft for this model: it reads hidden states of {model.hidden_size} numbers, and this model's have "
                f"{large.hidden_size}. A draft head belongs to the model that it was trained for"
            )
        info = gguf.tensors.get(MARKOV)
        rank = 0 if info is None else info.shape[-1]
        return cls(
            name, model, _layers(gguf, arch, name, large), _block(gguf, arch), _mask(gguf, large),
            # Without a Markov head the row of the last token says nothing: it was trained to give back that token.
            from_anchor=rank > 0 and gguf.get_bool(f"{arch}.{FROM_ANCHOR}", True),
            causal=gguf.get_bool(f"{arch}.{CAUSAL}", False),
            embedding_scale=gguf.get_float(f"{arch}.embedding_scale", 1.0), markov=rank,
            windows=_windows(gguf, arch, model.num_hidden_layers),
        )  # fmt: skip

    def work_bytes(self, chunk: int) -> int:
        """Bytes of work space, with steps of the large model of `chunk` rows at most: floats, and int8 of what products read."""
        m = self.model
        width, q_rows = m.hidden_size, m.num_attention_heads * m.head_dim
        qkv = q_rows + 2 * m.num_key_value_heads * m.head_dim
        states = len(self.reads) * width
        of_step = 4 * (states + width + qkv + m.rope_dim) + states + width
        of_block = 4 * (2 * width + qkv + 2 * q_rows + 3 * m.intermediate_size + m.vocab_size)
        return chunk * of_step + self.block * of_block + 4 * m.vocab_size

    @property
    def guesses(self) -> int:
        """The most of a block."""
        return self.block if self.from_anchor else self.block - 1


def is_head(gguf: GGUF) -> bool:
    """Whether a file is a draft head."""
    return gguf.metadata.get("general.architecture") in heads_by_gguf_name()


def _layers(gguf: GGUF, arch: str, name: str, large: ModelConfig) -> tuple[int, ...]:
    key = f"{arch}.{TARGET_LAYERS}"
    found = gguf.metadata.get(key)
    if not (
        isinstance(found, np.ndarray) and found.dtype.kind in "iu" and 0 < len(found) <= large.num_hidden_layers + 1
    ):
        if isinstance(found, np.ndarray) and found.dtype.kind in "iu" and len(found):
            raise ValueError(f"{name} cannot draft for this model: it reads {len(found)} layers, and there are fewer")
        raise ModelFileError(f"{gguf.path}: {key} must be numbers of layers; the file is incomplete, convert it again")
    layers = tuple(int(i) for i in found)
    wrong = [i for i in layers if not 0 <= i <= large.num_hidden_layers]
    if wrong:
        raise ValueError(
            f"{name} cannot draft for this model: it reads what goes into layer {wrong[0]}, and this model has "
            f"{large.num_hidden_layers}. A draft head belongs to the model that it was trained for"
        )
    return layers


def _block(gguf: GGUF, arch: str) -> int:
    size = gguf.get_int(f"{arch}.{BLOCK}", USUAL_BLOCK)
    if not 2 <= size <= LONGEST_BLOCK:
        raise ModelFileError(f"{gguf.path}: {arch}.{BLOCK} is {size}, and 2 to {LONGEST_BLOCK} tokens are possible")
    return size


def _mask(gguf: GGUF, large: ModelConfig) -> int:
    token = gguf.get_int(MASK_TOKEN)
    if not 0 <= token < large.vocab_size:
        raise ModelFileError(f"{gguf.path}: {MASK_TOKEN} is {token}, and there are {large.vocab_size} tokens")
    return token


def _windows(gguf: GGUF, arch: str, layers: int) -> tuple[int, ...]:
    """Also checks that positions of several axes are of no concern: a head turns by time alone."""
    sections = gguf.metadata.get(f"{arch}.{SECTIONS}", np.zeros(0, np.int32))
    if not isinstance(sections, np.ndarray) or sections.dtype.kind not in "iu" or sections[1:].any():
        raise ModelFileError(
            f"{gguf.path}: {arch}.{SECTIONS} turns by more than one axis, which no draft head of ours does"
        )
    window = gguf.get_int(f"{arch}.{WINDOW}", 0)
    if window <= 0:
        return (0,) * layers
    local = gguf.metadata.get(f"{arch}.{WINDOW_PATTERN}")
    if not isinstance(local, np.ndarray) or local.dtype != bool or len(local) != layers:
        raise ModelFileError(
            f"{gguf.path}: {arch}.{WINDOW_PATTERN} must say of each of {layers} layers whether it has a window"
        )
    return tuple(window if one else 0 for one in local)
