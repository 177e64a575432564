"""Figures of a running server in Prometheus' text format. What vLLM counts too has vLLM's name, type and labels (vllm:...,
model_name, engine), so that its dashboards show it; what only we count begins with gangpao:.

Totals of the schedulers are read when somebody asks; only what nobody else counts is kept here: statuses, and histograms of the
answers. What it gives up: a model that was unloaded takes its totals with it (not its histograms); of vLLM's names those that
mean nothing here, and the counts of its cancelled requests (gangpao:requests_cancelled_total).
"""

import bisect
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gangpao.engine.answer import Stats
from gangpao.engine.pictures.seeing import SightCounters
from gangpao.engine.scheduler import Counters
from gangpao.machine import rss_mb

_SECONDS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
)  # fmt: skip
_INTERVALS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
# name, kind, help, field of Counters
_SCHEDULER = (
    ("vllm:num_requests_running", "gauge", "Answers in progress.", "running"),
    ("vllm:num_requests_waiting", "gauge", "Requests in the queue.", "waiting"),
    ("vllm:num_preemptions_total", "counter", "Answers that had to give their memory back and wait.", "preempted"),
    ("vllm:prompt_tokens_total", "counter", "Prompt tokens of the requests that began.", "prompt_tokens"),
    ("vllm:generation_tokens_total", "counter", "Tokens answered.", "completion_tokens"),
    ("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", "prompt_tokens"),
    ("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found there.", "cached_tokens"),
    ("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens that speculation proposed.", "drafted"),
    ("vllm:spec_decode_num_accepted_tokens_total", "counter", "Proposed tokens that were the answer.", "accepted"),
    ("gangpao:requests_finished_total", "counter", "Answers that came to their end.", "finished"),
    ("gangpao:requests_cancelled_total", "counter", "Answers whose client left.", "cancelled"),
    ("gangpao:requests_failed_total", "counter", "Answers that ended in an error of ours.", "failed"),
    ("gangpao:requests_refused_total", "counter", "Requests refused because the queue was full.", "refused"),
    ("gangpao:steps_total", "counter", "Passes over the weights.", "steps"),
    ("gangpao:step_seconds_total", "counter", "Seconds in those passes.", "step_s"),
)
# name, help, field of SightCounters
_SIGHT = (
    ("gangpao:pictures_total", "Pictures in prompts.", "pictures"),
    ("gangpao:picture_pieces_encoded_total", "Pieces of pictures that were encoded.", "pieces"),
    ("gangpao:picture_pieces_cached_total", "Pieces of pictures whose rows were there already.", "pieces_cached"),
    ("gangpao:picture_seconds_total", "Seconds in the encoder.", "seconds"),
)
# name, help, upper bounds; each is kept by model
_HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "From the request to the first token.", _SECONDS),
    ("vllm:inter_token_latency_seconds", "From one token of an answer to the next.", _INTERVALS),
    ("vllm:e2e_request_latency_seconds", "From the request to the end of the answer.", _SECONDS),
    ("vllm:request_queue_time_seconds", "From the request to its turn.", _SECONDS),
    ("vllm:request_prefill_time_seconds", "From the turn to the first token.", _SECONDS),
    ("vllm:request_decode_time_seconds", "From the first token to the last.", _SECONDS),
    ("vllm:request_prompt_tokens", "Tokens of the prompt.", _TOKENS),
    ("vllm:request_generation_tokens", "Tokens of the answer.", _TOKENS),
)


