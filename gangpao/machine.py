"""What this machine has: memory, disk and processor, as far as this process may use them.

The idea: ask the kernel, then believe the narrowest fence around us. In a container /proc/meminfo shows the host, and
the control group (version 1 or 2, at any level above us) says what really may be used; the same for cores.

A Watch says what others did with the processors while something was measured; git_commit says which code ran.

What it gives up: huge pages, NUMA and swap are not looked at; on macOS the figures come from sysctl and vm_stat.
"""

import ctypes
import functools
import ipaddress
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX, _NEVER = -1, -3, -8, (1 << 31) - 1  # of malloc.h


def is_loopback(host: str) -> bool:
    """Whether a host name or address (an IPv6 one in brackets or not) is this machine, reached by nobody else."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def available_memory(root: Path = ROOT) -> int:
    """Bytes this process may still take without swapping: MemAvailable and every control group limit above us."""
    if sys.platform == "darwin" and root == ROOT:
        return _mac_available()
    have = _meminfo(root).get("MemAvailable", 0) or total_memory(root)
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit is None:
            continue
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        # File pages that the kernel drops on demand are counted as used; they are not in the way.
        used -= min(used, _stat(group / "memory.stat", ("inactive_file", "total_inactive_file")))
        have = min(have, max(0, limit - used))
    return have


def total_memory(root: Path = ROOT) -> int:
    """Bytes of memory in the machine, or of the control group where that is less."""
    if sys.platform == "darwin" and root == ROOT:
        return int(_output("sysctl", "-n", "hw.memsize") or 0)
    have = _meminfo(root).get("MemTotal", 0)
    if not have and root == ROOT:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        have = min(have, limit) if limit else have
    return have


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it allocates next, where the C library is glibc; whether it does.

    A training step frees and allocates the same hundreds of megabytes again and again. By default glibc gives blocks of that
    size back to the system, and every page of the next one is cleared and mapped anew. Threads that begin later share what is
    kept, else each would keep its own: with two lanes (gangpao/train/step/lanes.py) a third more memory for the same speed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    wanted = ((_TRIM_THRESHOLD, _NEVER), (_MMAP_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(option, value) for option, value in wanted)


def free_disk(path: Path) -> int:
    """Bytes free for us on the disk that holds this path, or would hold it."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def cpu_name(root: Path = ROOT) -> str:
    """The processor as it calls itself."""
    if sys.platform == "darwin" and root == ROOT:
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    found = _cpuinfo(root, "model name", "Hardware", "Model", "cpu model")
    return found if found is not None else platform.processor() or platform.machine()


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """The instructions that the processor names in Linux (flags; on ARM, Features); elsewhere none."""
    return frozenset((_cpuinfo(root, "flags", "Features") or "").split())


def cpu_vendor(root: Path = ROOT) -> str:
    """Who made an x86 processor, as Linux says it (GenuineIntel, AuthenticAMD); elsewhere empty."""
    return _cpuinfo(root, "vendor_id") or ""


