"""The result of against_llama.py as Markdown and as JSON: medians, ratios round by round, memory, machine."""

import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import builds
import peers
from engines import QUIET, Sample, Settings, Test

GOALS = {"decode": 1.3, "prefill": 1.5}
MEMORY_GOAL = 1.35


@dataclass(frozen=True, slots=True)
class Measured:
    """One model: settings and samples by (engine, kind of test)."""

    name: str
    file_bytes: int
    settings: dict[tuple[str, str], Settings]
    samples: dict[tuple[str, str], list[Sample]]

    def engines(self) -> list[str]:
        """Engine names in the order they ran."""
        return list(dict.fromkeys(engine for engine, _ in self.samples))

    def median(self, engine: str, kind: str) -> float:
        """Median tok/s."""
        return statistics.median(s.tps for s in self.samples[engine, kind])

    def best_peer(self, kind: str) -> str | None:
        """The fastest engine that is not ours."""
        rivals = [e for e in self.engines() if e != "gangpao" and not builds.is_build(e)]
        return max(rivals, key=lambda e: self.median(e, kind)) if rivals else None

    def ratios(self, kind: str, other: str | None = None) -> list[float]:
        """Ours / other (not given: the best peer) of each round, in order; empty where one of them was not measured."""
        peer = other or self.best_peer(kind)
        if peer is None or "gangpao" not in self.engines():
            return []
        pairs = zip(self.samples["gangpao", kind], self.samples[peer, kind], strict=True)
        return [mine.tps / theirs.tps for mine, theirs in pairs]

    def shares(self, kind: str) -> list[float]:
        """Of what the memory gave in the same process, what our decoding read of weights; empty for a prefill."""
        rows = self.samples.get(("gangpao", kind), []) if kind == "decode" else []
        return [s.weights_gb_per_s / s.read_gb_per_s for s in rows if s.read_gb_per_s]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def summary(measured: Measured, tests: Sequence[Test]) -> dict[str, object]:
    """What a program wants to know of one model."""
    out: dict[str, object] = {"file_mb": round(measured.file_bytes / 1e6, 1)}
    for test in tests:
        row: dict[str, object] = {e: round(measured.median(e, test.kind), 2) for e in measured.engines()}
        row["best_peer"] = measured.best_peer(test.kind)
        if ratios := measured.ratios(test.kind):
            low, middle, high = quartiles(ratios)
            row |= {"ratio": round(middle, 3), "ratio_q1": round(low, 3), "ratio_q3": round(high, 3)}
        for earlier in filter(builds.is_build, measured.engines()):
            if ratios := measured.ratios(test.kind, earlier):
                row[f"ratio_to_{earlier}"] = round(statistics.median(ratios), 3)
        if share := measured.shares(test.kind):
            row["share_of_bandwidth"] = round(statistics.median(share), 3)
        out[test.kind] = row
    if "gangpao" in measured.engines():
        rss, peak = memory(measured)
        out |= {"rss_mb": round(rss / 1e6, 1), "rss_over_file": round(rss / measured.file_bytes, 3)}
        out["peak_mb"] = round(peak / 1e6, 1)
    return out


def memory(measured: Measured) -> tuple[int, int]:
    """Our largest resident memory after a run, and at its peak, in bytes."""
    samples = [s for (engine, _), rows in measured.samples.items() if engine == "gangpao" for s in rows]
    return max(s.rss_bytes for s in samples), max(s.peak_bytes for s in samples)


def markdown(measured: Sequence[Measured], tests: Sequence[Test], environment: dict[str, str]) -> str:
    """The whole report."""
    what = " and ".join(f"{t.kind} of {t.tokens} tokens" for t in tests)
    lines = [f"# Ours against llama.cpp: {what}", "", "| | |", "|-|-|"]
    lines += [f"| {name} | {value} |" for name, value in environment.items()]
    for one in measured:
        lines += ["", f"## {one.name} ({one.file_bytes / 1e6:,.0f} MB)", ""]
        lines += speed_table(one, tests)
        if "gangpao" in one.engines():
            rss, peak = memory(one)
            lines += [
                "",
                f"Our memory: {rss / 1e6:,.0f} MB resident after the run, {rss / one.file_bytes:.2f} x the file (goal: at most "
                f"{MEMORY_GOAL}); {peak / 1e6:,.0f} MB at the peak, with the buffer that `gangpao bench` measures "
                "bandwidth with.",
            ]
        loud = sum(s.others > QUIET for rows in one.samples.values() for s in rows)
        if loud:
            lines += ["", f"**{loud} samples are of moments when others used more than {QUIET:.0%} of the machine.**"]
        lines += ["", "Samples in the order of the rounds; in brackets the share of the machine that others used.", ""]
        for (engine, kind), rows in one.samples.items():
            lines.append(f"- {kind}, {engine}: " + ", ".join(f"{s.tps:.1f} ({s.others:.0%})" for s in rows))
        lines += ["", "What the engines say of themselves:", ""]
        says = {e: rows[0].says for (e, _), rows in one.samples.items()}
        lines += [f"- {engine}: {text}" for engine, text in says.items()]
    return "\n".join(lines) + "\n"