class Histogram:
    """Counts of values by upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str, labels: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum:.10g}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """What a server counts itself. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histograms: dict[str, dict[str, Histogram]] = {}  # by model, then by name
        self._ended: Counter[tuple[str, str]] = Counter()
        self._statuses: Counter[int] = Counter()
        self._began = time.time()

    def answered(self, model: str, stats: Stats, reason: str, seconds: float) -> None:
        """One answer that came to its end (finish reason), `seconds` after its request."""
        values = (
            ("vllm:time_to_first_token_seconds", stats.ttft_s),
            ("vllm:e2e_request_latency_seconds", seconds),
            ("vllm:request_queue_time_seconds", stats.queue_s),
            ("vllm:request_prefill_time_seconds", max(0.0, stats.ttft_s - stats.queue_s)),
            ("vllm:request_decode_time_seconds", max(0.0, seconds - stats.ttft_s)),
            ("vllm:request_prompt_tokens", stats.prompt_tokens),
            ("vllm:request_generation_tokens", stats.completion_tokens),
        )
        with self._lock:
            self._ended[model, reason] += 1
            for name, value in values:
                self._of(model)[name].add(value)

    def tokens(self, model: str, count: int, seconds: float) -> None:
        """`count` tokens of an answer, which came `seconds` after the one before them."""
        with self._lock:
            self._of(model)["vllm:inter_token_latency_seconds"].add(seconds / count, count)

    def _of(self, model: str) -> dict[str, Histogram]:
        if model not in self._histograms:
            self._histograms[model] = {name: Histogram(bounds) for name, _, bounds in _HISTOGRAMS}
        return self._histograms[model]

    def status(self, code: int) -> None:
        """One response by HTTP status."""
        with self._lock:
            self._statuses[code] += 1

    def text(self, models: Mapping[str, Counters], sights: Mapping[str, SightCounters] | None = None) -> str:
        """The whole document; models: name -> its scheduler's counters; sights: the same of those that see."""
        with self._lock:
            return "\n".join([*self._scheduler_lines(models), *_sight_lines(sights or {}), *self._own_lines()]) + "\n"

    def _scheduler_lines(self, models: Mapping[str, Counters]) -> Iterator[str]:
        for name, kind, text, field in _SCHEDULER:
            yield from _family(name, kind, text, ((_labels(m), getattr(c, field)) for m, c in models.items()))
        usage = ((_labels(m), c.pages_used / c.pages if c.pages else 0.0) for m, c in models.items())
        yield from _family("vllm:kv_cache_usage_perc", "gauge", "Share of the cache's pages in use, 0 to 1.", usage)

    def _own_lines(self) -> Iterator[str]:
        for name, text, _ in _HISTOGRAMS:
            yield from _head(name, "histogram", text)
            for model, histograms in self._histograms.items():
                yield from histograms[name].lines(name, _labels(model))
        ended = ((f'{_labels(m)},finished_reason="{reason}"', n) for (m, reason), n in sorted(self._ended.items()))
        yield from _family("vllm:request_success_total", "counter", "Answers that came to their end, by how.", ended)
        statuses = ((f'status="{code}"', count) for code, count in sorted(self._statuses.items()))
        yield from _family("gangpao:http_responses_total", "counter", "Responses by HTTP status.", statuses)
        yield "# HELP process_resident_memory_bytes Resident memory of the server."
        yield "# TYPE process_resident_memory_bytes gauge"
        yield f"process_resident_memory_bytes {rss_mb() * 1e6:.0f}"
        yield "# HELP process_open_fds Open file descriptors."
        yield "# TYPE process_open_fds gauge"
        yield f"process_open_fds {_open_files()}"
        yield "# HELP process_start_time_seconds When the server began, Unix time."
        yield "# TYPE process_start_time_seconds gauge"
        yield f"process_start_time_seconds {self._began:.3f}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _sight_lines(sights: Mapping[str, SightCounters]) -> Iterator[str]:
    for name, text, field in _SIGHT if sights else ():
        yield from _family(name, "counter", text, ((_labels(m), getattr(c, field)) for m, c in sights.items()))


def _family(name: str, kind: str, text: str, values: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield from _head(name, kind, text)
    for labels, value in values:
        yield f"{name}{{{labels}}} {value:.15g}"


def _labels(model: str) -> str:
    """vLLM's labels. It numbers its engines; here each model has one."""
    return f'model_name="{_escape(model)}",engine="0"'


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0  # a system without /proc
