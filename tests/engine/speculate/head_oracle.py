"""llama.cpp as an oracle of draft heads: what its `draft-dspark` and `draft-dflash` compute, step by step.

Of what common/speculative.cpp does these are: hidden states of the large model's layers, one batch of them into the head's
cache, one batch of the last token and mask tokens, whose logits and confidences are the proposals. Some of the functions are C++
and have mangled names; where this llama.cpp has others, the tests are left out.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.llama_oracle import LlamaBatch

_MANGLED = {
    "llama_set_embeddings_layer_inp": ("_Z30llama_set_embeddings_layer_inpP13llama_contextjb", ctypes.c_uint32, ctypes.c_bool),
    "llama_get_embeddings_layer_inp": ("_Z30llama_get_embeddings_layer_inpP13llama_contextj", ctypes.c_uint32),
    "llama_set_embeddings_nextn": ("_Z26llama_set_embeddings_nextnP13llama_contextbb", ctypes.c_bool, ctypes.c_bool),
    "llama_get_embeddings_nextn": ("_Z26llama_get_embeddings_nextnP13llama_context",),
    "llama_model_target_layer_ids": ("_Z28llama_model_target_layer_idsPK11llama_model",),
    "llama_model_target_layer_ids_n": ("_Z30llama_model_target_layer_ids_nPK11llama_model",),
}  # fmt: skip
_FLOATS = ctypes.POINTER(ctypes.c_float)


class LlamaHead:
    """A model and its draft head, which brings its own embedding and output head. width: of the model's hidden states."""

    def __init__(self, large: Path, head: Path, width: int) -> None:
        self._large, self._head = (LlamaBatch(file, 512, exact=True) for file in (large, head))
        self._lib, self._width = self._head._lib, width
        for name, (mangled, *arguments) in _MANGLED.items():
            if not hasattr(self._lib, mangled):
                pytest.skip(f"this llama.cpp does not export {name} as we know it")
            function = getattr(self._lib, mangled)
            function.argtypes = [ctypes.c_void_p, *arguments]
            function.restype = {"llama_model_target_layer_ids": ctypes.POINTER(ctypes.c_int32)}.get(
                name, ctypes.c_uint32 if name.endswith("_n") else _FLOATS if "_get_" in name else None
            )
            setattr(self, f"_{name}", function)
        self._lib.llama_set_causal_attn.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        count = self._llama_model_target_layer_ids_n(self._head._model)
        self.reads = self._llama_model_target_layer_ids(self._head._model)[:count]
        for layer in self.reads:
            self._llama_set_embeddings_layer_inp(self._large._context, layer, True)
        self._llama_set_embeddings_nextn(self._head._context, True, True)
        self._batch = self._lib.llama_batch_init(512, count * width, 1)

    def __enter__(self) -> "LlamaHead":
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_batch_free(self._batch)
        self._large.__exit__()
        self._head.__exit__()

    def states(self, ids: Sequence[int]) -> np.ndarray:
        """What goes into the layers of the large model that the head reads, side by side, [T, reads * width]."""
        self._large.logits(ids)
        found = [self._llama_get_embeddings_layer_inp(self._large._context, layer) for layer in self.reads]
        return np.concatenate([np.ctypeslib.as_array(one, (len(ids), self._width)) for one in found], axis=1)

    def block(
        self, ids: Sequence[int], last: int, mask: int, size: int, *, causal: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits [size, V] of a block that begins with `last`, behind `ids`, and what it says of each guess [size]."""
        lib, context = self._lib, self._head._context
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        lib.llama_set_causal_attn(context, causal)
        states = np.ascontiguousarray(self.states(ids), np.float32)
        self._place(self._batch, 0, len(ids), logits=False)
        ctypes.memmove(self._batch.embd, states.ctypes.data, states.nbytes)
        assert lib.llama_decode(context, self._batch) == 0
        tokens = self._head._batch
        self._place(tokens, len(ids), size, logits=True)
        for i in range(size):
            tokens.token[i] = mask if i else last
        assert lib.llama_decode(context, tokens) == 0
        vocab = self._head.vocab_size
        rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (vocab,)).copy() for i in range(size)]
        told = np.ctypeslib.as_array(self._llama_get_embeddings_nextn(context), (size, self._width))[:, 0].copy()
        return np.stack(rows), told

    @staticmethod
    def _place(batch, begin: int, count: int, *, logits: bool) -> None:
        batch.n_tokens = count
        for i in range(count):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = begin + i, 1, int(logits)
            batch.seq_id[i][0] = 0
