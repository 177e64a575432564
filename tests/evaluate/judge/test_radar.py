"""The picture of a run by category."""

import pytest

from gangpao.evaluate.judge import radar

SCORES = {"writing": 7.0, "math": 3.5, "coding": 4.0, "stem": 8.0}


def test_a_picture_without_fonts_of_the_reader(tmp_path):
    pytest.importorskip("matplotlib")
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        radar.draw(path, {"model": SCORES, "模型": {"writing": 5.0, "文言": 6.0}}, 10, "zh")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    text = paths[0].read_text()
    assert "<svg" in text
    assert "<text" not in text
    with pytest.raises(ValueError, match="3 categories, and there are 2"):
        radar.draw(paths[0], {"m": {"a": 1, "b": 2}}, 10)
