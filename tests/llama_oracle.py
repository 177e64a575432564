"""llama.cpp as an oracle: the probabilities it gives on the same file, through the xllamacpp wheel.

The reported log-probabilities are the softmax of the raw logits (llama.cpp computes them beside its samplers), so a
large logit_bias on one token makes the server answer with that token and its true probability: one number a request
instead of a whole vocabulary. Keys and values are f32 and flash attention is off, to be as exact as llama.cpp can be.
"""

import ctypes
import http.client
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest


class LlamaOracle:
    """One model in llama.cpp. Use it in a `with`; a request asks for one next token.

    One thread: its threads wait by spinning, and two of them on a busy machine are ten times slower than one.
    """

    def __init__(
        self, path: Path | str, n_ctx: int = 512, threads: int = 1, kv: str = "F32", adapter: Path | None = None
    ) -> None:
        x = pytest.importorskip("xllamacpp", reason="xllamacpp (llama.cpp) is not installed")
        p = x.CommonParams()
        p.model.path = str(path)
        if adapter is not None:
            p.lora_adapters = [x.CommonAdapterLoraInfo(str(adapter), 1.0)]
        p.n_ctx = p.n_batch = n_ctx
        p.n_ubatch = min(n_ctx, 512)
        p.n_parallel = 1
        p.n_gpu_layers = 0
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        p.cache_type_k = p.cache_type_v = getattr(x.ggml_type, f"GGML_TYPE_{kv}")
        p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.warmup = p.ctx_shift = p.fit_params = False
        p.cache_ram_mib = 0
        p.verbosity = -1
        self._server = x.Server(p)
        address = urlsplit(self._server.listening_address)
        self._http = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
        # A server that is closed before its loop has begun is waited for without end; an answer shows that it has.
        self._post("/completion", {"prompt": [0], "n_predict": 1})

    def __enter__(self) -> "LlamaOracle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server and frees the model."""
        self._http.close()
        self._server = None

    def _post(self, route: str, body: dict) -> dict:
        self._http.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        text = answer.read()
        assert answer.status == 200, text[:500]
        return json.loads(text)

    def _next(self, ids: Sequence[int], n_probs: int, force: int | None = None) -> dict:
        bias = [] if force is None else [[int(force), 1000.0]]
        body = {
            "prompt": [int(i) for i in ids], "n_predict": 1, "n_probs": n_probs, "cache_prompt": True,
            "temperature": 0.0, "repeat_penalty": 1.0, "samplers": ["temperature"], "post_sampling_probs": False,
            "logit_bias": bias,
        }  # fmt: skip
        answer = self._post("/completion", body)
        assert answer.get("completion_probabilities"), f"llama.cpp gave no probabilities (half a character?): {answer}"
        return answer["completion_probabilities"][0]

    def next_logprobs(self, ids: Sequence[int], n_probs: int) -> dict[int, float]:
        """Log-probabilities of the `n_probs` most likely next tokens; with the size of the vocabulary, of all."""
        harmless = self.tokenize("a")[0]  # nothing is reported while the answer ends inside a character
        return {e["id"]: e["logprob"] for e in self._next(ids, n_probs, force=harmless)["top_logprobs"]}

    def logprob(self, ids: Sequence[int], token: int) -> float:
        """Log-probability of `token` after `ids`; cheap when the prompt before this one was ids[:-1].

        The token must not end inside a character: llama.cpp then reports nothing (LlamaBatch has no such limit).
        """
        found = self._next(ids, 1, force=token)
        assert found["id"] == token
        return found["logprob"]

    def greedy(self, ids: Sequence[int], count: int) -> str:
        """The text of the `count` most likely tokens one after the other, up to the model's own end."""
        body = {
            "prompt": [int(i) for i in ids], "n_predict": count, "temperature": 0.0, "repeat_penalty": 1.0,
            "samplers": ["temperature"],
        }  # fmt: skip
        return self._post("/completion", body)["content"]

    def sequence(self, ids: Sequence[int]) -> Iterator[float]:
        """log p(ids[t] | ids[:t]) for t = 1, 2, ..."""
        for t in range(1, len(ids)):
            yield self.logprob(ids[:t], ids[t])

    def vector(self, ids: Sequence[int], vocab_size: int) -> np.ndarray:
        """Log-probabilities of every token after `ids`, [vocab_size]."""
        found = self.next_logprobs(ids, vocab_size)
        assert len(found) == vocab_size
        return np.array([found[i] for i in range(vocab_size)])

    def tokenize(self, text: str, parse_special: bool = False, add_special: bool = False) -> list[int]:
        """Ids of a text. add_special: with BOS, where the model has it so."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return self._post("/tokenize", body)["tokens"]


class _Opaque(ctypes.Structure):
    """A parameter struct of llama.cpp whose layout we need not know, with room to spare."""

    _fields_ = (("words", ctypes.c_uint32 * 512),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _no_log(level, text, data):
    return None


def _library() -> ctypes.CDLL:
    native = pytest.importorskip("xllamacpp.xllamacpp", reason="xllamacpp (llama.cpp) is not installed")
    lib = ctypes.CDLL(native.__file__)
    if not hasattr(lib, "llama_decode"):
        pytest.skip("this xllamacpp does not export llama.cpp's C functions")
    p = ctypes.c_void_p
    for name, result, arguments in (
        ("llama_context_default_params", _Opaque, []),
        ("llama_model_default_params", _Opaque, []),
        ("llama_model_load_from_file", p, [ctypes.c_char_p, _Opaque]),
        ("llama_init_from_model", p, [p, _Opaque]),
        ("llama_model_get_vocab", p, [p]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [p]),
        ("llama_set_n_threads", None, [p, ctypes.c_int32, ctypes.c_int32]),
        ("llama_batch_init", _Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        ("llama_batch_free", None, [_Batch]),
        ("llama_decode", ctypes.c_int32, [p, _Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [p, ctypes.c_int32]),
        ("llama_get_memory", p, [p]),
        ("llama_memory_clear", None, [p, ctypes.c_bool]),
        ("llama_adapter_lora_init", p, [p, ctypes.c_char_p]),
        (
            "llama_set_adapters_lora",
            ctypes.c_int32,
            [p, ctypes.POINTER(p), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)],
        ),
        ("llama_free", None, [p]),
        ("llama_model_free", None, [p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(_no_log, None)
    lib.llama_backend_init()
    return lib


class LlamaBatch:
    """llama.cpp through its C functions, which the wheel exports: logits of all positions of a text at once.

    Ten times quicker than one request a token. KV cache f16 and attention as llama.cpp chooses. Of the parameter
    structs only the first three numbers are touched; that they are n_ctx, n_batch and n_ubatch is checked.
    """

    def __init__(self, path: Path | str, n_ctx: int = 256, threads: int = 1, *, exact: bool = False) -> None:
        """exact: KV cache f32 and no flash attention, where the places of those two settings are the ones that we know."""
        self._lib = lib = _library()
        settings = lib.llama_context_default_params()
        if list(settings.words[:3]) != [512, 2048, 512]:
            pytest.skip("this llama.cpp orders its context parameters in a way we do not know")
        settings.words[0] = settings.words[1] = settings.words[2] = n_ctx
        if exact:
            words = [ctypes.c_int32(word).value for word in settings.words[:28]]
            if (words[7:14], words[26:]) != ([4, 4, 0, -1, -1, -1, -1], [1, 1]):
                pytest.skip("this llama.cpp orders its context parameters in a way we do not know")
            settings.words[13] = settings.words[26] = settings.words[27] = 0
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        assert self._model, f"llama.cpp cannot load {path}"
        self._context = lib.llama_init_from_model(self._model, settings)
        assert self._context
        lib.llama_set_n_threads(self._context, threads, threads)
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(n_ctx, 0, 1)
        self.n_ctx = n_ctx

    def __enter__(self) -> "LlamaBatch":
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def use_adapters(self, *adapters: tuple[Path | str, float]) -> bool:
        """From now on these adapters (file, scale) are applied, and no others; False where llama.cpp refuses one."""
        found = [self._lib.llama_adapter_lora_init(self._model, str(path).encode()) for path, _ in adapters]
        if not all(found):
            return False
        pointers = (ctypes.c_void_p * len(found))(*found)
        scales = (ctypes.c_float * len(found))(*(scale for _, scale in adapters))
        return self._lib.llama_set_adapters_lora(self._context, pointers, len(found), scales) == 0

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after every id, [len(ids), vocab_size], starting from an empty cache."""
        assert 0 < len(ids) <= self.n_ctx
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        b = self._batch
        b.n_tokens = len(ids)
        for i, token in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = int(token), i, 1, 1
            b.seq_id[i][0] = 0
        assert self._lib.llama_decode(self._context, b) == 0
        rows = [
            np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, i), (self.vocab_size,))
            for i in range(len(ids))
        ]
        return np.stack(rows)


def log_likelihoods(logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """log p(ids[t + 1]) under row t of the logits, [len(ids) - 1], in float64."""
    rows = logits[: len(ids) - 1].astype(np.float64)
    top = rows.max(axis=1)
    total = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top
    return rows[np.arange(len(rows)), np.asarray(ids[1:])] - total
