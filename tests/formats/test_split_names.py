"""Names of the files of a split model."""

import pytest

from gangpao.formats.split_names import part_name, parts_of, stem_of


def test_every_part_names_all() -> None:
    parts = [f"a/X-Q8_0-0000{i}-of-00003.GGUF" for i in (1, 2, 3)]
    assert all(parts_of(part) == parts for part in parts)
    assert parts_of(part_name("x", 2, 3)) == [part_name("x", i, 3) for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "single",
    ["x.gguf", "x-00004-of-00003.gguf", "x-00000-of-00003.gguf", "x-00001-of-99999.gguf", "x-1-of-3.gguf"],
)
def test_any_other_name_is_one_file(single: str) -> None:
    assert parts_of(single) == [single]


def test_the_stem_is_the_name_without_number_and_suffix() -> None:
    assert stem_of("x-00002-of-00003.gguf") == "x"
    assert [stem_of(name) for name in ("x.y.gguf", "folder", ".hidden")] == ["x.y", "folder", ".hidden"]
