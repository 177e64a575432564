#!/bin/sh
# llama-perplexity of llama.cpp as in xllamacpp 2026.10.11549 (its perplexity.cpp, from the sdist, against the wheel's library):
# 1. a model compared with its own saved log-probabilities (--kl-divergence-base) is said to have another perplexity than it had;
# 2. with --ppl-stride the windows are not of -c tokens, and their length depends on the batch size (-b).
#
# Expected: 1. PPL(base) is what the run that saved the file printed, up to 16 bits of rounding, and PPL(Q)/PPL(base) is 1. 2. Windows of -c
# tokens, whatever -b says.
# Seen: 1. A saved row ends 16 nats below its likeliest token; what is rarer gets that value, so surprising tokens count for less and
# PPL(base) is too low. How much depends on the model: 0.2 % for a model of 135 M parameters over 378 tokens of WikiText-2, orders of magnitude for one
# of random weights, as here. 2. The context is first multiplied for parallel sequences and rounded, and the strided path takes the
# result for the length of a window: -c 128 gives 256 with -b 128 and 1024 with -b 512.
#
# What gangpao does about it: a result against a saved file says so in its notes, and --against MODEL compares without a file; its strided
# windows have the length that is asked for (gangpao/evaluate/perplexity/).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip --disable-pip-version-check -q install xllamacpp==2026.10.11549 gguf==0.19.0
"$python" -m pip --disable-pip-version-check -q download --no-deps --no-binary xllamacpp -d "$folder" xllamacpp==2026.10.11549
tar xzf "$folder"/xllamacpp-*.tar.gz -C "$folder" --strip-components=3 --wildcards '*/thirdparty/llama.cpp/*'
cd "$folder"
c++ -std=c++17 -O1 -fPIC -shared -D_GLIBCXX_USE_CXX11_ABI=0 -Icommon -Iinclude -Iggml/include -Ivendor -o perplexity.so tools/perplexity/perplexity.cpp
cat > run.py <<'PYTHON'
import ctypes
import sys

import xllamacpp.xllamacpp as wheel

ctypes.CDLL(wheel.__file__, mode=ctypes.RTLD_GLOBAL)
words = [b"llama-perplexity", *(word.encode() for word in sys.argv[1:])]
ctypes.CDLL("./perplexity.so")._Z16llama_perplexityiPPc(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None))
PYTHON
"$python" -W ignore - <<'PYTHON'
import re
import subprocess
import sys

import gguf
import numpy as np

width, heads, random = 32, 2, np.random.default_rng(0)
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
more = iter(range(256, 512))
pieces = [chr(b) if b in plain else chr(next(more)) for b in range(256)]
out = gguf.GGUFWriter("m.gguf", "llama")
out.add_context_length(4096)
out.add_embedding_length(width)
out.add_block_count(1)
out.add_feed_forward_length(width)
out.add_head_count(heads)
out.add_head_count_kv(heads)
out.add_layer_norm_rms_eps(1e-5)
out.add_rope_dimension_count(width // heads)
out.add_tokenizer_model("gpt2")
out.add_tokenizer_pre("qwen2")
out.add_token_list(pieces)
out.add_token_types([1] * 256)
out.add_token_merges(["a b"])
out.add_eos_token_id(0)
out.add_add_bos_token(False)
shapes = {"token_embd": (256, width), "output": (256, width)}
shapes |= {f"blk.0.{n}": (width, width) for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
for name, shape in shapes.items():
    out.add_tensor(f"{name}.weight", random.normal(0, 1.5, shape).astype(np.float32))
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    out.add_tensor(f"{name}.weight", np.ones(width, np.float32))
out.write_header_to_file()
out.write_kv_data_to_file()
out.write_tensors_to_file()
out.close()
with open("text", "w") as file:
    file.write("The river rises in the hills, crosses the plain and reaches the sea near the old harbour. " * 40)


def said(pattern, *options):
    command = [sys.executable, "run.py", "-m", "m.gguf", "-t", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(pattern, done.stdout + done.stderr)
    if not found:
        print(done.stdout[-1500:], done.stderr[-1500:])
        raise SystemExit(f"nothing like {pattern}: this has changed")
    return float(found.group(1))


window = ("-c", "64", "-b", "64", "--chunks", "8")
printed = said(r"Final estimate: PPL = ([\d.]+)", "-f", "text", *window, "--kl-divergence-base", "base.kld")
base = said(r"Mean PPL\(base\) *: *([\d.]+)", *window, "--kl-divergence-base", "base.kld", "--kl-divergence")
print(f"perplexity while saving {printed:.4f}, of the saved file {base:.4f}")
lengths = [
    int(said(r"Calculation chunk = (\d+)", "-f", "text", "-c", "128", "-b", batch, "--ppl-stride", "64", "--chunks", "1"))
    for batch in ("128", "512")
]
print(f"tokens of a window of -c 128 with --ppl-stride: {lengths}")
raise SystemExit(0 if base < 0.999 * printed and lengths == [256, 1024] else "this has changed")
PYTHON
