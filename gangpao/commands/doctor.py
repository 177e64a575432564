"""`gangpao doctor`: what this machine is, which models it can hold, and how fast they will be.

The speed is a forecast, not a measurement. Decoding reads every weight once a token, so

    expected tok/s = EFFICIENCY x measured read bandwidth / file bytes

with the efficiency our kernels reach on real models (benchmarks/results). `gangpao bench NAME` measures. Memory uses
the catalog's own estimate, the same that chooses the default model.
"""

import contextlib
import json
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import gangpao
from gangpao import catalog, cost, kernels, machine
from gangpao.commands import options as opt
from gangpao.commands.model import find
from gangpao.commands.model.sight import sight_of
from gangpao.engine.memory import EngineOptions
from gangpao.engine.vision.opened import sight_bytes
from gangpao.options import Fields, command_of
from gangpao.units import show_bytes, table

EFFICIENCY = 0.6
WATCH_S = 0.5  # at least, to see what others do
# Instruction sets that matter for our kernels, as /proc/cpuinfo spells them (x86, then ARM).
FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "sve", "sme",
)  # fmt: skip


@command_of()
def doctor(
    as_json: opt.Json = False,
    *,
    options: Annotated[EngineOptions, Fields(EngineOptions, ("threads",))],
    cost_profile: opt.CostProfile = None,
) -> None:
    """Say what this machine can run, and how fast."""
    facts = examine(options.threads, cost_profile)
    print(json.dumps(facts, ensure_ascii=False) if as_json else report(facts))


def examine(threads: int | None = None, cost_profile: str | None = None) -> dict[str, Any]:
    """Everything the report says, as JSON: bytes, GB/s (1e9), tokens a second."""
    profile_name, profile = cost.get_profile(cost_profile)
    kernels.set_num_threads(threads or machine.physical_cores())
    # Neighbours on the machine can only take bandwidth away, so the best of three is the nearest to the truth.
    watch, start = machine.Watch(), time.monotonic()
    bandwidth = max(kernels.read_bandwidth() for _ in range(3))
    time.sleep(max(0.0, WATCH_S - (time.monotonic() - start)))
    busy = watch.read()
    memory, store = machine.available_memory(), catalog.models_dir()
    models = [_model(name, entry, memory, bandwidth) for name, entry in catalog.load().models.items() if entry.engine]
    for model in models:
        speed = model["expected_tps"]
        model["tokens_per_yuan"] = round(cost.tokens_per_yuan(profile, speed)) if speed else None
    return {
        "gangpao": gangpao.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": machine.cpu_name(),
        "features": cpu_features(),
        "kernels": kernels.describe(),
        "isa": kernels.isa_name(),
        "physical_cores": machine.physical_cores(),
        "logical_cores": machine.logical_cores(),
        "threads": kernels.num_threads(),
        "memory_bytes": machine.total_memory(),
        "memory_available_bytes": memory,
        "read_gb_per_s": round(bandwidth, 2),
        "others_cpus": None if busy.others is None else round(busy.others, 2),
        "steal": round(busy.steal, 3),
        "load_1m": None if busy.load is None else round(busy.load, 2),
        "quiet": busy.is_quiet,
        "machine": str(busy),
        "disk_free_bytes": machine.free_disk(store),
        "store": str(store),
        "store_bytes": catalog.size_of(store) if store.is_dir() else 0,
        "installed": sorted(catalog.installed()),
        "sees": _seeing(),
        "cost_profile": profile_name,
        "models": models,
        "largest": catalog.largest_fitting(memory),
        "next": _next(memory, store),
    }


def _seeing() -> dict[str, int]:
    """Installed models that see -> bytes of memory that this takes beside the model, as far as the files tell."""
    found = {}
    for name, path in catalog.installed().items():
        if path.suffix == ".gguf" and (sight := sight_of(path, name)) is not None:
            with contextlib.suppress(ValueError, OSError):  # a damaged file is told of where it is used
                found[name] = sight_bytes(sight) or 0
    return found


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Which of FEATURES the CPU reports; empty where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = next(
        (line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))), []
    )
    return [name for name in FEATURES if name in flags]


def _model(name: str, entry: catalog.Entry, memory: int, bandwidth: float) -> dict[str, Any]:
    known = entry.bytes > 0
    needed = catalog.memory_needed(entry) if known else None
    return {
        "name": name,
        "bytes": entry.bytes or None,
        "memory_needed_bytes": needed,
        "fits": needed <= memory if needed is not None else None,
        "expected_tps": round(EFFICIENCY * bandwidth * 1e9 / entry.bytes, 1) if known else None,
    }


def _next(memory: int, store: Path) -> str:
    try:
        name, why = catalog.default_model(memory, machine.free_disk(store), find.usable())
    except ValueError as error:
        return str(error)
    if name in catalog.installed():
        return f"gangpao chat   ({why})"
    return f"gangpao pull {name}   ({why})"


def report(facts: dict[str, Any]) -> str:
    """The facts for a person."""
    rows = [
        ("gangpao", f"{facts['gangpao']}, Python {facts['python']}, {facts['system']}"),
        ("processor", facts["cpu"]),
        ("features", " ".join(facts["features"]) or "unknown"),
        ("kernels", facts["kernels"]),
        ("cores", f"{facts['physical_cores']} ({facts['logical_cores']} hardware threads), {facts['threads']} in use"),
        ("memory", f"{show_bytes(facts['memory_available_bytes'])} free of {show_bytes(facts['memory_bytes'])}"),
        ("bandwidth", f"{facts['read_gb_per_s']:.1f} GB/s read with {facts['threads']} threads"),
        ("machine", facts["machine"]),
        ("disk", f"{show_bytes(facts['disk_free_bytes'])} free for models in {facts['store']}"),
        ("store", f"{show_bytes(facts['store_bytes'])}: {', '.join(facts['installed']) or 'no models yet'}"),
    ]
    if facts["sees"]:
        rows.append(("sees", ", ".join(f"{name} (+ {show_bytes(size)})" for name, size in facts["sees"].items())))
    models = [
        [
            m["name"],
            show_bytes(m["bytes"]) if m["bytes"] else "?",
            show_bytes(m["memory_needed_bytes"]) if m["bytes"] else "?",
            {True: "yes", False: "no", None: "?"}[m["fits"]],
            f"{m['expected_tps']:.0f}" if m["expected_tps"] else "?",
            f"{m['tokens_per_yuan']:,}" if m["tokens_per_yuan"] else "?",
        ]
        for m in facts["models"]
    ]
    head = ["model", "size", "memory", "fits", "tok/s", "tokens per yuan"]
    return "\n".join(
        [
            *(f"{name:10} {value}" for name, value in rows),
            "",
            table(head, models),
            f"(tok/s expected: {EFFICIENCY} x bandwidth / size; yuan by cost profile {facts['cost_profile']})",
            "",
            f"largest that fits: {facts['largest'] or 'none'}",
            f"next: {facts['next']}",
        ]
    )
