"""Configuration files: merging, overrides, and errors that name the file, the key and the nearest valid one."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from gangpao import config


class Wheel(config.Frozen):
    kind: Literal["wheel"]
    spokes: int = 32


class Sledge(config.Frozen):
    kind: Literal["sledge"]
    runners: int = 2


class Lock(config.Frozen):
    keys: int = 1
    made_by: Literal["Anna", "Ben"] = "Anna"
    manual: config.PathText = ""


class Cart(config.Frozen):
    title: str = ""
    parts: tuple[Annotated[Wheel | Sledge, Field(discriminator="kind")], ...] = ()


class Yard(config.Frozen):
    owner: str
    size: float = Field(1.0, gt=0)
    carts: dict[str, Cart] = Field({})
    lock: Lock = Lock()
    plan: config.PathText | None = None


@pytest.fixture
def write(tmp_path):
    def make(text, name="yard.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def test_a_file_becomes_a_frozen_model(write):
    yard = config.load_toml(write('owner = "王"\n[carts.a]\nparts = [{kind = "wheel"}, {kind = "sledge"}]\n'), Yard)
    assert yard.owner == "王"
    assert [part.kind for part in yard.carts["a"].parts] == ["wheel", "sledge"]
    with pytest.raises(ValidationError, match="frozen"):
        yard.owner = "somebody else"


def test_user_file_and_overrides_are_merged_in_order(write, tmp_path):
    base = write('owner = "a"\nsize = 1\n[carts.x]\ntitle = "old"\n[carts.y]\ntitle = "kept"\n')
    user = write('size = 2\n[carts.x]\ntitle = "mine"\n', "user.toml")
    yard = config.load_toml(base, Yard, ["owner=b c", 'carts."q.1".title=z'], user_files=[user, tmp_path / "missing"])
    assert (yard.owner, yard.size) == ("b c", 2.0)
    assert {name: cart.title for name, cart in yard.carts.items()} == {"x": "mine", "y": "kept", "q.1": "z"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1", 1), ("a.b = 1.5", 1.5), ("a.b=true", True), ('a.b="1"', "1"), ("a.b=[1, 2]", [1, 2]),
        ("a.b=plain words", "plain words"), ("a.b=", ""), ('a.b=say "hi" \\n', 'say "hi" \\n'), ("a.b=x=y", "x=y"),
    ],
)  # fmt: skip
def test_overrides(text, value):
    assert config.parse_override(text) == {"a": {"b": value}}


@pytest.mark.parametrize("text", ["a", "=1", "a b=1", "a..b=1", "a=1\nb=2", "a\nb=1"])
def test_bad_overrides_say_how(text):
    with pytest.raises(ValueError, match="--set "):
        config.parse_override(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('owner = "a"\nsise = 2', ["yard.toml", "sise", "unknown key", "did you mean size?"]),
        ('owner = "a"\n[carts.x]\ntitel = ""', ["carts.x.titel", "did you mean title?"]),
        (
            'owner = "a"\n[[carts.x.parts]]\nkind = "wheel"\nspoke = 3',
            ["carts.x.parts.0.spoke", "did you mean spokes?"],
        ),
        ('owner = "a"\n[[carts.x.parts]]\nkind = "wheel"\nspokes = "many"', ["carts.x.parts.0.spokes", "integer"]),
        ('owner = "a"\n[[carts.x.parts]]\nkind = "wing"', ["carts.x.parts.0", "wheel"]),
        ('owner = "a"\nsize = -1', ["size", "greater than 0"]),
        ("size = 1", ["yard.toml", "owner", "required"]),
        ("size = \nowner = 1", ["yard.toml", "not valid TOML", "line 1"]),
    ],
)
def test_errors_name_file_key_and_remedy(write, text, parts):
    with pytest.raises(ValueError, match=r".") as error:
        config.load_toml(write(text), Yard)
    for part in parts:
        assert part in str(error.value)


def test_the_error_names_the_layer_that_is_wrong(write):
    base, user = write('owner = "a"\n'), write("sise = 2\n", "user.toml")
    with pytest.raises(ValueError, match=r"user\.toml, line 1: sise: unknown key"):
        config.load_toml(base, Yard, user_files=[user])
    with pytest.raises(ValueError, match=r"--set sizee=3: sizee: unknown key; did you mean size"):
        config.load_toml(base, Yard, ["sizee=3"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('owner = "a"\n\nsize = "big"', 'line 3: size: must be a number, not "big"'),
        (
            'owner = "a"\n[lock]\nmade_by = "Bem"',
            'line 3: lock.made_by: must be "Anna" or "Ben", not "Bem"; did you mean Ben?',
        ),
        ('owner = "a"\nkeys = 3', "line 2: keys: unknown key; did you mean lock.keys? (known: owner"),
        ('owner = "a"\nlock = 3', "line 2: lock: must be a table, not 3"),
        ('owner = ["a", "b"]', "line 1: owner: must be text in quotes, not a list of 2"),
        (
            'owner = {name = "a", year = 1, more = [1, 2]}',
            "line 1: owner: must be text in quotes, not a table with name, year, more",
        ),
        ('owner = "a"\ncarts = {x = 3}', "line 2: carts.x: must be a table, not 3"),
        (
            'owner = "a"\n[carts.x]\nparts = [\n {kind = "wheel"},\n {kind = "wheel", spokes = 0.5},\n]',
            "line 3: carts.x.parts.1.spokes: must be an integer, not 0.5",
        ),
        (
            'owner = "a"\n[[carts.x.parts]]\nkind = "wheel"\n[[carts.x.parts]]\nspokes = 3',
            "line 4: carts.x.parts.1: it needs the key kind",
        ),
        (
            'owner = """a\n[lock]\n"""\nplan = ' + f"[{'1, ' * 50}]",
            "line 4: plan: must be text in quotes, not a list of 50",
        ),
        ('owner = "a"\nsize = "' + "long " * 50 + '"', ': must be a number, not "long long long'),
    ],
)
def test_errors_have_the_line_and_the_value_in_the_words_of_the_file(write, text, said):
    with pytest.raises(ValueError, match=r".") as error:
        config.load_toml(write(text), Yard)
    assert said in str(error.value)
    assert "{" not in str(error.value)
    assert len(str(error.value).partition("line")[2]) < 160


def test_a_set_reaches_into_a_list_by_number(write):
    base = write('owner = "a"\n[[carts.x.parts]]\nkind = "wheel"\n[[carts.x.parts]]\nkind = "sledge"\nrunners = 3')
    parts = config.load_toml(base, Yard, ["carts.x.parts.0.spokes=8"]).carts["x"].parts
    assert (parts[0].spokes, parts[1].runners) == (8, 3)
    with pytest.raises(
        ValueError, match=r"^--set carts\.x\.parts\.1\.runners=x: carts\.x\.parts\.1\.runners: must be an integer"
    ):
        config.load_toml(base, Yard, ["carts.x.parts.1.runners=x"])
    with pytest.raises(ValueError, match=r"carts\.x\.parts: must be a list"):
        config.load_toml(base, Yard, ["carts.x.parts.2.spokes=8"])


def test_what_is_not_toml_in_a_set_is_said_to_be_taken_as_text(write):
    with pytest.raises(ValueError, match=r"--set lock=\{keys=2: lock: must be a table, not .* \(it is not TOML"):
        config.load_toml(write('owner = "a"'), Yard, ["lock={keys=2"])


def test_many_errors_are_counted(write):
    with pytest.raises(ValueError, match=r"; and 3 more$"):
        config.load_toml(write('owner = "a"\n' + "\n".join(f"k{i} = 1" for i in range(8))), Yard)


def test_paths_are_relative_to_the_file_that_says_them_or_to_where_a_set_is_typed(write, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    base = write('owner = "a"\nplan = "x/y"\nlock = {manual = "../m"}', "there/yard.toml")
    yard = config.load_toml(base, Yard)
    assert (yard.plan, yard.lock.manual) == (f"{tmp_path}/there/x/y", f"{tmp_path}/m")
    yard = config.load_toml(base, Yard, ["plan=x/y", "lock.manual=~/z"])
    assert (yard.plan, yard.lock.manual) == (f"{tmp_path}/here/x/y", f"{tmp_path}/z")
    assert config.load_toml(base, Yard, ["lock.manual="]).lock.manual == ""
    user = write('plan = "../p"', "here/user.toml")
    assert config.load_toml(base, Yard, user_files=[user]).plan == f"{tmp_path}/p"


def test_overrides_of_another_configuration_take_their_paths_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = ('lock.manual = a "b"', "lock.keys=2")
    anchored = config.anchored_overrides(texts, Yard, tmp_path / "there" / "x.toml", "yard_set", [])
    assert config.parse_override(anchored[0]) == {"lock": {"manual": f'{tmp_path}/there/a "b"'}}
    assert anchored[1] == "lock.keys=2"
    anchored = config.anchored_overrides(texts, Yard, tmp_path / "there" / "x.toml", "yard_set", ['yard_set=["a=1"]'])
    assert config.parse_override(anchored[0]) == {"lock": {"manual": f'{tmp_path}/a "b"'}}


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(ValueError, match=r"no\.toml: cannot be read"):
        config.load_toml(tmp_path / "no.toml", Yard)
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not valid TOML"):
        config.load_toml(tmp_path / "bad.toml", Yard)


def test_config_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.config_dir() == tmp_path / "gangpao"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.config_dir() == tmp_path / ".config" / "gangpao"


def test_paths_of_tables_by_name_and_of_lists_start_at_the_file(tmp_path):
    class Yards(config.Frozen):
        locks: dict[str, Lock] = Field({})
        spare: tuple[Lock, ...] = ()

    path = tmp_path / "yards.toml"
    path.write_text("[locks.front]\nmanual = 'a.pdf'\n[[spare]]\nmanual = 'b.pdf'\n[[spare]]\n", encoding="utf-8")
    found = config.load_toml(path, Yards, ["locks.back.manual=c.pdf"])
    assert {name: lock.manual for name, lock in found.locks.items()} == {
        "front": str(tmp_path / "a.pdf"), "back": str(Path("c.pdf").absolute()),
    }  # fmt: skip
    assert [lock.manual for lock in found.spare] == [str(tmp_path / "b.pdf"), ""]


def test_toml_of_awkward_values_reads_back():
    values = {
        "a": 'quo"te\\ \n \x7f 中文', "f": 1e-05, "g": 1e16, "b": True, "l": ["x", "y"], "n": [],
        "t": {"k.with dots": {"z": 1}, "y": 2.5},
        "s": [{"name": "one", "m": {"u": 0.5}}, {"name": "two"}],
        "mixed": [{"path": "a b", "more": {"x.y": [1, {"z": []}]}}, "c", {}],
        "u": {"files": ["c", {"path": "a", "weight": 2.0}], "deep": [{"files": [{"path": "a"}, "b"]}]},
    }  # fmt: skip
    assert tomllib.loads(config.to_toml(values)) == values
