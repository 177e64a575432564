"""`gangpao bench --share`: a row for the table of devices, which its owner may post; nothing is asked and nothing is sent.

What the row says of a machine is its kind: maker and model, processor, memory, system. No name of a host or a user, no serial
number and no path is read.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gangpao
from gangpao import kernels, machine
from gangpao.units import show_bytes

# What boards without a name of their own write there.
_NOTHING = ("", "none", "unknown", "default string", "system product name", "to be filled by o.e.m.", "not specified")
_LENGTH = 80
HEAD = (
    "device", "processor", "memory", "system", "kernels", "threads", "model", "type", "prefill tok/s", "decode tok/s",
    "resident MB", "load s", "quiet", "gangpao", "date",
)  # fmt: skip


def facts(model: Mapping[str, Any], result: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of a row: the device, the model (suite.file_facts), what was measured (bench.Result) and how."""
    return {
        "device": device(),
        "processor": processor(),
        "memory_bytes": machine.total_memory(),
        "cores": machine.physical_cores(),
        "system": system(),
        "python": platform.python_version(),
        "isa": kernels.isa_name(),
        "kernels": kernels.describe(),
        "threads": kernels.num_threads(),
        "model": dict(model),
        **settings,
        **result,
        "gangpao": gangpao.__version__,
        "commit": machine.git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The facts as a table of one row, in Markdown."""
    model = found["model"]
    cells = [
        found["device"],
        found["processor"],
        show_bytes(found["memory_bytes"]),
        found["system"],
        found["isa"],
        str(found["threads"]),
        model["name"],
        model["type"],
        f"{found['prefill_tps']:.1f} ({found['prompt_tokens']})",
        f"{found['decode_tps']:.1f} ({found['decode_tokens']})",
        f"{found['rss_mb']:,.0f}",
        f"{found['load_s']:.1f}",
        {None: "?", True: "yes", False: "no"}[found["quiet"]],
        found["gangpao"],
        found["date"],
    ]
    lines = [HEAD, ["-"] * len(HEAD), [_cell(cell) for cell in cells]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A text that cannot leave its cell."""
    kept = "".join(c for c in text if c.isprintable()).replace("\\", "").replace("|", "/").strip()
    return kept[:_LENGTH] or "?"


# --- what the machine is


def device(root: Path = machine.ROOT) -> str:
    """Maker and model, as far as the system tells: Android's properties, macOS's sysctl, the device tree, the board's table;
    "" where nothing does."""
    if root == machine.ROOT and sys.platform == "darwin":
        return _named(_output("sysctl", "-n", "hw.model"))
    android = _properties(root)
    parts = [
        " ".join(dict.fromkeys(_named(android(name)) for name in ("ro.product.manufacturer", "ro.product.model"))),
        _named(_text(root / "proc/device-tree/model")),
        " ".join(_named(_text(root / "sys/devices/virtual/dmi/id" / name)) for name in ("sys_vendor", "product_name")),
    ]
    return next((part.strip() for part in parts if part.strip()), "")


def processor(root: Path = machine.ROOT) -> str:
    """The chip: of a phone its maker's number for it (SM8150), else the processor as it calls itself."""
    android = _properties(root)
    chips = (
        " ".join(_named(android(name)) for name in ("ro.soc.manufacturer", "ro.soc.model")),
        _named(android("ro.board.platform")),
        _arm_parts(root),
        machine.cpu_name(root),
    )
    return next((chip.strip() for chip in chips if chip.strip()), "")


def system() -> str:
    """The operating system with its version, and the machine's kind."""
    android = _properties(machine.ROOT)("ro.build.version.release")
    if android:
        return f"Android {android} {platform.machine()}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"


# ARM's own cores by the number in /proc/cpuinfo: what a board without a name of its chip still tells.
_ARM_CORES = {
    "0xd03": "A53", "0xd04": "A35", "0xd05": "A55", "0xd07": "A57", "0xd08": "A72", "0xd09": "A73", "0xd0a": "A75", "0xd0b": "A76",
    "0xd0c": "N1", "0xd0d": "A77", "0xd40": "V1", "0xd41": "A78", "0xd44": "X1", "0xd46": "A510", "0xd47": "A710", "0xd48": "X2",
    "0xd49": "N2", "0xd4d": "A715", "0xd4e": "X3", "0xd80": "A520", "0xd81": "A720", "0xd82": "X4", "0xd85": "X925",
    "0xd87": "A725",
}  # fmt: skip


def _arm_parts(root: Path) -> str:
    """ "4 x A73, 4 x A53" from /proc/cpuinfo; "" elsewhere."""
    counts: dict[str, int] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "CPU part":
            name = _ARM_CORES.get(value.strip(), value.strip())
            counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} x {name}" for name, count in reversed(counts.items()))


def _properties(root: Path) -> Any:
    """Android's properties by name; of another system nothing. A test's folder has them as files."""
    if root != machine.ROOT:
        return lambda name: _text(root / "getprop" / name)
    return (lambda name: _output("getprop", name)) if sys.platform == "android" or _is_android() else (lambda name: "")


def _is_android() -> bool:
    """Whether a Linux is Android's: before Python 3.13 it called itself linux there."""
    return hasattr(sys, "getandroidapilevel")


def _named(text: str) -> str:
    words = " ".join(text.replace("\0", " ").split())
    return "" if words.lower() in _NOTHING else words


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
