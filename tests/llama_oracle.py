"""llama.cpp as an oracle: the probabilities it gives on the same file, through the xllamacpp wheel.

The reported log-probabilities are the softmax of the raw logits (llama.cpp computes them beside its samplers), so a
large logit_bias on one token makes the server answer with that token and its true probability: one number a request
instead of a whole vocabulary. Keys and values are f32 and flash attention is off, to be as exact as llama.cpp can be.
"""

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

    def __init__(self, path: Path | str, n_ctx: int = 512, threads: int = 1, kv: str = "F32") -> None:
        x = pytest.importorskip("xllamacpp", reason="xllamacpp (llama.cpp) is not installed")
        p = x.CommonParams()
        p.model.path = str(path)
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
        return self._post("/completion", body)["completion_probabilities"][0]

    def next_logprobs(self, ids: Sequence[int], n_probs: int) -> dict[int, float]:
        """Log-probabilities of the `n_probs` most likely next tokens; with the size of the vocabulary, of all."""
        return {e["id"]: e["logprob"] for e in self._next(ids, n_probs)["top_logprobs"]}

    def logprob(self, ids: Sequence[int], token: int) -> float:
        """Log-probability of `token` after `ids`; cheap when the prompt before this one was ids[:-1]."""
        found = self._next(ids, 1, force=token)
        assert found["id"] == token
        return found["logprob"]

    def sequence(self, ids: Sequence[int]) -> Iterator[float]:
        """log p(ids[t] | ids[:t]) for t = 1, 2, ..."""
        for t in range(1, len(ids)):
            yield self.logprob(ids[:t], ids[t])

    def vector(self, ids: Sequence[int], vocab_size: int) -> np.ndarray:
        """Log-probabilities of every token after `ids`, [vocab_size]."""
        found = self.next_logprobs(ids, vocab_size)
        assert len(found) == vocab_size
        return np.array([found[i] for i in range(vocab_size)])

    def tokenize(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of a text, without BOS."""
        return self._post("/tokenize", {"content": text, "add_special": False, "parse_special": parse_special})["tokens"]
