"""The phone page on this machine: what loading costs, and tokens a second of the model inside a browser.

A server of ours gives the page and the model to a headless chromium, the network is switched off, and the page's own
backend (web/backend-device.js) answers one question some times, with one thread and with all. Beside it stands the
same question put to the server, which computes with our engine on the same machine: what a browser costs.

    python benchmarks/phone_page.py --out     writes benchmarks/results/phone_page_<hardware>_<date>.md

Needs chromium, playwright, the model, and the browser libraries (fetched if they are missing). Prints one JSON line last.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import report

from gangpao import catalog, machine
from gangpao.serve.app import running
from gangpao.serve.pages import libraries
from gangpao.serve.server import Server, Settings

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "Explain in a few sentences what a hash table is, and when it is slow."
WAIT_MS = 300_000

# The page's own modules, so that what is measured is what a reader gets.
LOAD = """async (threads) => {
    const { DeviceBackend } = await import("/web/backend-device.js");
    const { ModelStore } = await import("/web/model-store.js");
    const store = new ModelStore(() => ({}));
    const [model] = await store.kept();
    await globalThis.measured?.unload();
    globalThis.measured = new DeviceBackend({ device: { threads } });
    const start = performance.now();
    const { threads: used } = await globalThis.measured.load(model, await store.open(model));
    return { load_s: (performance.now() - start) / 1000, threads: used, isolated: crossOriginIsolated };
}"""
ASK = """async ([question, tokens]) => {
    const params = { temperature: 0, max_tokens: tokens, ignore_eos: true, cache_prompt: false };
    const request = { messages: [{ role: "user", content: question }], params };
    const start = performance.now();
    let first = 0, timings = {};
    for await (const part of globalThis.measured.chat(request, new AbortController().signal)) {
        if (part.text) first ||= performance.now();
        if (part.timings) timings = part.timings;
    }
    return { first_s: (first - start) / 1000, decode_tps: timings.predicted_per_second,
             prefill_tps: timings.prompt_per_second, tokens: timings.predicted_n };
}"""


@dataclass(frozen=True, slots=True)
class Row:
    """Answers with one number of threads: seconds to load, then a sample an answer."""

    name: str
    load_s: float
    decode_tps: list[float]
    prefill_tps: list[float]
    first_s: list[float]


def in_browser(url: str, threads: Sequence[int], tokens: int, rounds: int) -> tuple[float, list[Row]]:
    """Seconds from opening the page to a model that is ready, and a row for each number of threads, offline."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise SystemExit("no chromium here: install it (Debian: chromium)")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        context = browser.new_context()
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        start = time.perf_counter()
        page.goto(f"{url}/phone")
        page.click(".card .primary")
        page.wait_for_selector(".device.ready")
        ready_s = time.perf_counter() - start
        page.evaluate("navigator.serviceWorker.ready.then(() => 0)")
        context.set_offline(True)
        page.evaluate("localStorage.clear()")  # the page itself must not load the model a second time
        page.reload()
        page.wait_for_selector("body[data-device]")
        rows = [_row(page, count, tokens, rounds) for count in threads]
        browser.close()
    return ready_s, rows


def _row(page: Any, threads: int, tokens: int, rounds: int) -> Row:
    loaded = page.evaluate(LOAD, threads)
    page.evaluate(ASK, [QUESTION, 8])  # warms up, does not count
    samples = [page.evaluate(ASK, [QUESTION, tokens]) for _ in range(rounds)]
    name = f"browser, {loaded['threads']} thread{'s' if loaded['threads'] > 1 else ''}"
    columns = [[sample[key] for sample in samples] for key in ("decode_tps", "prefill_tps", "first_s")]
    return Row(name, loaded["load_s"], *columns)


def on_server(url: str, model: str, tokens: int, rounds: int) -> Row:
    """The same question to the server's own engine."""
    body = {
        "model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": tokens,
    }  # fmt: skip
    with httpx2.Client(base_url=url, timeout=300) as http:
        answers = [http.post("/v1/chat/completions", json=body).json()["timings"] for _ in range(rounds + 1)][1:]
    columns = [[answer[key] for answer in answers] for key in ("decode_tps", "prefill_tps", "ttft_s")]
    return Row(f"server, {machine.physical_cores()} threads", 0.0, *columns)


def markdown(model: str, size: int, ready_s: float, rows: Sequence[Row], args: argparse.Namespace) -> str:
    """The report."""
    facts = {
        "date": date.today().isoformat(),
        "commit": report.commit(ROOT),
        "CPU": f"{report.cpu_name()}, {os.cpu_count()} cores seen by the system",
        "load before": f"{os.getloadavg()[0]:.1f} (1 minute)",
        "browser library": next(
            f"{p.package} {p.version}" for p in libraries.LIBRARIES if p.package == "@wllama/wllama"
        ),
        "model": f"{model}, {size / 1e6:.1f} MB",
        "from an empty browser to ready": f"{ready_s:.1f} s, download over the loopback interface included",
    }
    lines = ["# The phone page: a model inside the browser", "", "| | |", "|-|-|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += [
        "",
        f"{args.tokens} tokens, {args.rounds} rounds, network off; medians (all samples in brackets).",
        "",
        "| where | decode tok/s | prefill tok/s | first token s | load s |", "|-|-:|-:|-:|-:|",
    ]  # fmt: skip
    lines += [
        f"| {row.name} | {_shown(row.decode_tps)} | {_shown(row.prefill_tps)} | {_shown(row.first_s, 2)} | "
        f"{f'{row.load_s:.1f}' if row.load_s else ''} |"
        for row in rows
    ]
    lines += [
        "",
        "The server keeps the prompt between rounds, so its prefill and first token are those of a known prompt.",
    ]
    return "\n".join(lines) + "\n"


def _shown(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report, and the summary as one JSON line."""
    parser = argparse.ArgumentParser(description="The phone page's model in a headless browser.")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a catalog name that is installed")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="answers for each number of threads")
    parser.add_argument("--out", action="store_true", help="write the result file")
    args = parser.parse_args(argv)
    libraries.fetch({"chat", "phone"})
    path = catalog.resolve(args.model)
    threads = sorted({1, os.cpu_count() or 1})
    with running(Server(Settings({args.model: path}, port=0, context=2048))) as url:
        ready_s, rows = in_browser(url, threads, args.tokens, args.rounds)
        rows.append(on_server(url, args.model, args.tokens, args.rounds))
    text = markdown(args.model, path.stat().st_size, ready_s, rows, args)
    print(text)
    if args.out:
        target = ROOT / f"benchmarks/results/phone_page_{report.hardware_slug()}_{date.today().isoformat()}.md"
        target.write_text(text, encoding="utf-8")
    print(
        json.dumps(
            {row.name: round(statistics.median(row.decode_tps), 2) for row in rows} | {"ready_s": round(ready_s, 2)}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
