"""Requests to a scheduler, and what the same request comes to alone."""

import threading

from gangpao.engine.answer import Piece
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Request

GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=30)


class Listener:
    """What one request came to."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.error: Exception | None = None
        self.ended = threading.Event()

    def __call__(self, event) -> None:
        assert not self.ended.is_set()
        if isinstance(event, Exception):
            self.error = event
        else:
            self.pieces.append(event)
        if self.error or event.finish_reason:
            self.ended.set()

    def wait(self) -> str:
        assert self.ended.wait(60), "no answer"
        if self.error:
            raise self.error
        return "".join(p.text for p in self.pieces)


def ask(scheduler, ids, params=GREEDY, **options):
    listener = Listener()
    listener.handle = scheduler.submit(Request(ids, params, **options), listener)
    return listener


def alone(engine, ids, params=GREEDY) -> tuple[str, list[int], list]:
    run = engine.generate(ids, params)
    pieces = list(run)
    return run.text, [i for p in pieces for i in p.ids], [x for p in pieces for x in p.logprobs]
