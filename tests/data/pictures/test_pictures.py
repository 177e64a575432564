"""Drawn pictures: the same for the same seed, right answers, tests of what training never shows; sources of others."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gangpao.data.pictures import charts, fonts, hands, shapes
from gangpao.data.pictures.scene import COLOURS
from gangpao.data.pictures.strings import HAN, Strings
from gangpao.data.pictures.table import KINDS
from gangpao.data.pictures.write import ROWS, pictures, write

DRAWN = [name for name, kind in KINDS.items() if kind.size]


@pytest.mark.parametrize("kind", DRAWN)
def test_a_picture_depends_on_its_seed_and_number_alone(kind: str) -> None:
    first = list(pictures(kind, count=4, seed=7))
    again = list(pictures(kind, count=2, seed=7))
    assert again == first[:2]
    assert len({hashlib.sha256(found.data).digest() for found in first}) == 4
    assert next(iter(pictures(kind, count=2, seed=8))).data != first[0].data
    assert next(iter(pictures(kind, count=1, seed=7, unseen=True))).data != first[0].data
    for found in first:
        picture = Image.open(io.BytesIO(found.data))
        assert picture.mode == "RGB"
        assert picture.size == (KINDS[kind].size, KINDS[kind].size)
        assert found.questions
        assert all(question and answer for question, answer in found.questions)


def test_what_is_said_of_shapes_is_there() -> None:
    for i in range(60):
        scene = shapes.draw(Random(f"said {i}"), bool(i % 2), 64)
        drawn = np.asarray(scene.picture, np.float64).reshape(-1, 3)
        for name in scene.about["colours"]:
            distance = np.abs(drawn - COLOURS[name][1]).max(axis=1)
            assert (distance < 40).sum() > 40, (i, name)
        for question, answer in scene.questions:
            if "left" in question:
                assert answer == scene.about["shapes"][0]


def test_gestures_have_as_many_fingers_as_they_should() -> None:
    """Skin far from the palm's middle: a fist has the least, an open hand the most."""
    reach: dict[str, list[float]] = {name: [] for name in hands.GESTURES}
    for i in range(90):
        scene = hands.draw(Random(f"fingers {i}"), False, 64)
        values = np.asarray(scene.picture, np.float64)
        corner = np.median(values[:4].reshape(-1, 3), axis=0)
        there = np.argwhere(np.abs(values - corner).max(axis=2) > 40)
        reach[str(scene.about["gesture"])].append(float(len(there)))
    assert np.mean(reach["rock"]) < np.mean(reach["scissors"]) < np.mean(reach["paper"])


def test_charts_answer_from_their_values() -> None:
    for i in range(80):
        scene = charts.draw(Random(f"values {i}"), False, 112)
        values: dict[str, int] = scene.about["values"]
        for question, answer in scene.questions:
            if question in ("which is the largest?", "哪个最大？"):
                assert values[answer] == max(values.values())
                assert list(values.values()).count(values[answer]) == 1
            if question in ("how many values are shown?", "图里有几个值？"):
                assert int(answer) == len(values) != 5


def test_a_test_reads_strings_that_training_never_shows() -> None:
    draw = Strings()
    seen = {str(draw(Random(f"a {i}"), False, 32).about["text"]) for i in range(30)}
    unseen = {str(draw(Random(f"a {i}"), True, 32).about["text"]) for i in range(30)}
    digest = {text: hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 16 for text in seen | unseen}
    assert all(digest[text] for text in seen)
    assert not any(digest[text] for text in unseen)


def test_shorter_strings_lie_within_their_picture() -> None:
    draw, drawn = Strings(lengths=(1, 3)), []
    for i in range(60):
        scene = draw(Random(f"b {i}"), False, 48)
        drawn.append(str(scene.about["text"]))
        values = np.asarray(scene.picture).astype(int)
        inked = np.abs(values - values[0, 0]).max(axis=2) > 30
        assert inked.any()
        assert not inked[[0, -1]].all(axis=1).any()
        rows = np.flatnonzero(inked.any(axis=1))
        assert len(rows) < 48
    assert {len(text) for text in drawn} == {1, 2, 3}
    with pytest.raises(ValueError, match="they have 1 to 8, the shortest first"):
        Strings(lengths=(5, 4))
    with pytest.raises(ValueError, match="--lengths is for strings"):
        list(pictures("hands", count=1, lengths=(1, 2)))


def test_a_font_without_chinese_is_refused_by_what_it_lacks() -> None:
    known = [path for path in fonts.latin() if path is not None]
    assert not fonts.lacks(None, "ABCabc019")
    assert "的" in fonts.lacks(None, HAN[:4])
    for path in known[:1]:
        with pytest.raises(ValueError, match=r"has no glyph for .* Noto Sans SC"):
            Strings([path])
    with pytest.raises(ValueError, match="no font that can be read"):
        Strings([Path(__file__)])


