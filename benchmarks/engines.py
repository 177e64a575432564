"""How each engine is measured: one number, in a process of its own, with the settings given.

Every engine answers the same question: tokens per second of a prefill of `prompt` tokens into an empty cache, or of
`decode` tokens behind a short context. Memory is the peak of the process as the kernel counts it. While a sample is
taken, the share of the machine that other processes used is noted, because a shared machine is the largest error here.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import builds
import peers

HERE = Path(__file__).resolve().parent
DECODE_CONTEXT = 8  # tokens before the first decoded one, where an engine needs some
QUIET = 0.05  # share of the machine
ATTEMPTS = 4
Settings = dict[str, str]


@dataclass(frozen=True, slots=True)
class Test:
    """What is measured: `prefill` of 512 tokens or `decode` of 64, say."""

    kind: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """tok/s, peak memory in bytes, share of the machine used by others (0 to 1), and what the engine says of itself.

    read_gb_per_s: what the memory gave in the same process, where the engine measures it (ours does), else 0;
    weights_gb_per_s: what a decode step read of weights.
    """

    tps: float
    peak_bytes: int
    others: float
    rss_bytes: int = 0
    says: str = ""
    read_gb_per_s: float = 0.0
    weights_gb_per_s: float = 0.0


def knobs(test: Test, num_cores: int) -> dict[str, list[str]]:
    """Settings of llama.cpp worth trying, its defaults first."""
    return {
        "threads": [str(num_cores), *([str(num_cores // 2)] if num_cores > 1 else [])],
        "flash": ["on", "off"],
        "repack": ["1", "0"],
        "load": ["mmap", "none"],
        "ubatch": ["512", "128"] if test.kind == "prefill" else ["512"],
    }


def measure(engine: str, model: Path, test: Test, settings: Settings) -> Sample:
    """One sample of "gangpao", "gangpao@COMMIT" (builds.py), "xllamacpp" or a variant of the native build.

    Raises ValueError when it fails.
    """
    if engine == "gangpao" or builds.is_build(engine):
        return ours(model, test, builds.environment(engine))
    if engine == "xllamacpp":
        return xllamacpp(model, test, settings)
    return llama_bench(engine, model, test, settings)


def measure_quietly(engine: str, model: Path, test: Test, settings: Settings) -> Sample:
    """A sample of a quiet moment: taken again, ATTEMPTS times in all, while others use more than QUIET of the machine;
    then the quietest. Engines differ in how they bear neighbours (spinning ones collapse), and that is another question.
    """
    samples: list[Sample] = []
    while not samples or (samples[-1].others > QUIET and len(samples) < ATTEMPTS):
        samples.append(measure(engine, model, test, settings))
    return min(samples, key=lambda s: s.others)


def ours(model: Path, test: Test, environment: Mapping[str, str]) -> Sample:
    """`gangpao bench`, with the settings that a user gets without asking."""
    prompt, decode = (test.tokens, 1) if test.kind == "prefill" else (DECODE_CONTEXT, test.tokens)
    # -P: the installed gangpao, not a folder that happens to be here.
    command = [
        sys.executable, "-P", "-m", "gangpao.cli", "bench", str(model),
        "--prompt-tokens", str(prompt), "--decode-tokens", str(decode), "--repeat", "1",
    ]  # fmt: skip
    out, peak, others = run(command, environment)
    lines = out.strip().splitlines()
    result = json.loads(lines[-1])
    kernels = next((line.partition(" ")[2].strip() for line in lines if line.startswith("kernels")), "")
    memory = result["gb_per_s"] / result["mbu"]
    return Sample(
        result[f"{test.kind}_tps"], peak, others, int(result["rss_mb"] * 1e6), kernels, memory, result["gb_per_s"]
    )


def llama_bench(variant: str, model: Path, test: Test, settings: Settings) -> Sample:
    """llama.cpp built here; llama-bench warms up with a run of its own."""
    prompt, decode = (test.tokens, 0) if test.kind == "prefill" else (0, test.tokens)
    command = [
        str(peers.llama_bench(variant)), "-m", str(model), "-p", str(prompt), "-n", str(decode), "-r", "1",
        "-o", "json", "-t", settings["threads"], "-fa", settings["flash"], "-ub", settings["ubatch"],
        "--repack", settings["repack"], "-lm", settings["load"],
    ]  # fmt: skip
    out, peak, others = run(command)
    result = json.loads(out)[0]
    return Sample(result["avg_ts"], peak, others, says=f"{result['backends']} on {result['cpu_info']}")


def xllamacpp(model: Path, test: Test, settings: Settings) -> Sample:
    """The prebuilt wheel of llama.cpp."""
    prompt, decode = (test.tokens, 0) if test.kind == "prefill" else (DECODE_CONTEXT, test.tokens)
    worker = str(HERE / "xllamacpp_worker.py")
    command = [sys.executable, worker, str(model), str(prompt), str(decode), json.dumps(settings)]
    out, peak, others = run(command)
    result = json.loads(out.strip().splitlines()[-1])
    return Sample(result["tps"], peak, others, says=result["system"])


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[str, int, float]:
    """Run to the end; stdout, peak memory in bytes, and the share of the machine that others used meanwhile."""
    before, start = busy_seconds(), time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode != 0:
            errors.seek(0)
            last = "\n".join(errors.read().splitlines()[-8:])
            raise ValueError(f"{' '.join(command)} ended with {process.returncode}:\n{last}")
    wall = time.monotonic() - start
    own = usage.ru_utime + usage.ru_stime
    others = max(0.0, busy_seconds() - before - own) / (wall * (os.cpu_count() or 1))
    return out, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), min(others, 1.0)


def busy_seconds() -> float:
    """CPU seconds spent by everyone on this machine so far, stolen ones included; 0 where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def best_settings(engine: str, model: Path, test: Test, num_cores: int) -> Settings:
    """Coordinate search over llama.cpp's settings: a change stays when it is more than 1 % faster."""
    options = knobs(test, num_cores)
    best = {name: values[0] for name, values in options.items()}
    if engine == "gangpao" or builds.is_build(engine):
        return {}
    tps = measure_quietly(engine, model, test, best).tps
    for name, values in options.items():
        for value in values[1:]:
            trial = best | {name: value}
            found = measure_quietly(engine, model, test, trial).tps
            if found > tps * 1.01:
                best, tps = trial, found
    return best
