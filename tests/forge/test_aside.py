"""A stage that is put aside and taken back, killed at every moment of it."""

import shutil
from pathlib import Path

import pytest

from gangpao import atomic
from gangpao.forge import aside
from gangpao.forge.record import Record, record_path


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def killed_at(monkeypatch):
    """A call that ends at its n-th change of the disk; whether it came to its end before."""
    monkeypatch.setattr(atomic, "sync", lambda path: None)

    def call(moment, function, *arguments):
        left = [moment]

        def counted(real):
            def change(*given, **options):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*given, **options)

            return change

        with monkeypatch.context() as patch:
            for place, name in (
                (Path, "rename"),
                (Path, "replace"),
                (Path, "unlink"),
                (Path, "mkdir"),
                (shutil, "rmtree"),
            ):
                patch.setattr(place, name, counted(getattr(place, name)))
            try:
                function(*arguments)
            except Killed:
                return False
            return True

    return call


def stage(out, key="k1", *, done=True, said="the work of hours"):
    (out / "train").mkdir(parents=True)
    (out / "train" / "weights").write_text(said, encoding="utf-8")
    record = Record("train", key, done=done, seconds=3600.0)
    record.write(record_path(out, "train"))
    return record


def whole(out, key="k1"):
    """The stage in its place, wherever it was left."""
    aside.recover(out, "train")
    record = Record.read(record_path(out, "train")) or aside.take_back(out, "train", key)
    assert record is not None
    assert (record.key, record.done, record.seconds) == (key, True, 3600.0)
    assert (out / "train" / "weights").read_text(encoding="utf-8") == "the work of hours"
    assert record_path(out, "train").is_file()


def test_put_aside_and_killed_at_every_moment(tmp_path, killed_at):
    for moment in range(100):
        out = tmp_path / str(moment)
        if killed_at(moment, aside.put_aside, out, stage(out)):
            break
        whole(out)
    assert moment > 3
    whole(out)


def test_taken_back_and_killed_at_every_moment(tmp_path, killed_at):
    for moment in range(100):
        out = tmp_path / str(moment)
        aside.put_aside(out, stage(out))
        if killed_at(moment, aside.take_back, out, "train", "k1"):
            break
        whole(out)
    assert moment > 3
    whole(out)


def test_a_recovery_that_is_killed_is_finished_by_the_next(tmp_path, killed_at):
    for first in range(10):
        for second in range(10):
            out = tmp_path / f"{first}-{second}"
            killed_at(first, aside.put_aside, out, stage(out))
            killed_at(second, aside.recover, out, "train")
            whole(out)


def test_what_is_not_done_does_not_replace_what_is(tmp_path):
    aside.put_aside(tmp_path, stage(tmp_path))
    aside.put_aside(tmp_path, stage(tmp_path, done=False, said="a minute"))
    whole(tmp_path)


def test_another_key_lies_beside_it_and_one_of_the_same_replaces_it(tmp_path):
    aside.put_aside(tmp_path, stage(tmp_path, "k2", said="other"))
    aside.put_aside(tmp_path, stage(tmp_path, said="older"))
    aside.put_aside(tmp_path, stage(tmp_path))
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["train-k1", "train-k2"]
    whole(tmp_path)
    assert aside.take_back(tmp_path, "train", "nobody") is None