def test_a_folder_is_what_tuning_reads(tmp_path: Path) -> None:
    found = write(tmp_path / "hands", pictures("hands", count=3, size=32))
    assert found["pictures"] == 3
    assert found["questions"] == 6
    rows = [json.loads(line) for line in (tmp_path / "hands" / ROWS).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        assert row["messages"][0]["content"].startswith("<image>")
        assert row["messages"][1]["role"] == "assistant"
        assert "<image>" not in row["messages"][2]["content"]
        with Image.open(tmp_path / "hands" / row["images"][0]) as picture:
            assert picture.size == (32, 32)
    with pytest.raises(ValueError, match="is there already"):
        write(tmp_path / "hands", pictures("hands", count=3))


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(out, "JPEG")
    return out.getvalue()


def test_archives_give_every_picture_to_one_side(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(40):
        members[f"{i:05d}.jpg"] = _jpeg()
        members[f"{i:05d}.json"] = json.dumps({"title": f"菜{i}", "text": "好吃。"}, ensure_ascii=False).encode()
    path = _tar(tmp_path / "dishes.tar", members)
    train, test = (list(pictures("dishes", count=None, source=path, unseen=unseen)) for unseen in (False, True))
    assert len(train) + len(test) == 40
    assert test
    assert train[0].data == _jpeg()
    answers = [found.questions[0][1] for found in (*train, *test)]
    assert sorted(answers) == sorted(f"菜{i}" for i in range(40))
    figures = _tar(tmp_path / "figures.tar", {"0.jpg": _jpeg(), "0.json": b'{"alt": "a  red\\nsquare", "caption": ""}'})
    (found,) = pictures("figures", count=None, source=figures)
    assert found.questions == (("what does the figure show?", "a red square"),)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.jpg": b"x", "0.json": b"{"}, r"broken.tar: 0.json: is no JSON"),
        ({"0.jpg": b"x", "0.json": b"[]"}, "holds a list"),
        ({"0.jpg": b"x"}, "1 members have no partner .*first is 0"),
    ],
)
def test_a_broken_archive_is_said_with_its_member(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(pictures("dishes", count=None, source=_tar(tmp_path / "broken.tar", members)))
    (tmp_path / "none.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is no tar archive"):
        list(pictures("dishes", count=None, source=tmp_path / "none.tar"))


def test_easy_vqa_keeps_its_own_split(tmp_path: Path) -> None:
    wheel = tmp_path / "easy_vqa.whl"
    rows = [["what is it?", "circle", 3], ["is it red?", "yes", 3], ["is it?", "no", 1]]
    with zipfile.ZipFile(wheel, "w") as file:
        for split in ("train", "test"):
            file.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(rows[:2] if split == "test" else rows))
            for number in (1, 3):
                file.writestr(f"easy_vqa/data/{split}/images/{number}.png", f"{split}{number}")
    train, test = (list(pictures("easy-vqa", count=None, source=wheel, unseen=unseen)) for unseen in (False, True))
    assert [found.data for found in train] == [b"train3", b"train1"]
    assert [found.data for found in test] == [b"test3"]
    assert train[0].questions == (("what is it?", "circle"), ("is it red?", "yes"))
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "unpacked")
    assert list(pictures("easy-vqa", count=1, source=tmp_path / "unpacked")) == train[:1]
    with pytest.raises(ValueError, match="is not easy-vqa"):
        list(pictures("easy-vqa", count=None, source=tmp_path))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "dogs", "count": 1}, "no kind of pictures; there are shapes"),
        ({"kind": "shapes", "count": None}, "--count"),
        ({"kind": "shapes", "count": 1, "size": 8}, "--size"),
        ({"kind": "shapes", "count": 1, "fonts": [Path("x")]}, "--font is for strings"),
        ({"kind": "hands", "count": 1, "source": Path("x")}, "leave --from out"),
        ({"kind": "dishes", "count": 1}, "--from"),
        ({"kind": "dishes", "count": 1, "size": 64}, "leave --size out"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(pictures(**asked))


def test_further_questions_of_a_source_make_another_row(tmp_path: Path) -> None:
    folder = tmp_path / "easy_vqa" / "data" / "train"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "images" / "0.png")
    asked = [[f"q{i}", f"a{i}", 0] for i in range(5)]
    (folder / "questions.json").write_text(json.dumps(asked))
    found = list(pictures("easy-vqa", count=None, source=tmp_path / "easy_vqa", questions=2))
    assert [len(one.questions) for one in found] == [2, 2, 1]
    assert [list(q) for one in found for q in one.questions] == [row[:2] for row in asked]
    assert len({one.data for one in found}) == 1
