"""What a machine has for us: memory and cores inside every fence, and what others do with the processors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gangpao import machine
from tests import seams


def fake_root(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


MEMINFO = "MemTotal:  16000000 kB\nMemFree: 100 kB\nMemAvailable:  8000000 kB\n"


def test_memory_without_limits(tmp_path):
    root = fake_root(
        tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}
    )
    assert machine.available_memory(root) == 8_000_000 * 1024
    assert machine.total_memory(root) == 16_000_000 * 1024


def test_memory_in_control_group_2_at_any_level(tmp_path):
    files = {
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/memory.max": "2000000000", "sys/fs/cgroup/a/memory.current": "900000000",
        "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 400000000\n",
    }  # fmt: skip
    root = fake_root(tmp_path, files)
    assert machine.available_memory(root) == 1_500_000_000
    assert machine.total_memory(root) == 2_000_000_000


def test_memory_in_control_group_1(tmp_path):
    files = {
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "3000000000",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "1000000000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
    }  # fmt: skip
    root = fake_root(tmp_path, files)
    assert machine.available_memory(root) == 2_000_000_000
    assert machine.cpu_quota(root) == 1.5


def test_a_full_group_has_no_memory(tmp_path):
    files = {
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "100",
        "sys/fs/cgroup/memory.current": "200",
    }  # fmt: skip
    assert machine.available_memory(fake_root(tmp_path, files)) == 0


def test_cores(tmp_path, monkeypatch):
    seams.replace(monkeypatch, machine, "os", sched_getaffinity=lambda _: {0, 1, 2, 3})
    top = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {top.format(0): "0,2\n", top.format(1): "1,3\n", top.format(2): "0,2\n", top.format(3): "1,3\n"}
    root = fake_root(tmp_path, files)
    assert machine.logical_cores() == 4
    assert machine.physical_cores(root) == 2
    fake_root(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert machine.cpu_quota(root) == 0.5
    assert machine.physical_cores(root) == 1
    assert machine.physical_cores(tmp_path / "nothing") == 4


def stat(*cpus):
    return "cpu 1 2 3 4 5 6 7 8\n" + "".join(f"cpu{i} {' '.join(map(str, cpu))} 0 0\n" for i, cpu in enumerate(cpus))


@pytest.mark.parametrize(
    ("after", "others", "steal", "words"),
    [
        # user nice system idle iowait irq softirq steal, in ticks; 100 of them passed on each of two processors
        ([(0, 0, 0, 100, 0, 0, 0, 0)] * 2, 0.0, 0.0, "quiet"),
        (
            [(60, 10, 20, 0, 0, 5, 5, 0), (0, 0, 0, 90, 10, 0, 0, 0)],
            1.0,
            0.0,
            "BUSY: other processes used 1.0 of 2 CPUs",
        ),
        ([(0, 0, 0, 80, 0, 0, 0, 20)] * 2, 0.0, 0.2, "BUSY.*steal 20%"),
    ],
)
def test_what_others_do_is_seen(tmp_path, monkeypatch, after, others, steal, words):
    ours = os.times_result((5.0, 5.0, 0, 0, 0))
    seams.replace(monkeypatch, machine, "os", sched_getaffinity=lambda _: {0, 1}, times=lambda: ours)
    clock = iter([100.0, 101.0])
    seams.replace(monkeypatch, machine, "time", monotonic=lambda: next(clock))
    root = fake_root(tmp_path, {"proc/stat": stat((0,) * 8, (0,) * 8, (0,) * 8)})
    watch = machine.Watch(root)
    fake_root(tmp_path, {"proc/stat": stat(*after, (900, 0, 0, 0, 0, 0, 0, 0))})  # cpu2 is not ours
    busy = watch.read()
    assert (busy.others, busy.steal) == (pytest.approx(others), pytest.approx(steal))
    assert re.search(words, str(busy))


def test_our_own_work_is_not_others(tmp_path, monkeypatch):
    watch = machine.Watch()
    monkeypatch.setattr(
        watch,
        "_now",
        lambda: (watch._start[0] + 1, watch._start[1] + 2.0, watch._start[2] + 200, 0, watch._start[4] + 200),
    )
    watch._cpus = [0, 1]
    assert watch.read().others == pytest.approx(0)
    nothing = machine.Watch(tmp_path)
    assert nothing.read().others is None


def test_who_made_the_processor(tmp_path):
    (tmp_path / "proc").mkdir()
    assert machine.cpu_vendor(tmp_path) == ""
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n")
    assert machine.cpu_vendor(tmp_path) == "AuthenticAMD"


def test_this_machine():
    assert 0 < machine.available_memory() <= machine.total_memory()
    assert 1 <= machine.physical_cores() <= machine.logical_cores()
    assert machine.cpu_name()
    assert machine.free_disk(Path("no/such/folder")) > 0


def test_freed_memory_is_kept_where_glibc_can():
    """Pages of a block that is freed and allocated again are not mapped anew; in a process of its own, which it changes."""
    code = """
import resource, sys
from gangpao import machine
kept = machine.keep_freed_memory()
def block(): bytearray(64 << 20)
block(); block()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4): block()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    if kept == "False":
        pytest.skip("no glibc")
    assert int(faults) < 1000  # else 16,384 pages a block


def test_loopback():
    assert [h for h in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]") if not machine.is_loopback(h)] == []
    others = ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "", "127.0.0.1.example", "127.example.com")
    assert [h for h in others if machine.is_loopback(h)] == []
