#!/bin/sh
# llama.cpp as in xllamacpp 2026.10.11549 (files written with gguf 0.19.0): factors of rotary frequencies in a file (the tensor
# rope_freqs.weight, as Llama 3.1 has them) are used for the architecture llama; a file of the architecture qwen2 that has them does not
# load at all.
#
# Expected: one loader of the tensor for all architectures with rotary embeddings, or a message that names the tensor.
# Seen: llama.cpp counts the tensors that a graph has asked for and refuses a file that holds more ("wrong number of tensors"), which names
# neither the tensor nor the architecture.
#
# What gangpao does about it: a Qwen2 with such factors is written as llama, which may have biases; for qwen3, which may not, the
# export says what llama.cpp will do (gangpao/deploy/header.py).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check -q install xllamacpp==2026.10.11549 gguf==0.19.0
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

LOAD = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_gpu_layers = sys.argv[1], 64, 0
server = xllamacpp.Server(parameters)
print("logprob", server.handle_completions({"prompt": [4, 5, 6] * 8, "n_predict": 1, "temperature": 0, "n_probs": 1}))
"""


def write(path, architecture, factors):
    """A model of one layer with 8 tokens, all its weights random."""
    width, heads, random = 32, 2, np.random.default_rng(0)
    out = gguf.GGUFWriter(str(path), architecture)
    out.add_context_length(64)
    out.add_embedding_length(width)
    out.add_block_count(1)
    out.add_feed_forward_length(width)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(width // heads)
    out.add_vocab_size(8)
    out.add_tokenizer_model("llama")
    out.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e"])
    out.add_token_scores([0.0] * 8)
    out.add_token_types([2, 3, 3, 1, 1, 1, 1, 1])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    shapes = {"token_embd": (8, width), "output": (8, width), "blk.0.ffn_gate": (width, width)}
    shapes |= {f"blk.0.{n}": (width, width) for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")}
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", random.normal(0, 1, shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        out.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    if architecture == "qwen2":
        for name in ("attn_q", "attn_k", "attn_v"):
            out.add_tensor(f"blk.0.{name}.bias", np.zeros(width, np.float32))
    if factors is not None:
        out.add_tensor("rope_freqs.weight", np.full(width // heads // 2, factors, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


seen = {}
for architecture in ("llama", "qwen2"):
    for factors in (None, 4.0):
        path = Path(sys.argv[1]) / f"{architecture}-{factors}.gguf"
        write(path, architecture, factors)
        done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True)
        answer = next((line for line in done.stdout.splitlines() if line.startswith("logprob")), "")
        wrong = "wrong number of tensors" in done.stdout + done.stderr
        logprob = float(answer.split("'logprob': ")[1].split(",")[0]) if "'logprob': " in answer else None
        seen[architecture, factors] = "wrong number of tensors" if wrong else logprob
        print(f"{architecture}, rope_freqs {factors}: {seen[architecture, factors]}")
        if not (wrong or logprob is not None):
            print(done.stdout[-1500:], done.stderr[-1500:])
used = None not in seen.values() and seen["llama", None] != seen["llama", 4.0]
refused = seen["qwen2", 4.0] == "wrong number of tensors" and isinstance(seen["qwen2", None], float)
raise SystemExit(0 if used and refused else "this has changed")
PYTHON
