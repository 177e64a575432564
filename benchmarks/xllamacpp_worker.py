"""One measurement of xllamacpp, the prebuilt wheel of llama.cpp, in a process of its own.

`python benchmarks/xllamacpp_worker.py MODEL PROMPT_TOKENS DECODE_TOKENS SETTINGS-JSON` prints one JSON object with the
server's own timings, so neither HTTP nor Python is counted. A warm-up of the same size goes first, as in llama-bench.
"""

import json
import random
import sys
from collections.abc import Sequence

import xllamacpp


def main(argv: Sequence[str]) -> int:
    """Load, warm up, measure once, print {"tps", "system"}."""
    model, prompt_tokens, decode_tokens, settings = argv[0], int(argv[1]), int(argv[2]), json.loads(argv[3])
    server = xllamacpp.Server(parameters(model, prompt_tokens + decode_tokens + 64, settings))
    rng = random.Random(0)
    timings = {}
    for _ in range(2):
        body = {
            "prompt": [rng.randrange(1000, 30_000) for _ in range(prompt_tokens)],
            "n_predict": max(decode_tokens, 1),
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        timings = server.handle_completions(body)["timings"]
    assert timings["prompt_n"] == prompt_tokens, timings
    tps = timings["predicted_per_second"] if decode_tokens else timings["prompt_per_second"]
    print(json.dumps({"tps": tps, "system": xllamacpp.get_system_info()}))
    return 0


def parameters(model: str, context: int, settings: dict[str, str]) -> xllamacpp.CommonParams:
    """llama.cpp's parameters from the settings that engines.py tries."""
    flash = xllamacpp.llama_flash_attn_type
    load = xllamacpp.llama_load_mode
    out = xllamacpp.CommonParams()
    out.model.path = model
    out.n_ctx = context
    out.n_parallel = 1
    out.n_gpu_layers = 0
    out.verbosity = -1
    out.n_ubatch = int(settings["ubatch"])
    out.cpuparams.n_threads = out.cpuparams_batch.n_threads = int(settings["threads"])
    out.flash_attn_type = {
        "on": flash.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": flash.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[settings["flash"]]
    out.no_extra_bufts = settings["repack"] == "0"
    out.load_mode = {"mmap": load.LLAMA_LOAD_MODE_MMAP, "none": load.LLAMA_LOAD_MODE_NONE}[settings["load"]]
    return out


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
