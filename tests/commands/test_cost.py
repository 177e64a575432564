"""`gangpao cost` from what bench, a suite or a run measured, from a phone, and over several runs."""

import json
import xml.etree.ElementTree as ET

import pytest

from gangpao import cli
from gangpao.evaluate import results
from gangpao.evaluate.pricing import plots, quality_price
from gangpao.evaluate.results import ModelFacts, RunResult, Speed, TaskResult


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def facts(capsys):
    def of(*args):
        assert cli.main(["cost", "--json", *map(str, args)]) == 0
        return json.loads(capsys.readouterr().out)

    return of


def run(folder, name, scores, speed=None):
    folder.mkdir()
    tasks = [
        TaskResult(task=task, metric="acc", value=value, items=10, of=10, mode="loglikelihood", scale=scale)
        for task, (value, scale) in scores.items()
    ]
    tasks.append(TaskResult(task="wikitext", metric="perplexity", value=20, items=1, of=1, mode="perplexity",
                            higher_is_better=False))  # fmt: skip
    model = ModelFacts(name=name, kind="gguf")
    results.write_run(
        folder,
        RunResult(created="2026-11-29T00:00:00Z", gangpao="0.1.0", model=model, tasks=tasks, speed=speed),
    )
    return folder


def test_the_example_of_the_report_with_both_figures(facts, capsys):
    found = facts("--speed", 7.5, "--cost-profile", "report-phone")
    assert found["tokens_per_yuan"] == pytest.approx(1.971e6)
    assert found["report_example"]["printed_tokens_per_yuan"] == 1.7e6
    assert found["report_example"]["fits_tokens_per_second"] == pytest.approx(6.47, abs=0.01)
    assert [round(a["times_ours"], 1) for a in found["apis"]] == [115.9, 417.4]
    assert cli.main(["cost", "--speed", "7.5", "--cost-profile", "report-phone"]) == 0
    text = capsys.readouterr().out
    for words in (
        "1,971,000", "it prints 1,700,000", "600 yuan, used for 5 years", "works 100%", "360 x the report's example",
        "not varied, because they are 0: power_watts",
    ):  # fmt: skip
        assert words in text
    assert facts("--speed", 7.4, "--cost-profile", "report-phone")["report_example"] is None
    assert facts("--speed", 7.5, "--cost-profile", "report-phone", "--set", "price_yuan=500")["report_example"] is None


def test_a_phone_of_the_table_costs_what_a_used_phone_does(facts):
    found = facts("--device", "oppo-find-n3", "--set", "utilisation=0.25")
    assert (found["cost_profile"], found["machine"]["utilisation"]) == ("old-phone", 0.25)
    assert found["speed"]["decode_tps"] == 6.5
    assert "MLC-LLM" in found["speed"]["from"]
    assert facts("--device", "iphone-11", "--cost-profile", "mini-pc")["cost_profile"] == "mini-pc"
    assert len(facts("--devices")["devices"]) == 19


def test_what_bench_printed(facts, tmp_path):
    file = tmp_path / "bench.txt"
    file.write_text('model  tiny\n{"prefill_tps": 200.0, "decode_tps": 10.0, "rss_mb": 100.0}\n')
    assert facts("--bench", file)["counted"]["tokens_per_second"] == 10
    mixed = facts("--bench", file, "--input-share", 0.5)
    assert mixed["counted"]["tokens_per_second"] == pytest.approx(2 / (1 / 200 + 1 / 10))
    assert cli.main(["cost", "--bench", str(file), "--input-share", "0.5"]) == 0


SUITE = {
    "rows": [
        {"model": "a", "context": c, "batch": b, "prefill_tps": 100, "decode_tps": 10, "batch_tps": 8 * b,
         "decode_range": [9, 12], "batch_range": [7 * b, 9 * b]}
        for c in (512, 2048) for b in (1, 4)
    ]
}  # fmt: skip