def _cpuinfo(root: Path, *names: str) -> str | None:
    """The first value that Linux gives under one of these names; None where there is none."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return None


def logical_cores() -> int:
    """Hardware threads this process may run on: the affinity mask where there is one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores(root: Path = ROOT) -> int:
    """Cores this process may keep busy: affinity, hardware threads counted once, and the control group's quota."""
    if sys.platform == "darwin" and root == ROOT:
        return int(_output("sysctl", "-n", "hw.physicalcpu") or 0) or logical_cores()
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in allowed:
        listed = _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip()
        siblings.add(listed or str(cpu))
    quota = cpu_quota(root)
    return max(1, min(len(siblings), math.ceil(quota)) if quota else len(siblings))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the control group grants, or None where it sets no limit."""
    found: list[float] = []
    for group in _groups(root, "cpu"):
        parts = _text(group / "cpu.max").split()
        if len(parts) == 2 and parts[0].isdigit() and int(parts[1]):
            found.append(int(parts[0]) / int(parts[1]))
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota and period:
            found.append(quota / period)
    return min(found) if found else None


@dataclass(frozen=True, slots=True)
class Busy:
    """How busy others kept the processors that we may use. others: in processors, None where the system does not say;
    steal: share of time that the host gave to its other guests; load: average run queue of the last minute, None where the
    system does not say (an app on Android may not look)."""

    cpus: int
    others: float | None
    steal: float
    load: float | None

    @property
    def known(self) -> bool:
        """Whether the system says what others do."""
        return self.others is not None or self.load is not None

    @property
    def is_quiet(self) -> bool:
        """Whether figures that were measured meanwhile can be taken for this machine's."""
        used = self.others if self.others is not None else max(0.0, (self.load or 0.0) - 1)
        return self.known and used < 0.1 * self.cpus and self.steal < 0.05

    def __str__(self) -> str:
        if not self.known:
            return "unknown: this system does not say what others do with its CPUs; close other programs and repeat"
        share = "unknown" if self.others is None else f"{self.others:.1f}"
        load = "unknown" if self.load is None else f"{self.load:.1f}"
        seen = f"other processes used {share} of {self.cpus} CPUs meanwhile, steal {self.steal:.0%}, load {load}"
        if self.is_quiet:
            return f"quiet ({seen})"
        return f"BUSY: {seen}; the figures are lower than this machine can do, repeat when it is quiet"


class Watch:
    """Looks at the processors from its making to `read`."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._cpus = (
            sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        )
        self._start = self._now()

    def read(self) -> Busy:
        """What others did since the beginning."""
        (clock, ours, busy, stolen, total), now = self._start, self._now()
        wall, ticks = now[0] - clock, now[4] - total
        others = (
            None
            if ticks <= 0 or wall <= 0
            else max(0.0, (now[2] - busy) / ticks * len(self._cpus) - (now[1] - ours) / wall)
        )
        steal = (now[3] - stolen) / ticks if ticks > 0 else 0.0
        return Busy(len(self._cpus), others, steal, load_average())

    def _now(self) -> tuple[float, float, int, int, int]:
        """Wall clock, our own seconds of processor, and ticks of our processors: busy, stolen, all."""
        busy = stolen = total = 0
        wanted = {f"cpu{number}" for number in self._cpus}
        for line in _text(self._root / "proc/stat").splitlines():
            name, *words = line.split()
            if name in wanted and all(word.isdigit() for word in words) and len(words) >= 8:
                user, nice, system, idle, iowait, irq, softirq, steal = map(int, words[:8])
                busy += user + nice + system + irq + softirq
                stolen += steal
                total += user + nice + system + idle + iowait + irq + softirq + steal
        ours = os.times()
        return time.monotonic(), ours.user + ours.system, busy, stolen, total


def load_average() -> float | None:
    """Average run queue of the last minute, None where the system does not say (Termux's Python has no such function)."""
    ask = getattr(os, "getloadavg", None)
    try:
        return float(ask()[0]) if ask else None
    except OSError:
        return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups around us, ours first; both versions. Missing folders come too and read empty."""
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top = base
        elif controller in controllers.split(","):
            top = base / controllers if (base / controllers).is_dir() else base / controller
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:depth])


def _meminfo(root: Path) -> dict[str, int]:
    out = {}
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            out[key] = int(words[0]) * 1024
    return out


def _stat(path: Path, keys: tuple[str, ...]) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key in keys and value.strip().isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """A positive number from a file of one word; None for "max", -1, nothing, or version 1's huge "no limit"."""
    text = _text(path).strip()
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # another kind of system: the caller asks elsewhere


@functools.cache
def _page_size() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def _mac_available() -> int:
    pages = 0
    for line in _output("vm_stat").splitlines():
        key, _, value = line.partition(":")
        if key in ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable"):
            pages += int(value.strip(" .") or 0)
    return pages * _page_size() or total_memory() // 2


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def rss_mb() -> float:
    """Resident memory of this process in MB (1e6 bytes), now where the system tells, else at its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def git_commit() -> str | None:
    """Commit of the code that runs, with "+changes" where files differ from it; None where it is not a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+changes" if git("status", "--porcelain") else "")
