"""Every published MiniCPM configuration loads with its exact count, or the error names what is missing; the docs say the same."""

import json
import re
from pathlib import Path

import pytest

from gangpao.model.command import examine, find, report
from gangpao.model.config import PRESETS, ModelConfig, from_hf, to_hf
from gangpao.model.count import parameters

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads((ROOT / "tests/fixtures/minicpm_configs.json").read_text(encoding="utf-8"))["rows"]
BY_NAME = {row["name"]: row for row in ROWS}
LOADED = [row["name"] for row in ROWS if "total" in row]


def config_of(row):
    """The whole config.json of a row."""
    base = config_of(BY_NAME[row["like"]]) if "like" in row else {}
    data = {key: value for key, value in base.items() if key not in row.get("without", ())} | row["config"]
    for key in {"rope_scaling", "rope_parameters"} & data.keys():
        data[key] = data[key] and {
            k: [1.0 + 0.1 * i for i in range(v)] if k.endswith("_factor") and isinstance(v, int) else v
            for k, v in data[key].items()
        }
    return data


@pytest.mark.parametrize("name", BY_NAME)
def test_it_loads_with_the_exact_count_or_names_what_is_missing(name, tmp_path, caplog):
    row = BY_NAME[name]
    (tmp_path / "config.json").write_text(json.dumps(config_of(row)))
    if "missing" in row:
        with pytest.raises(ValueError, match=f"config.json: .*{row['missing']}"):
            ModelConfig.from_file(tmp_path / "config.json")
        return
    config = ModelConfig.from_file(tmp_path / "config.json")
    assert parameters(config).total == row["total"]
    assert config.remarks == find(str(tmp_path)).remarks
    said = caplog.text + report(name, examine(find(str(tmp_path)), 4096, 4096))
    assert said.count(row.get("remark", "note:")) == (2 if "remark" in row else 0)


@pytest.mark.parametrize("name", LOADED)
def test_it_survives_config_json(name):
    config = from_hf(config_of(BY_NAME[name])).model_copy(update={"tensor_prefix": None})
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize("name", [name for name in LOADED if "preset" in BY_NAME[name]])
def test_its_preset_has_its_shape(name):
    """Presets lack what only a checkpoint brings: rope factors; the older ones say 4,096 positions, as they were trained."""
    config, preset = from_hf(config_of(BY_NAME[name])), PRESETS[BY_NAME[name]["preset"]]
    changed = {"rope_scaling", "eos_token_id"}
    changed |= {"max_position_embeddings"} if config.max_position_embeddings < 4096 else set()
    assert config.model_dump(exclude=changed) == preset.model_dump(exclude=changed)


@pytest.mark.parametrize("page", ["checkpoints.md", "checkpoints.zh.md"])
def test_the_docs_say_the_same(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| Mini")
    ]
    rows += [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| BitCPM")
    ]
    assert {row[0] for row in rows} == BY_NAME.keys()
    for name, count, *_ in rows:
        total = BY_NAME[name].get("total")
        assert count == (f"{total:,}" if total else "-"), name
    named = set(re.findall(r"`(minicpm[\w.-]+|bitcpm[\w.-]+)`", text))
    assert {row["preset"] for row in ROWS if "preset" in row} <= named <= PRESETS.keys()