def test_a_row_of_a_suite(facts, tmp_path, capsys):
    file = tmp_path / "suite.json"
    file.write_text("table\n" + json.dumps(SUITE))
    found = facts("--bench", file, "--served")
    assert (found["counted"]["tokens_per_second"], found["speed"]["batch"]) == (32, 4)
    assert [way["answers_tps"] for way in found["ways"]] == [10, 32]
    speed = next(s for s in found["sensitivity"] if s["name"] == "speed")
    assert (speed["low"], speed["high"]) == (28 / 32, 36 / 32)  # the range that was measured
    assert "behind 2048 tokens, batch 1" in facts("--bench", file, "--context", 2048, "--batch", 1)["speed"]["from"]
    assert cli.main(["cost", "--bench", str(file), "--batch", "16"]) == 2
    assert "no row with batch 16; there are 1, 4" in capsys.readouterr().err
    file.write_text(json.dumps({"rows": [*SUITE["rows"], SUITE["rows"][0] | {"model": "b"}]}))
    assert cli.main(["cost", "--bench", str(file)]) == 2
    assert "choose one with --model: a, b" in capsys.readouterr().err
    assert facts("--bench", file, "--model", "b")["speed"]["batch"] == 1


def test_the_speed_in_a_result(facts, tmp_path, capsys):
    folder = run(tmp_path / "a", "a", {}, Speed(decode_tps=20, batch_tps=50, batch=8))
    assert facts("--bench", folder)["counted"]["tokens_per_second"] == 20
    assert facts("--bench", folder / "results.json", "--served")["counted"]["tokens_per_second"] == 50
    only = run(tmp_path / "b", "b", {}, Speed(batch_tps=50, batch=8))
    assert cli.main(["cost", "--bench", str(only)]) == 2
    assert "add --served" in capsys.readouterr().err
    assert cli.main(["cost", "--bench", str(run(tmp_path / "c", "c", {}))]) == 2
    assert "this run of c has no speed; measure one: gangpao bench c" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no speed: give one of --bench FILE"),
        (["--speed", "5", "--device", "iphone-11"], "--speed and --device: give one of"),
        (["--device", "nokia"], "unknown. There are oppo-find-n3"),
        (["--speed", "0"], "must be above 0"),
        (["--speed", "5", "--set", "utilisation=2"], "--set: utilisation"),
        (["--speed", "5", "--input-share", "2"], "between 0 and 1"),
        (["--speed", "5", "--range", "speed"], "NAME=LOW:HIGH"),
        (["--speed", "5", "--range", "price_yuan=9:nan"], "low value comes first"),
        (["--speed", "5", "--range", "colour=1:2"], "there is no 'colour'; there are price_yuan"),
        (["--speed", "5", "--plot", "x.pdf"], ".svg or .png"),
        (["--speed", "5", "--cost-profile", "fridge"], "unknown; there are"),
        (["--speed", "5", "--against", "x"], "leave --bench, --speed and --device out"),
    ],
)
def test_mistakes_are_said(args, message, capsys):
    assert cli.main(["cost", *args]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tok/s 5", "no JSON object"), ("[1]", "no JSON object"), ("{}", "neither decode_tps"), ("", "no JSON"),
        ('{"decode_tps": -1}', "a number above 0"), ('{"decode_tps": "5"}', "a number above 0"),
        ('{"decode_tps": NaN}', "a number above 0"), ('{"rows": []}', "no row"), ("[" * 9999, "no JSON object"),
        ('{"schema_version": 99}', "schema 99"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_measurement(text, message, tmp_path, capsys):
    (tmp_path / "x").write_text(text)
    assert cli.main(["cost", "--bench", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err


def test_a_free_machine(facts, tmp_path):
    found = facts("--speed", 5, "--set", "price_yuan=0", "--set", "power_watts=0")
    assert (found["yuan_per_million"], found["tokens_per_yuan"]) == (0, None)
    assert cli.main(["cost", "--speed", "5", "--set", "price_yuan=0", "--set", "power_watts=0"]) == 0


def test_plots(tmp_path, facts):
    pytest.importorskip("matplotlib")
    svg, png = tmp_path / "new/t.svg", tmp_path / "t.png"
    facts("--device", "iphone-15", "--plot", svg)
    text = "".join(ET.fromstring(svg.read_text()).itertext())
    for word in ("utilisation", "price, yuan", "iPhone 15", "old-phone", "yuan per million tokens"):
        assert word in text
    before = svg.read_bytes()
    facts("--device", "iphone-15", "--plot", svg)
    assert svg.read_bytes() == before
    facts("--device", "iphone-15", "--plot", png)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_front_is_what_nothing_beats():
    points = [("cheap", 30, 1), ("good", 60, 9), ("same as good", 60, 9), ("dear", 60, 10), ("bad", 20, 2)]
    assert plots.pareto(points) == [True, True, True, False, False]


def test_quality_against_price_keeps_names_as_text():
    pytest.importorskip("matplotlib")
    svg = quality_price([("面壁 $1$ & <b>", 50, 0.1), ("other", 60, 20)], score_name="分", language="zh")
    assert svg.startswith("<svg")
    text = "".join(ET.fromstring(svg).itertext())
    assert "面壁 $1$ & <b>" in text
    assert "每百万 token 的价格（元）" in text
    for points, match in (([], "nothing to draw"), ([("free", 1, 0)], "free: score 1 at 0 yuan")):
        with pytest.raises(ValueError, match=match):
            quality_price(points)


def test_runs_against_each_other(tmp_path, facts, capsys):
    pytest.importorskip("matplotlib")
    small = run(tmp_path / "s", "small", {"arc": (0.4, 1), "mt": (5.0, 10), "mmlu": (0.3, 1)}, Speed(decode_tps=40))
    large = run(tmp_path / "l", "large", {"arc": (0.6, 1), "mt": (7.0, 10)}, Speed(decode_tps=10))
    other = run(tmp_path / "o", "small", {"arc": (0.2, 1), "mt": (6.0, 10)})
    (tmp_path / "config/gangpao").mkdir(parents=True)
    (tmp_path / "config/gangpao/api_prices.toml").write_text(
        '[prices.x]\ntitle = "X API"\ninput = 1\noutput = 3\ndate = "2026-11-01"\nsource = "page"\n'
        "scores = { arc = 0.9, mt = 0.8 }\n"
    )
    against = [part for folder in (small, large, other) for part in ("--against", folder)]
    found = facts(*against, "--plot", tmp_path / "q.svg")
    assert found["tasks"] == ["arc", "mt"]
    scores = {m["name"]: m["score"] for m in found["models"]}
    assert scores == pytest.approx({f"small ({small})": 45, "large": 65, "X API": 85})
    prices = {m["name"]: m["yuan_per_million"] for m in found["models"]}
    assert prices["large"] == pytest.approx(4 * prices[f"small ({small})"])
    assert prices["X API"] == 3
    assert "not in all runs, so not in the score: mmlu" in found["notes"]
    assert any(note.startswith("left out: small (") and "no speed" in note for note in found["notes"])
    assert "X API" in (tmp_path / "q.svg").read_text()
    assert cli.main(["cost", *map(str, against)]) == 0
    assert "mean of arc, mt" in capsys.readouterr().out
    (tmp_path / "b").write_text(json.dumps(SUITE | {"rows": [row | {"model": "small"} for row in SUITE["rows"]]}))
    measured_apart = facts("--against", f"{other}={tmp_path / 'b'}", "--against", large, "--served", "--batch", 4)
    assert [m["name"] for m in measured_apart["models"]] == ["small", "X API"]  # the large one has no speed of many
    assert facts("--against", f"{other}={tmp_path / 'b'}")["models"][0]["yuan_per_million"] == prices["large"]
    lone = run(tmp_path / "n", "lone", {"gsm8k": (0.1, 1)})
    assert cli.main(["cost", "--against", str(small), "--against", str(lone)]) == 2
    assert "no task is in all of the runs" in capsys.readouterr().err
