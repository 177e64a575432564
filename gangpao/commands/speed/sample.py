"""One measurement of speed: a prompt read and an answer written alone, or many answers at once.

Prompts are random ids, always the same for the same seed, so that nothing is shared between answers and no draft fits.
"""

import threading
import time
from collections.abc import Sequence

import numpy as np

from gangpao.engine.cache import PAGE
from gangpao.engine.generate import Engine
from gangpao.engine.sample import GREEDY, SamplingParams
from gangpao.engine.scheduler import Handle, Request, Scheduler
from gangpao.engine.sequences import Event


def random_ids(engine: Engine, count: int, seed: int = 0) -> list[int]:
    """So many token ids of the model's vocabulary."""
    ids: list[int] = np.random.default_rng(seed).integers(0, engine.model.config.vocab_size, count).tolist()
    return ids


def warm_up(engine: Engine) -> None:
    """Touch pages, warm caches and raise clocks by a run that does not count."""
    engine.model.forward(
        random_ids(engine, min(32, engine.context)), engine.model.new_cache(engine.context, engine.kv_dtype)
    )


def alone(engine: Engine, ids: Sequence[int], decode_tokens: int) -> tuple[float, float]:
    """Tokens a second of reading a prompt into an empty cache, and of decoding behind it."""
    cache = engine.model.new_cache(engine.context, engine.kv_dtype)
    start = time.perf_counter()
    logits = engine.model.forward(ids, cache, need=GREEDY)
    middle = time.perf_counter()
    for _ in range(decode_tokens):
        logits = engine.model.forward([int(logits.argmax())], cache, need=GREEDY)
    end = time.perf_counter()
    return len(ids) / (middle - start), decode_tokens / (end - middle)


def together(engine: Engine, context: int, batch: int, decode_tokens: int) -> tuple[float, int]:
    """Tokens a second of `batch` answers at once, each behind a prompt of `context` tokens of its own, and bytes of the cache.

    The prompts are read first and remembered, so that the time is that of writing: from all of them submitted at once until
    the last has its decode_tokens.
    """
    scheduler = Scheduler(engine, batch=batch, pool_tokens=pool_tokens(context, batch, decode_tokens))
    try:
        prompts = [random_ids(engine, context, seed) for seed in range(1, batch + 1)]
        # A model's own end would make one answer shorter than the others.
        never = dict.fromkeys(engine.tokenizer.end_ids, -100.0)
        params = SamplingParams(temperature=0.0, max_tokens=decode_tokens, logit_bias=never)
        _answer(scheduler, [Request(ids, params, prompt_only=True) for ids in prompts])
        start = time.perf_counter()
        handles = _answer(scheduler, [Request(ids, params, speculate=False) for ids in prompts])
        seconds = time.perf_counter() - start
        return sum(handle.stats.completion_tokens for handle in handles) / seconds, scheduler.pool.nbytes
    finally:
        scheduler.close(finish=False)


def pool_tokens(context: int, batch: int, decode_tokens: int) -> int:
    """Positions of the cache that such a measurement needs, with a page of slack for each answer."""
    return batch * (-(-(context + decode_tokens) // PAGE) + 1) * PAGE


def _answer(scheduler: Scheduler, requests: Sequence[Request]) -> list[Handle]:
    """Submit all and wait for all. Raises what one of them ended with."""
    left, done = len(requests), threading.Event()
    failed: list[Exception] = []

    def on_event(event: Event) -> None:
        nonlocal left
        if isinstance(event, Exception):
            failed.append(event)
        if isinstance(event, Exception) or event.finish_reason is not None:
            left -= 1  # all events come from the scheduler's one thread
            if left == 0:
                done.set()

    handles = [scheduler.submit(request, on_event) for request in requests]
    done.wait()
    if failed:
        raise failed[0]
    return handles
