#!/bin/sh
# transformers 5.23.0 (tokenizers 0.23.3): what a tokenizer_config.json says of LlamaTokenizer and of the begin-of-sequence token is not
# what happens, where a tokenizer.json lies beside it.
#
# Expected: tokenizer.json is the tokenizer, so a text is cut as its pre-tokenizer says, and `add_bos_token: true` puts the bos token in
# front (transformers 4 built the post-processor for that).
# Seen: (1) add_bos_token is ignored, and the attribute says False afterwards: whether bos comes is up to the post-processor of
# tokenizer.json alone. (2) With "tokenizer_class": "LlamaTokenizer" the pre-tokenizer of tokenizer.json is replaced by the class's own: a
# word mark is put before a text whose tokenizer.json has none. The same folder as PreTrainedTokenizerFast keeps it.
# So a GGUF file that was made of the folder's flags (llama.cpp adds bos by tokenizer.ggml.add_bos_token) and the folder itself give a model
# other ids.
#
# What gangpao does about it: the proof of an export compares ids of the written file with those of tokenizer.json (docs/export.md).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check -q install transformers==5.23.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models

transformers.logging.set_verbosity_error()
marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "\u2581": 5}
seen = {}
for name in ("LlamaTokenizer", "PreTrainedTokenizerFast"):
    for flag in (True, False):
        model = Path(sys.argv[1]) / f"{name}-{flag}"
        model.mkdir()
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
        made.add_special_tokens(list(marks.values()))
        made.save(str(model / "tokenizer.json"))
        settings = {"tokenizer_class": name, "add_bos_token": flag, "add_eos_token": False} | marks
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        seen[name, flag] = transformers.AutoTokenizer.from_pretrained(model)("ab").input_ids
        print(f"{name}, add_bos_token {flag}: {seen[name, flag]}; tokenizer.json by itself: {made.encode('ab').ids}")
expected = {(name, flag): [5, 3, 4] if name == "LlamaTokenizer" else [3, 4] for name, flag in seen}
raise SystemExit(0 if seen == expected else "this has changed")
PYTHON
