"""Answers survive a crash, are asked for once, and are never taken for another run's."""

import pytest

from gangpao.evaluate.journal import Journal, key_of


def test_a_journal_goes_on_where_it_was(tmp_path):
    with Journal(tmp_path, {"model": "a"}) as journal:
        journal.put(key_of("q", 1), {"text": "答\ud800", "n": [1, 2.5]})
    with Journal(tmp_path, {"model": "a"}) as journal:
        assert journal.resumed == 1
        assert journal.get(key_of("q", 1)) == {"text": "答?", "n": [1, 2.5]}
        assert journal.get(key_of("q", 2)) is None


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_short_is_asked_again(tmp_path, cut):
    with Journal(tmp_path, {}) as journal:
        journal.put("one", 1)
        journal.put("two", "x" * 30)
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:-cut])
    with Journal(tmp_path, {}) as journal:
        assert (journal.get("one"), journal.get("two")) == (1, None)
        journal.put("two", "y")
    with Journal(tmp_path, {}) as journal:
        assert (journal.get("one"), journal.get("two")) == (1, "y")


def test_even_a_first_line_cut_short(tmp_path):
    Journal(tmp_path, {"model": "a"}).close()
    (tmp_path / "journal.jsonl").write_bytes(b'{"journal"')
    with Journal(tmp_path, {"model": "b"}) as journal:
        journal.put("k", 1)
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 2


def test_another_run_s_answers_are_refused_by_name(tmp_path):
    Journal(tmp_path, {"model": "a", "limit": None}).close()
    with pytest.raises(ValueError, match=r"model was 'a', is 'b'.*--out"):
        Journal(tmp_path, {"model": "b", "limit": None})


def test_two_at_once_are_refused(tmp_path):
    with Journal(tmp_path, {}), pytest.raises(ValueError, match="another run"):
        Journal(tmp_path, {})


def test_keys_are_equal_for_equal_questions_only():
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert (
        len({key_of("a", "b"), key_of("ab"), key_of(["a", "b"]), key_of("a", ["b"]), key_of("a", 1), key_of("a", "1")})
        == 6
    )


@pytest.mark.parametrize(
    "damage", [b"\x00\xff\n", b'{"key":"abc"}\n', b'{"answer":1}\n', b"[1]\n", b'{"key":3,"answer":1}\n', b"\n"]
)
def test_a_damaged_line_costs_that_line(tmp_path, damage):
    with Journal(tmp_path, {"model": "a"}) as journal:
        for name in ("one", "two", "three"):
            journal.put(name, name.upper())
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
    with Journal(tmp_path, {"model": "a"}) as journal:
        assert [journal.get(name) for name in ("one", "two", "three")] == ["ONE", None, "THREE"]
        assert journal.warnings == [
            "journal.jsonl has damaged lines: 1. They are not used, and what they answered is asked again."
        ]
        journal.put("two", "TWO")
    assert damage in journal.path.read_bytes()
    with Journal(tmp_path, {"model": "a"}) as journal:
        assert [journal.get(name) for name in ("one", "two", "three")] == ["ONE", "TWO", "THREE"]


def test_answers_whose_owner_cannot_be_read_are_refused_and_kept(tmp_path):
    with Journal(tmp_path, {"model": "a"}) as journal:
        journal.put("one", 1)
    data = b'{"journal":1,"id\n' + journal.path.read_bytes().partition(b"\n")[2]
    journal.path.write_bytes(data)
    with pytest.raises(ValueError, match=r"journal.jsonl:1: damaged.*another --out"):
        Journal(tmp_path, {"model": "a"})
    assert journal.path.read_bytes() == data


def test_an_answer_of_another_form_counts_as_damaged(tmp_path):
    with Journal(tmp_path, {}) as journal:
        journal.put("one", "1.5")
        journal.put("two", "x")
        assert (journal.take("one", float), journal.take("two", float), journal.take("three", float)) == (
            1.5,
            None,
            None,
        )
        assert journal.damaged == 1
