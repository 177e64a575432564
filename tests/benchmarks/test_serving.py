"""The serving benchmark, without starting a server: prompts, command lines, ratios, the report."""

import sys
from pathlib import Path

import pytest

from tests.engine.tiny import write_tiny
from tests.scripts import load


@pytest.fixture
def scripts():
    return load("serving")


@pytest.fixture
def job(scripts, tmp_path):
    return sys.modules["serving_load"].work(write_tiny(tmp_path / "tiny.gguf"), 64, 8, True)


def test_prompts_share_what_they_say_they_share(scripts, job):
    load_ = sys.modules["serving_load"]
    assert 48 <= job.shared <= 64
    assert len(job.prompts) == load_.COLD + 1
    for questions in job.prompts:
        assert len(questions) == len(load_.QUESTIONS)
        assert load_.shared_length(questions) <= 64
        assert len({tuple(q) for q in questions}) == len(questions)
    firsts = [questions[0] for questions in job.prompts]
    assert load_.shared_length(firsts) < 32  # another system prompt is no hit
    assert job.slot % 64 == 0
    assert job.slot > max(len(q) for questions in job.prompts for q in questions) + job.tokens


def test_both_command_lines_leave_the_same_room(scripts, job, monkeypatch):
    load_ = sys.modules["serving_load"]
    monkeypatch.setattr(load_.peers, "llama_server", lambda variant: Path("/bin") / variant)
    mine = load_.command("gangpao", job, {}, 7)
    assert mine[mine.index("--batch") + 1] == "8"
    assert mine[mine.index("--context") + 1] == str(job.slot)
    settings = {name: values[0] for name, values in load_.knobs(job, 2).items()}
    theirs = load_.command("server", job, settings | {"spec": "ngram-simple", "kv": "unified"}, 7)
    assert theirs[theirs.index("-c") + 1] == str(8 * job.slot)
    assert theirs[-2:] == ["--spec-type", "ngram-simple"]
    assert "-kvu" in theirs


def measured(scripts, job, ours, theirs):
    load_ = sys.modules["serving_load"]
    rows = {
        "gangpao": [
            load_.Sample(1.0, 0.1, tps / 3, tps, tps, 10**6, 0.0, same=8 if i == 0 else -1)
            for i, tps in enumerate(ours)
        ],
        "server": [load_.Sample(2.0, 0.3, tps / 2, tps, tps, 10**6, 0.2, same=-1) for tps in theirs],
    }
    return scripts.Measured("m", job, {"gangpao": {}, "server": {"threads": "2"}}, rows)


def test_ratios_are_taken_round_by_round(scripts, job):
    one = measured(scripts, job, [30, 60], [15, 20])
    assert one.ratios() == [2.0, 3.0]
    out = scripts.summary(one)
    assert out["ours_over_theirs"] == 2.5
    assert out["gangpao"]["eight_over_one"] == 3.0
    assert out["gangpao"]["hit_over_cold"] == 0.1
    assert (out["gangpao"]["same"], out["server"]["same"]) == (8, -1)
    alone = scripts.Measured("m", job, {}, {"gangpao": one.samples["gangpao"]})
    assert alone.ratios() == []
    assert "ours_over_theirs" not in scripts.summary(alone)


def test_the_report_names_goals_settings_and_loud_moments(scripts, job):
    text = scripts.markdown([measured(scripts, job, [30, 60], [15, 20])], {"date": "2026-11-24"})
    for part in ("2.50 x server", "goal 1.5", "goal at least 2.0", "goal at most 0.15", "8 of 8", "threads=2", "2026-11-24",
                 "2 samples are of moments", "drafts on"):  # fmt: skip
        assert part in text


def test_a_setting_that_does_not_start_is_no_candidate(scripts, job, monkeypatch):
    load_ = sys.modules["serving_load"]
    speeds = {("on", "512"): 10.0, ("off", "512"): 12.0, ("off", "128"): 12.05}

    def sample(engine, job, settings, *, check, only_batch):
        key = (settings["flash"], settings["ubatch"])
        if key not in speeds:
            raise ValueError("cannot\nno such batch")
        return load_.Sample(0, 0, 0, 0, speeds[key], 0, 0.0)

    monkeypatch.setattr(load_, "sample", sample)
    best = scripts.best_settings("server", job, {"flash": ["on", "off"], "ubatch": ["512", "128", "2048"]})
    assert best == {"flash": "off", "ubatch": "512"}
