"""Speeds that are none are refused by name, and options that choose nothing too."""

import json

import pytest

from gangpao import cli
from gangpao.evaluate.pricing import measured


def test_true_is_no_speed(tmp_path):
    (tmp_path / "x").write_text('{"decode_tps": true}')
    with pytest.raises(ValueError, match=r"x: decode_tps is True, and a speed is a number above 0"):
        measured.read(tmp_path / "x")


@pytest.mark.parametrize(("key", "value"), [("context", "a"), ("batch", True), ("context", 1.5)])
def test_a_row_of_a_suite_with_no_number_is_named(tmp_path, key, value):
    rows = [{"model": "m", "context": 0, "batch": 1, "decode_tps": 5}, {"model": "m", "decode_tps": 5, key: value}]
    (tmp_path / "x").write_text(json.dumps({"rows": rows}))
    with pytest.raises(ValueError, match=rf"x: row 2: {key} is {value!r}, and has to be a whole number"):
        measured.read(tmp_path / "x")


@pytest.mark.parametrize("option", [["--served"], ["--batch", "8"], ["--context", "8"], ["--model", "m"]])
@pytest.mark.parametrize("source", [["--speed", "5"], ["--device", "iphone-11"]])
def test_what_chooses_among_measurements_needs_them(tmp_path, monkeypatch, capsys, source, option):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cli.main(["cost", *source, *option]) == 2
    assert f"{option[0]}: chooses among what was measured, and {source[0]} is one speed" in capsys.readouterr().err
