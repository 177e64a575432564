"""What a stage's command would refuse is said before the first stage runs."""

import copy

import pytest

from gangpao import cli
from gangpao.config import to_toml
from gangpao.forge.config import ForgeConfig, load_forge_config
from gangpao.forge.line import _Line
from tests.forge.small import CONFIGS, small_line

SANDBOX = {"data": str(CONFIGS / "data-tiny.toml"), "seq_len": 64}
PLANNED = {"sandbox": {"config": SANDBOX}, "plan": {"budget": "1e9 flops"}, "train": {}}


def change(table, where, value):
    """The tables of a line with another value at "a.b.c"; None takes it away."""
    *way, last = where.split(".")
    for key in way:
        table = table[key]
    if value is None:
        del table[last]
    else:
        table[last] = value


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("data.set", ["sources.nobody.documents=3"], r"[data] "),
        ("sandbox.set", ["seqlen=3"], "[sandbox] --set seqlen=3: seqlen: unknown key; did you mean seq_len?"),
        ("tune.sft.config", {"data": {"files": ["gone.jsonl"]}}, "gone.jsonl: there is no such file"),
        ("tune.preference.config.objective", {"kind": "dpu"}, "[tune.preference] "),
        ("compress.config.step", [{"kind": "quantize", "to": "Q4_9"}], "[compress] "),
        ("evaluate.texts", ["stories=gone.txt"], "[evaluate] texts: "),
        ("evaluate.suites", ["nobody"], "[evaluate] --suite 'nobody': there is no such suite"),
        ("export.type", "Q4_9", "[export] type: 'Q4_9' is not written"),
    ],
)
def test_nothing_is_done_where_a_stage_is_wrong(tmp_path, capsys, where, value, said):
    table = copy.deepcopy(small_line(whole=True))
    change(table, where, value)
    (tmp_path / "line.toml").write_text(to_toml(table), encoding="utf-8")
    assert cli.main(["forge", str(tmp_path / "line.toml"), "--out", str(tmp_path / "run")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("sandbox.config.seq_len", 32, "seq_len is 64, and the model will read 32 tokens"),
        ("sandbox.experiments", ["lr", "scalling"], "there is no 'scalling'"),
        ("sandbox.config.seq_len", 1, "seq_len"),
        ("plan.budget", "much", "write it like"),
    ],
)
def test_plans_that_lead_to_nothing_are_refused(tmp_path, where, value, said):
    table = {**small_line(), **PLANNED, "sandbox": {"config": dict(SANDBOX)}, "plan": {"budget": "1e9 flops"}}
    change(table, "tune.sft.config", {**table["tune"]["sft"]["config"], "seq_len": 64, "batch_tokens": 512})
    line = _Line(ForgeConfig.model_validate(table), None, tmp_path, None)
    line.check(line.config.stages())
    change(table, where, value)
    line = _Line(ForgeConfig.model_validate(table), None, tmp_path, None)
    with pytest.raises(ValueError, match=said):
        line.check(line.config.stages())


def test_the_shipped_line_passes(tmp_path):
    config = load_forge_config(CONFIGS / "forge-quick.toml")
    _Line(config, None, tmp_path, None).check(config.stages())


def test_the_line_of_our_own_model_passes(tmp_path):
    """Its text is not in the checkout: what names it is left out."""
    config = load_forge_config(CONFIGS / "forge-nano.toml")
    most = config.sandbox.config["seq_len"]
    assert [stage.config["seq_len"] for stage in config.tune.values()] == [most, most]
    _Line(config, None, tmp_path, None).check(["plan", "export", "check"])
