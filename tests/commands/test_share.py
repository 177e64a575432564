"""`gangpao bench --share`: a row of a machine's kind and a model's speed, and nothing that tells whose machine it is."""

import getpass
import json
import re
import socket
from pathlib import Path

import pytest

from gangpao import cli, machine
from gangpao.commands import bench
from gangpao.commands.speed import row
from tests.engine.tiny import write_tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def test_a_row_as_markdown_and_as_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", str(tiny), "--prompt-tokens", "16", "--decode-tokens", "2", "--repeat", "1", "--threads", "1"]
    assert cli.main([*args, "--share"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    head, rule, cells = (line.split(" | ") for line in lines[-5:-2])
    assert len(head) == len(rule) == len(cells) == len(row.HEAD)
    shown = dict(zip(row.HEAD, (cell.strip("| ") for cell in cells), strict=True))
    assert shown["model"] == found["model"]["name"] == "tiny"
    assert shown["type"] == found["model"]["type"] == "F32"
    assert shown["decode tok/s"] == f"{found['decode_tps']:.1f} (2)"
    assert shown["kernels"] == found["isa"]
    assert (shown["threads"], found["threads"]) == ("1", 1)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", shown["date"])
    whole = "\n".join(lines)
    assert str(tiny.parent) not in whole
    assert socket.gethostname() not in whole
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", "\n".join(lines[-5:]))


def test_without_it_nothing_changes(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(tiny), "--prompt-tokens", "16", "--decode-tokens", "2", "--repeat", "1"]) == 0
    out = capsys.readouterr().out
    assert "|" not in out
    assert "device" not in json.loads(out.splitlines()[-1])


def test_a_suite_has_no_row(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--suite", "--share", "-m", str(tiny)]) == 2
    assert "--share is a row of one model" in capsys.readouterr().err


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_phone_by_androids_properties(tmp_path: Path) -> None:
    root = tmp_path / "getprop"
    for name, value in {
        "ro.product.manufacturer": "Xiaomi", "ro.product.model": "MI 9", "ro.soc.manufacturer": "QTI", "ro.soc.model": "SM8150",
    }.items():  # fmt: skip
        files(root, **{name: value + "\n"})
    assert row.device(tmp_path) == "Xiaomi MI 9"
    assert row.processor(tmp_path) == "QTI SM8150"


def test_a_board_by_its_device_tree_and_the_parts_of_its_processor(tmp_path: Path) -> None:
    cpus = "".join(f"processor\t: {i}\nCPU part\t: {part}\n\n" for i, part in enumerate(["0xd05"] * 4 + ["0xd0b"] * 2))
    files(tmp_path, **{"proc__device-tree__model": "Raspberry Pi 5 Model B\0", "proc__cpuinfo": cpus})
    assert row.device(tmp_path) == "Raspberry Pi 5 Model B"
    assert row.processor(tmp_path) == "2 x A76, 4 x A55"


def test_a_pc_by_its_board_and_an_unnamed_one_by_nothing(tmp_path: Path) -> None:
    dmi = "sys__devices__virtual__dmi__id__"
    named = files(tmp_path / "a", **{dmi + "sys_vendor": "LENOVO\n", dmi + "product_name": "20XW\n"})
    assert row.device(named) == "LENOVO 20XW"
    blank = files(
        tmp_path / "b", **{dmi + "sys_vendor": "To Be Filled By O.E.M.\n", dmi + "product_name": "Default string"}
    )
    assert row.device(blank) == ""
    files(blank, proc__cpuinfo="model name\t: Some CPU @ 2 GHz\n")
    assert row.processor(blank) == "Some CPU @ 2 GHz"


def test_a_name_cannot_leave_its_cell() -> None:
    facts = {
        "device": "a|b\\|\n<x>\x1b[31m", "processor": "", "memory_bytes": 4e9, "system": "s", "isa": "neon", "threads": 4,
        "model": {"name": "m", "type": "Q4_0"}, "prefill_tps": 1.0, "prompt_tokens": 512, "decode_tps": 2.0, "decode_tokens": 64,
        "rss_mb": 10.0, "load_s": 0.1, "quiet": None, "gangpao": "0", "date": "2026-11-30",
    }  # fmt: skip
    line = row.markdown(facts).splitlines()[2]
    assert line.count("|") == len(row.HEAD) + 1
    assert line.startswith("| a/b/<x>[31m | ? |")
    assert " | ? | 0 | 2026-11-30 |" in line


def test_a_system_that_tells_nothing_of_others_is_not_called_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Android: /proc/stat may not be read, and Termux's Python has no os.getloadavg."""
    monkeypatch.delattr(machine.os, "getloadavg")
    busy = machine.Watch(tmp_path).read()
    assert (busy.others, busy.load, busy.known, busy.is_quiet) == (None, None, False, False)
    assert str(busy).startswith("unknown: ")
    monkeypatch.setattr(machine.Watch, "read", lambda _: busy)
    bench.one(str(tiny), 16, 2, 1, bench.EngineOptions(threads=1), share=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["load_1m"] is None