def speed_table(one: Measured, tests: Sequence[Test]) -> list[str]:
    """Medians of every engine, then our ratio to the best of the others."""
    lines = ["| test | engine | settings | tok/s (median) | quartiles | peak MB |", "|-|-|-|-:|-|-:|"]
    for test in tests:
        for engine in one.engines():
            rows = one.samples[engine, test.kind]
            low, middle, high = quartiles([s.tps for s in rows])
            chosen = " ".join(f"{k}={v}" for k, v in one.settings[engine, test.kind].items()) or "none to choose"
            peak = max(s.peak_bytes for s in rows) / 1e6
            lines.append(
                f"| {test.kind} | {engine} | {'its own' if engine == 'gangpao' else chosen} | {middle:.1f} | "
                f"{low:.1f} to {high:.1f} | {peak:,.0f} |"
            )
    for test in tests:
        if ratios := one.ratios(test.kind):
            low, middle, high = quartiles(ratios)
            lines += [
                "",
                f"**{test.kind}: {middle:.2f} x the best peer** ({one.best_peer(test.kind)}; quartiles {low:.2f} to "
                f"{high:.2f} over {len(ratios)} rounds; goal {GOALS[test.kind]}).",
            ]
            if memory := [s.read_gb_per_s for s in one.samples["gangpao", test.kind] if s.read_gb_per_s]:
                pairs = zip(ratios, memory, strict=True)
                lines += [
                    "",
                    "Round by round, with what the memory gave: "
                    + ", ".join(f"{r:.2f} ({m:.0f} GB/s)" for r, m in pairs),
                ]
        lines += _builds_and_bytes(one, test)
    return lines


def _builds_and_bytes(one: Measured, test: Test) -> list[str]:
    """What an older build of ours did in the same rounds, and the share of the bandwidth that decoding uses."""
    lines = []
    for earlier in filter(builds.is_build, one.engines()):
        if ratios := one.ratios(test.kind, earlier):
            low, middle, high = quartiles(ratios)
            lines += ["", f"**{test.kind}: {middle:.3f} x {earlier}** (quartiles {low:.3f} to {high:.3f})."]
    if share := one.shares(test.kind):
        low, middle, high = quartiles(share)
        read = statistics.median(s.weights_gb_per_s for s in one.samples["gangpao", test.kind])
        lines += [
            "",
            f"Weights are read at {read:.1f} GB/s, {middle:.0%} of what the memory gave in the same process "
            f"(quartiles {low:.0%} to {high:.0%}).",
        ]
    return lines


def environment(root: Path) -> dict[str, str]:
    """The machine, the versions and the commit."""
    compiler = peers.recipe("native")["compiler"]
    return {
        "date": date.today().isoformat(),
        "commit": commit(root),
        "CPU": f"{cpu_name()}, {os.cpu_count()} cores seen by the system",
        "CPU features": ", ".join(
            sorted(f for f in peers.cpu_flags() if re.match(r"avx|amx|fma$|f16c|asimd|sve|i8mm", f))
        ),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB{bandwidth()}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "llama.cpp, native": f"{peers.PACKAGE} {peers.VERSION}, {compiler}, -march=native, patched (see peers.py)",
        "llama.cpp, wheel": f"xllamacpp {version('xllamacpp')}",
    }


def bandwidth() -> str:
    """What the memory gives, measured by our kernels in a process of its own."""
    code = "from gangpao import kernels; print(max(kernels.read_bandwidth() for _ in range(3)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    return f", read at {float(done.stdout):.1f} GB/s" if done.returncode == 0 else ""


def version(package: str) -> str:
    """Installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit(root: Path) -> str:
    """Short hash of the checkout, marked when files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def cpu_name() -> str:
    """What the CPU calls itself."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def hardware_slug() -> str:
    """A file name part for this machine: CPU, best instruction set, cores."""
    name = re.sub(r"\((?:R|TM)\)|@.*|\b(?:CPU|Processor)\b", "", cpu_name())
    flags = peers.cpu_flags()
    best = next((f for f in ("amx_int8", "avx512f", "avx2", "asimd") if f in flags), "")
    parts = [*re.findall(r"[a-z0-9.]+", name.lower()), best.partition("_")[0], f"{os.cpu_count()}c"]
    return "-".join(filter(None, parts))
