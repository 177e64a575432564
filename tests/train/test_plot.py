"""Plots of runs, progress lines, and the page that has no way out of its own markup."""

import io
import json

import pytest

from gangpao.cost import CostProfile
from gangpao.train import plot
from gangpao.train.progress import Report, read_metrics

matplotlib = pytest.importorskip("matplotlib")


def write(folder, lines, config=None):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "los')
    if config:
        (folder / "run.json").write_text(json.dumps({"config": config, "data": {}}))
    return folder


def step(n, loss, **more):
    return {
        "step": n,
        "stage": "stable",
        "loss": loss,
        "lr": 0.01,
        "grad_norm": 1.0,
        "tokens": 10 * n,
        "tok_s": 5.0,
        **more,
    }


def test_steps_come_once_in_order_and_events_are_no_steps():
    lines = [step(1, 3.0), step(2, 9.0), {"step": 3, "event": "rollback", "loss": 7.0}, step(2, 2.0), step(3, "nan")]
    lines += [{"step": 2, "heldout": {"heldout": 2.5}}]
    steps, heldout = plot.steps_of(lines)
    assert [(s["step"], s["loss"]) for s in steps] == [(1, 3.0), (2, 2.0)]
    assert [h["heldout"]["heldout"] for h in heldout] == [2.5]


def test_two_runs_become_a_picture_and_a_page(tmp_path):
    hostile = "<script>alert(1)</script>"
    one = write(
        tmp_path / "a" / "run",
        [step(1, 3.0), step(2, 2.0)],
        {"optimizer": {"lr": 0.1, "kind": "adamw"}, "data": hostile},
    )
    two = write(
        tmp_path / "b" / "run",
        [step(1, 3.5), {"step": 1, "heldout": {"heldout": 3.25}}],
        {"optimizer": {"lr": 0.2, "kind": "adamw"}},
    )
    png, page = plot.draw([one, two], tmp_path / "out" / "both")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "a/run" in text
    assert "3.2500" in text
    assert "optimizer.lr" in text
    assert "optimizer.kind" not in text  # the same in both
    assert "<script" not in text
    assert "http" not in text


def test_folders_that_are_no_runs_are_said(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics\.jsonl here"):
        plot.draw([tmp_path], tmp_path / "x")
    with pytest.raises(ValueError, match="no step"):
        plot.draw([write(tmp_path / "empty", [])], tmp_path / "x")
    with pytest.raises(ValueError, match="at least one"):
        plot.draw([], tmp_path / "x")


def test_progress_has_loss_speed_time_left_and_yuan(tmp_path):
    stream = io.StringIO()
    profile = CostProfile(title="t", rent_yuan_per_hour=3600.0, source="s")
    report = Report(tmp_path, stream=stream, profile=profile, flops_per_token=10.0, peak_flops=4000.0, line_seconds=0.0)
    report.begin(0, 10)
    report.seconds = 2.0
    report.step(4, "stable", {"loss": 2.5, "lr": 0.01, "grad_norm": 0.5, "tokens": 400}, tokens=100, seconds=0.5)
    report.step(
        5, "stable", {"loss": float("nan"), "lr": 0.01, "grad_norm": 0.5, "tokens": 500}, tokens=100, seconds=0.5
    )
    report.close()
    line = stream.getvalue().splitlines()[0]
    for part in ("stable 4/10", "loss 2.5000", "lr 0.01", "200 tok/s", "mfu 50 %", "3 s left", "2.00 yuan"):
        assert part in line
    lines = read_metrics(tmp_path)
    assert (lines[0]["mfu"], lines[0]["tok_s"], lines[0]["yuan"]) == (0.5, 200.0, 2.0)
    assert lines[1]["loss"] == "nan"
