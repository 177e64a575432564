"""From a request to pieces of text: the way from HTTP's event loop to the scheduler's thread and back.

    prepare    text to ids in a thread (a chat template may be slow or hostile), after a look at how many wait already
    Answers    n submitted requests; an async iterator of (which, piece) that cancels all of them when it is left

Used by every route that generates. A full queue is told before any work is done for the request, so that a refusal takes
milliseconds at any load.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

import gangpao
from gangpao.engine.answer import Piece
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Busy
from gangpao.engine.sequences import Event, Handle, Request
from gangpao.serve.http.errors import NO_RETRY, ApiError, PromptTooLong, busy
from gangpao.serve.http.metrics import Metrics
from gangpao.serve.models import LoadedModel
from gangpao.serve.server import Server

T = TypeVar("T")
MAX_CHARS = 4_000_000
_POLL_S = 0.05  # between two looks for a place


@contextlib.contextmanager
def place(loaded: LoadedModel) -> Iterator[None]:
    """A place for a request that is being prepared. Raises ApiError (429) where too many wait."""
    scheduler = loaded.scheduler
    if scheduler.full(scheduler.preparing):
        scheduler.counters.refused += 1
        raise busy(scheduler.retry_after())
    scheduler.preparing += 1
    try:
        yield
    finally:
        scheduler.preparing -= 1


async def prepare(loaded: LoadedModel, work: Callable[..., T], *args: Any) -> T:
    """work(*args) in a thread, within the queue's bounds. What is wrong with the request becomes ApiError (400)."""
    with place(loaded):
        try:
            return await asyncio.to_thread(work, *args)
        except ValueError as error:
            raise ApiError(400, str(error)[:500]) from None
        except RecursionError:  # of a value that json_bounds.py let pass
            raise ApiError(400, "what was sent is nested too deeply") from None


def check_length(loaded: LoadedModel, count: int) -> None:
    """Raises ApiError (400, context_length_exceeded) for a prompt that leaves no room for an answer."""
    if count >= loaded.engine.context:
        raise PromptTooLong(count, loaded.engine.context)


def check_text(loaded: LoadedModel, size: int) -> None:
    """The same for a text of `size` characters that is too long whatever its tokens are, without looking for them."""
    fewest = size // loaded.longest_piece
    if fewest >= loaded.engine.context:
        check_length(loaded, fewest)


def check_size(size: int) -> None:
    """Raises ApiError (400) for a text of more characters than are worth tokenizing at once."""
    if size > MAX_CHARS:
        raise ApiError(400, f"{size} characters are more than the {MAX_CHARS} that are tokenized at once")


class Answers:
    """n requests on their way, as a context manager and an async iterator of (index, piece), which ends with the last.

    At most half of the places are filled, the rest as answers end, so that one request does not take the queue of all.
    handles: of those that were submitted, in their order. What comes to its end is measured, whatever API it is for.
    Raises ApiError: 429 where the queue is full, 400 for a value the engine refuses, 500 where it failed.
    """

    def __init__(self, loaded: LoadedModel, requests: Sequence[Request], metrics: Metrics) -> None:
        self._scheduler = loaded.scheduler
        self._metrics = metrics
        self._model = loaded.name
        self.requests = requests
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._began = time.perf_counter()
        self.handles: list[Handle] = []
        self._ended = 0
        most = loaded.limits.max_stop
        if any(len(request.params.stop) > most for request in requests):
            message = f"more than {most} strings; start the server with a larger --max-stop"
            raise ApiError(400, message, field="stop")

    def __enter__(self) -> "Answers":
        try:
            self._submit()
        except Busy as error:
            self._cancel()
            raise busy(error.retry_after) from None
        return self

    def _submit(self) -> None:
        """Submit what may run now. Raises Busy where there is no place."""
        loop = asyncio.get_running_loop()
        try:
            while len(self.handles) < min(len(self.requests), self._ended + max(1, self._scheduler.places // 2)):
                i = len(self.handles)
                self.handles.append(self._scheduler.submit(self.requests[i], self._listener(loop, i)))
        except ValueError as error:
            self._cancel()
            raise ApiError(400, str(error)[:500]) from None

    async def _submit_later(self) -> None:
        """The same, waiting for a place where none of our own can become free."""
        while True:
            try:
                self._submit()
                return
            except Busy:
                if len(self.handles) > self._ended:
                    return  # one of ours will end
                await asyncio.sleep(_POLL_S)

    def _listener(self, loop: asyncio.AbstractEventLoop, index: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return listen

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._cancel()

    def _cancel(self) -> None:
        for handle in self.handles:
            handle.cancel()  # harmless for those that have ended

    @property
    def seconds(self) -> float:
        """Since the requests were submitted."""
        return time.perf_counter() - self._began

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        left = len(self.requests)
        latest: dict[int, float] = {}  # when the last token of each answer came
        while left:
            index, event = await self._events.get()
            if isinstance(event, Exception):
                raise _failure(event)
            if event.ids:
                now = self.seconds
                if index in latest:
                    self._metrics.tokens(self._model, len(event.ids), now - latest[index])
                latest[index] = now
            if event.finish_reason is not None:
                left -= 1
                self._ended += 1
                await self._submit_later()
                self._metrics.answered(self._model, self.handles[index].stats, event.finish_reason, self.seconds)
            yield index, event


def _failure(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(500, str(error)[:300], code="generation_failed", headers=NO_RETRY)
    return ApiError(503, "the model stopped in the middle of this answer; try again", code="generation_failed")


def choices_of(params: SamplingParams, n: int) -> list[SamplingParams]:
    """Settings of n answers to one prompt: the same, with seeds that follow each other where one was given."""
    if params.seed is None:
        return [params] * n
    return [replace(params, seed=(params.seed + i) % 2**63) for i in range(n)]


# --- what all bodies share


def usage(handles: Sequence[Handle], prompt_of: Sequence[Handle]) -> dict[str, Any]:
    """Counts of one request. prompt_of: one handle for each prompt, because n answers to it count it once. reasoning_tokens are
    those of thoughts, marks included. dropped_tokens, where there are any: what left a full context (--context-shift)."""
    prompt = sum(h.stats.prompt_tokens for h in prompt_of)
    completion = sum(h.stats.completion_tokens for h in handles)
    dropped = sum(h.stats.dropped_tokens for h in handles)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(h.stats.cached_tokens for h in prompt_of)},
        "completion_tokens_details": {"reasoning_tokens": sum(h.stats.reasoning_tokens for h in handles)},
        **({"dropped_tokens": dropped} if dropped else {}),
    }


def timings(server: Server, handles: Sequence[Handle]) -> dict[str, Any]:
    """Speed and price of one request: tokens a second, seconds, yuan; of several answers the sum or the slowest."""
    stats = [h.stats for h in handles]
    decode_s = max(s.decode_s for s in stats)
    return {
        "prefill_tps": round(stats[0].prefill_tps, 2),
        "decode_tps": round(sum(s.decode_steps for s in stats) / decode_s, 2) if decode_s else 0.0,
        "ttft_s": round(stats[0].ttft_s, 4),
        "queue_s": round(max(h.queue_s for h in handles), 4),
        "machine_s": round(sum(s.seconds for s in stats), 4),
        "drafted": sum(s.drafted for s in stats),
        "accepted": sum(s.accepted for s in stats),
        "yuan": server.meter.yuan(sum(s.seconds for s in stats)),
        "seed": handles[0].seed,
    }


def fingerprint() -> str:
    """What computed the answer: with the same one, the same seed gives the same text."""
    return f"gangpao-{gangpao.__version__}"
