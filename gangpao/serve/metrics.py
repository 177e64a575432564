"""Figures of a running server in Prometheus' text format, under names that dashboards for vLLM know.

Totals of the schedulers are read when somebody asks; only what nobody else counts is kept here: answers by status and two
histograms. What it gives up: a model that was unloaded takes its totals with it.
"""

import bisect
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from gangpao.engine.answer import Stats
from gangpao.engine.batch import Counters
from gangpao.serve.loading import rss_mb

_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# name, kind, help, field of Counters
_SCHEDULER = (
    ("num_requests_running", "gauge", "Answers in progress.", "running"),
    ("num_requests_waiting", "gauge", "Requests in the queue.", "waiting"),
    ("num_preemptions_total", "counter", "Answers that had to give their memory back and wait.", "preempted"),
    ("prompt_tokens_total", "counter", "Prompt tokens of the requests that began.", "prompt_tokens"),
    ("generation_tokens_total", "counter", "Tokens answered.", "completion_tokens"),
    ("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", "prompt_tokens"),
    ("prefix_cache_hits_total", "counter", "Prompt tokens found there.", "cached_tokens"),
    ("spec_decode_num_draft_tokens_total", "counter", "Tokens that speculation proposed.", "drafted"),
    ("spec_decode_num_accepted_tokens_total", "counter", "Proposed tokens that were the answer.", "accepted"),
    ("requests_finished_total", "counter", "Answers that came to their end.", "finished"),
    ("requests_cancelled_total", "counter", "Answers whose client left.", "cancelled"),
    ("requests_failed_total", "counter", "Answers that ended in an error of ours.", "failed"),
    ("requests_refused_total", "counter", "Requests refused because the queue was full.", "refused"),
    ("steps_total", "counter", "Passes over the weights.", "steps"),
    ("step_seconds_total", "counter", "Seconds in those passes.", "step_s"),
)


class Histogram:
    """Counts of seconds by upper bounds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(_BOUNDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """What a server counts itself. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first = Histogram()
        self._whole = Histogram()
        self._statuses: Counter[int] = Counter()
        self._began = time.time()

    def answered(self, stats: Stats, seconds: float) -> None:
        """One answer that came to its end, `seconds` after its request."""
        with self._lock:
            self._first.add(stats.ttft_s)
            self._whole.add(seconds)

    def status(self, code: int) -> None:
        """One response by HTTP status."""
        with self._lock:
            self._statuses[code] += 1

    def text(self, models: Mapping[str, Counters]) -> str:
        """The whole document; models: name -> its scheduler's counters."""
        with self._lock:
            return "\n".join([*self._scheduler_lines(models), *self._own_lines()]) + "\n"

    def _scheduler_lines(self, models: Mapping[str, Counters]) -> Iterator[str]:
        for name, kind, text, field in _SCHEDULER:
            values = ((f'{{model_name="{_escape(m)}"}}', getattr(c, field)) for m, c in models.items())
            yield from _family(name, kind, text, values)
        usage = ((f'{{model_name="{_escape(m)}"}}', c.pages_used / c.pages) for m, c in models.items() if c.pages)
        yield from _family("kv_cache_usage_perc", "gauge", "Share of the cache's pages in use, 0 to 1.", usage)

    def _own_lines(self) -> Iterator[str]:
        for name, text, histogram in (
            ("time_to_first_token_seconds", "From the request to the first token.", self._first),
            ("e2e_request_latency_seconds", "From the request to the end of the answer.", self._whole),
        ):
            yield from _head(name, "histogram", text)
            yield from histogram.lines(f"gangpao:{name}")
        statuses = ((f'{{status="{code}"}}', count) for code, count in sorted(self._statuses.items()))
        yield from _family("http_responses_total", "counter", "Responses by HTTP status.", statuses)
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
    yield f"# HELP gangpao:{name} {text}"
    yield f"# TYPE gangpao:{name} {kind}"


def _family(name: str, kind: str, text: str, values: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield from _head(name, kind, text)
    for labels, value in values:
        yield f"gangpao:{name}{labels} {value:.10g}"


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0  # a system without /proc
