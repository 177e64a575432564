"""The page of a line says what was, where stages were made apart, were not measured, or were predicted after the fact."""

from pathlib import Path

from matplotlib.figure import Figure

from gangpao.atomic import write_json
from gangpao.forge.config import ForgeConfig
from gangpao.forge.quality import quality
from gangpao.forge.record import Line, Record
from gangpao.forge.report.blocks import _against_bytes, _head, _stages
from gangpao.forge.report.words import Words
from gangpao.forge.stages.training import predicted

CONFIG = ForgeConfig.model_validate({"model": "m", "tune": {"a": {"config": "a.toml"}}, "export": {}})


def line(*records):
    return Line(Path("run"), {}, CONFIG, {record.name: record for record in records})


def made(name, machine, **more):
    by = {"gangpao": "1.2", "commit": "0123456789abcdef", "machine": machine, "cores": 2}
    return Record(name, "k", done=True, made_by=by, **more)


def test_stages_of_two_machines_are_told_apart():
    told = [str(block) for block in _head(line(made("tune-a", "Big"), made("export", "Small")), Words("en"))]
    assert any("gangpao 1.2, 0123456789 on Big, 2 cores: tune-a" in one for one in told)
    assert any("gangpao 1.2, 0123456789 on Small, 2 cores: export" in one for one in told)
    told = [str(block) for block in _head(line(made("tune-a", "Big"), made("export", "Big")), Words("zh"))]
    assert sum("Big" in one for one in told) == 1


def test_what_a_stage_took_that_is_not_done_counts():
    table = list(_stages(line(made("tune-a", "x", seconds=60.0), Record("export", "k", seconds=30.0)), Words("en")))[1]
    assert [row[1] for row in table.rows[1:]] == ["1:00 min", "30 s", "1:30 min"]
    assert table.rows[2][3] == "not done yet"


def test_a_step_that_was_not_measured_is_no_point_of_the_picture():
    steps = [
        {"step": name, "bytes": 1e6, "kl_divergence": kl} for name, kl in (("before", None), ("a", None), ("b", 0.5))
    ]
    figure = Figure()
    _against_bytes(steps, Words("en"), figure)
    (axes,) = figure.axes
    assert [[float(value) for value in one.get_ydata()] for one in axes.lines] == [[0.0], [0.5]]


def test_a_prediction_from_after_the_beginning_is_none():
    told = {"trained": {"loss": 2.0, "heldout": {"heldout_bpb": 1.5}}}
    first, later = (
        {"predicted": value, "error": 1.0, "before": before} for value, before in ((1.6, True), (1.5, False))
    )
    assert "predicted 1.6000" in quality({**told, "predicted": [first, later]})
    assert "predicted" not in quality({**told, "predicted": [later]})


def test_predictions_are_of_the_run_that_is_there_not_of_one_before_it(tmp_path):
    run = tmp_path / "train"
    run.mkdir()
    write_json(run / "run.json", {"config": {}, "data": {}, "started": "2026-02-02T00:00:00+00:00"})
    for name, day in (("aaaa", "01"), ("bbbb", "02")):
        folder = tmp_path / "sandbox" / "plans" / name
        folder.mkdir(parents=True)
        write_json(folder / "plan.json", {"name": name, "written": f"2026-{day}-01T00:00:00+00:00"})
        write_json(folder / "runs.json", [{"run": str(run), "plan": name, "started": f"2026-{day}-02T00:00:00+00:00"}])
    assert [one["plan"] for one in predicted(run, tmp_path / "sandbox")] == ["bbbb"]
