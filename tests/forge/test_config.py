"""A line's TOML: which stages it has, where paths start, what is refused."""

import pytest

from gangpao.forge.config import load_forge_config


def write(tmp_path, text):
    path = tmp_path / "line.toml"
    path.write_text(text, encoding="utf-8")
    return path


WHOLE = """
name = "nano"
[data]
config = "data.toml"
[train]
config = { seq_len = 64, stages = [{ name = "stable", steps = 5 }] }
[tune.sft]
config = { data = { files = ["talks.jsonl"] } }
[tune.dpo]
config = "dpo.toml"
[evaluate]
texts = ["zh=held.txt", "held.txt", "more.txt"]
[export]
[check]
"""


def test_stages_have_one_order_and_tunings_the_files(tmp_path):
    config = load_forge_config(write(tmp_path, WHOLE))
    assert config.stages() == ["data", "train", "tune-sft", "tune-dpo", "evaluate", "export", "check"]
    assert config.stage("tune-dpo") is config.tune["dpo"]


def test_paths_start_at_the_file(tmp_path, monkeypatch):
    for name in ("talks.jsonl", "held.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    monkeypatch.chdir(tmp_path.parent)
    config = load_forge_config(write(tmp_path, WHOLE))
    assert config.data.config == str(tmp_path / "data.toml")
    assert config.tune["dpo"].config == str(tmp_path / "dpo.toml")
    assert config.tune["sft"].config == {"data": {"files": [str(tmp_path / "talks.jsonl")]}}
    held = tmp_path / "held.txt"
    assert config.evaluate.texts == (f"zh={held}", str(held), "more.txt")


def test_an_override_changes_a_stage(tmp_path):
    config = load_forge_config(write(tmp_path, WHOLE), ("export.type=Q4_0", 'tune.sft.set=["steps=3"]'))
    assert config.export.type == "Q4_0"
    assert config.tune["sft"].set == ("steps=3",)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name = 'x'", "there is no stage"),
        ("[train]\nconfig = 'a.toml'", r"add \[data\]"),
        ("[data]\nconfig = 'a.toml'\n[train]", r"no \[plan\]"),
        ("[data]\nconfig = 'a.toml'\n[plan]\nbudget = '1e9 flops'", r"add \[sandbox\]"),
        ("[export]", "has no model"),
        ("[tune.a]\nconfig = 'a.toml'", r"\[tune.a\] has no model"),
        ("model = 'x'\n[check]", r"add \[export\]"),
        ("model = 'x'\n[evaluate]", "measures nothing"),
        ("name = '../x'\nmodel = 'x'\n[export]", "letters, digits"),
        ("model = 'x'\n[exprot]\n", "did you mean export"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, text, what):
    with pytest.raises(ValueError, match=what):
        load_forge_config(write(tmp_path, text))


def test_a_word_is_no_path_whatever_lies_beside(tmp_path):
    (tmp_path / "full").mkdir()
    config = load_forge_config(write(tmp_path, "model = 'a'\n[tune.a]\nconfig = { method = { kind = 'full' } }\n"))
    assert config.tune["a"].config == {"method": {"kind": "full"}}


def test_a_pattern_and_a_named_data_set_start_at_the_file(tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    text = 'model = "a"\n[tune.a]\nconfig = { data.files = ["rows/*.jsonl", "dataset_info.json#b", "no/*.jsonl"] }\n'
    path = write(tmp_path, text)
    monkeypatch.chdir(tmp_path.parent)
    files = load_forge_config(path).tune["a"].config["data"]["files"]
    assert files == [str(tmp_path / "rows" / "*.jsonl"), str(tmp_path / "dataset_info.json#b"), "no/*.jsonl"]
