"""Log-likelihoods and answers through `gangpao eval`'s models against lm-eval's own Hugging Face path, turn by turn.

    python benchmarks/evaluation.py --data FOLDER [--items 60] [--prompts 8] [--rounds 3] [--model smollm2-135m]

The same requests, as lm-eval builds them, go to our engine (int8 activations, as a file of few bits is run), to our engine in
float32, and to transformers in float32 with the same weights, dequantized. HellaSwag's first items are scored; GSM8K's first
questions are answered, 64 tokens each, greedy. Every round has its own items, so that nothing is remembered. Ratios are medians
over rounds.

`--server URL` scores the choices through a llama.cpp server too, with lm-eval's `gguf` model. It must give log-probabilities of
a prompt, as that of llama-cpp-python does (in an environment of its own):

    python -m llama_cpp.server --model FILE --logits_all true --n_ctx 2048 --n_threads 2 --n_threads_batch 2 --cache true
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gangpao import catalog, machine
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.models.harness import Harness
from gangpao.evaluate.models.load import load_engine
from gangpao.evaluate.tasks.build import ask, harness_task
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.table import TASKS

PEER, SERVER = "lm-eval, transformers", "lm-eval, llama.cpp server"
Seconds = dict[str, dict[str, list[float]]]


class Forgetful:
    """A journal that keeps nothing."""

    def take(self, key: str, read: Callable[[Any], Any]) -> None:
        """Never known."""

    def put(self, key: str, answer: Any) -> None:
        """Not kept."""


def ours(path: Path, float32: bool, batch: int) -> Harness:
    """Our engine as lm-eval sees it."""
    engine, facts = load_engine(str(path), EngineOptions(context=2048), float32=float32)
    return Harness(EngineModel(engine, facts, batch, float32=float32), Forgetful(), lambda *_: None)  # type: ignore[arg-type]


def theirs(path: Path, batch: int) -> Any:
    """lm-eval's Hugging Face model with the file's weights in float32."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(machine.physical_cores())
    folder, name = str(path.parent), path.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device="cpu", backend="causal")


def served(url: str) -> Any:
    """lm-eval's model for a llama.cpp server: one request after the other, which is all that it does."""
    from lm_eval.models.gguf import GGUFLM

    return GGUFLM(base_url=url)


def requests_of(name: str, source: DataSource, begin: int, count: int) -> list[Any]:
    """lm-eval's requests for `count` items from `begin` on."""
    asked = ask(TASKS[name], source, shots=0)
    asked.docs[:] = asked.docs[begin : begin + count]
    task = harness_task(asked, lambda doc, answer: {})
    task.set_config(key="num_fewshot", value=0)
    if name == "gsm8k":
        task.set_config(key="generation_kwargs", value={"until": ["\n\n\n"], "max_gen_toks": 64, "do_sample": False})
    task.build_all_requests(limit=None)
    found: list[Any] = task.instances
    return found


def timed(work: Callable[..., object], requests: list[Any]) -> float:
    """Seconds for all of them."""
    begin = time.perf_counter()
    work(requests, disable_tqdm=True)
    return time.perf_counter() - begin


def main() -> None:
    """Rounds, one after the other; Markdown and a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument(
        "--begin", type=int, default=0, help="Items of HellaSwag to pass over; its first third is short."
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--server", help="URL of a llama.cpp server that gives log-probabilities of a prompt.")
    options = parser.parse_args()
    path, source = catalog.resolve(options.model), DataSource(options.data)
    models = {
        "ours": ours(path, False, options.batch), "ours, float32": ours(path, True, options.batch),
        PEER: theirs(path, options.batch),
    }  # fmt: skip
    if options.server:
        models[SERVER] = served(options.server)
    seconds: Seconds = {kind: {n: [] for n in models} for kind in ("choices", "answers")}
    watch = machine.Watch()
    for turn in range(options.rounds):
        choices = requests_of("hellaswag", source, options.begin + turn * options.items, options.items)
        answers = requests_of("gsm8k", source, turn * options.prompts, options.prompts) if options.prompts else []
        for name, model in models.items():
            seconds["choices"][name].append(timed(model.loglikelihood, choices))
            if options.prompts and name != SERVER:  # it ends after its server's number of tokens, whatever is asked
                seconds["answers"][name].append(timed(model.generate_until, answers))
        print({kind: {n: round(s[-1], 2) for n, s in by.items() if s} for kind, by in seconds.items()}, flush=True)
    ratios = told(seconds)
    print(f"machine: {machine.cpu_name()}, {machine.physical_cores()} cores; {watch.read()}")
    print(json.dumps({"seconds": seconds, "ratios": ratios, "items": options.items, "prompts": options.prompts}))


def told(seconds: Seconds) -> dict[str, float]:
    """How many times as fast as each peer, the medians over rounds; printed too."""
    ratios = {
        f"{kind}: {name} x {peer}": statistics.median(b / a for a, b in zip(by[name], by[peer], strict=True))
        for kind, by in seconds.items()
        for peer in (PEER, SERVER)
        for name in by
        if name not in (PEER, SERVER) and by[name] and by.get(peer)
    }
    for name, ratio in ratios.items():
        print(f"{ratio:5.2f}  {name}")
    return ratios


if __name__ == "__main__":
    main()
