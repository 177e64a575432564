"""A stage depends on values and contents: not on comments, names and times of files."""

import os

import pytest

from gangpao.forge.content import Hashes, key_of, values_of


@pytest.fixture
def config(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "inner.toml").write_text("a = 1\n", encoding="utf-8")
    path = tmp_path / "stage.toml"
    path.write_text(
        'lr = 0.1\nthreads = 4\nfiles = ["rows.jsonl"]\nother = "inner.toml"\ndata = "x"\n', encoding="utf-8"
    )
    return path


def key(config, *overrides, without=()):
    return key_of(values_of(str(config), overrides, Hashes(), without=without))


def test_comments_threads_and_times_change_nothing(config):
    before = key(config)
    config.write_text(
        "# why\n\n" + config.read_text(encoding="utf-8").replace("threads = 4", "threads = 1"), encoding="utf-8"
    )
    os.utime(config.with_name("rows.jsonl"), (1, 1))
    assert key(config) == before


@pytest.mark.parametrize("name", ["stage.toml", "rows.jsonl", "inner.toml"])
def test_a_value_and_the_content_of_a_named_file_change_it(config, name):
    before = key(config)
    path = config.with_name(name)
    path.write_text(path.read_text(encoding="utf-8").replace("1", "2").replace("{}", '{"a": 1}'), encoding="utf-8")
    assert key(config) != before


def test_a_file_of_another_name_and_the_same_content_is_the_same(config):
    before = key(config)
    config.with_name("rows.jsonl").rename(config.with_name("others.jsonl"))
    config.write_text(config.read_text(encoding="utf-8").replace("rows.jsonl", "others.jsonl"), encoding="utf-8")
    assert key(config) == before


def test_overrides_count_as_what_they_say(config):
    assert key(config, "lr=0.1") == key(config)
    assert key(config, "lr=0.2") != key(config)
    assert key(config, "data=y", without=("data",)) == key(config, without=("data",))


def test_hashes_are_remembered_by_size_and_time(tmp_path):
    file, memory = tmp_path / "a.bin", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    first = Hashes(memory).of(file)
    assert Hashes(memory).of(file) == first
    file.write_bytes(b"more")
    assert Hashes(memory).of(file) != first


def test_a_folder_is_its_files_and_their_names(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    before = Hashes().of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert Hashes().of(tmp_path) != before


def test_files_that_a_pattern_names_count_one_by_one(config):
    (config.parent / "rows").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (config.parent / "rows" / name).write_text("{}\n", encoding="utf-8")
    config.write_text('files = ["rows/*.jsonl"]\n', encoding="utf-8")
    before = key(config)
    (config.parent / "rows" / "b.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    changed = key(config)
    (config.parent / "rows" / "c.jsonl").write_text("{}\n", encoding="utf-8")
    assert len({before, changed, key(config)}) == 3


def test_data_sets_that_a_table_names_count_with_the_name(config):
    (config.parent / "dataset_info.json").write_text('{"a": {"file_name": "rows.jsonl"}}', encoding="utf-8")
    config.write_text('files = ["./dataset_info.json#a"]\n', encoding="utf-8")
    before = key(config)
    config.with_name("rows.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    changed = key(config)
    config.write_text('files = ["./dataset_info.json#b"]\n', encoding="utf-8")
    assert len({before, changed, key(config)}) == 3
