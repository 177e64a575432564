"""A compression's TOML: steps by kind, wrong keys by line, paths beside the file; the configurations that ship are read."""

from pathlib import Path

import pytest

from gangpao.compress.line.config import DistilStep, QuantizeStep, load_compress_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def written(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("compress-*.toml")), ids=lambda path: path.stem)
def test_what_ships_is_read(path):
    assert load_compress_config(path).step


def test_steps_are_what_their_kind_says(tmp_path):
    path = written(
        tmp_path,
        'model = "m"\n[[step]]\nkind = "distil"\ndata.files = ["t.jsonl"]\n[[step]]\nkind = "quantize"\nto = "q4_k_m"\n',
    )
    first, second = load_compress_config(path).step
    assert isinstance(first, DistilStep)
    assert isinstance(second, QuantizeStep)
    assert second.to == "Q4_K_M"
    assert Path(first.data.root) == tmp_path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('model = "m"\n', "step"),
        ('model = "m"\n[[step]]\nkind = "prun"\n', 'did you mean "?prune'),
        ('model = "m"\n[[step]]\nto = "Q4_0"\n', "kind"),
        ('model = "m"\n[[step]]\nkind = "quantize"\ntoo = "Q4_0"\n', "line 4.*too.*unknown key"),
        ('model = "m"\n[[step]]\nkind = "quantize"\nto = "Q4_9"\n', "Q4_9"),
        ('model = "m"\n[[step]]\nkind = "quantize"\nbits = 4\nbytes = "1GB"\n', "two budgets"),
        ('model = "m"\n[[step]]\nkind = "quantize"\nto = "int4"\nbits = 4\n', "folder for servers"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        load_compress_config(written(tmp_path, text))


def test_set_changes_a_step_by_its_number(tmp_path):
    path = written(tmp_path, 'model = "m"\n[[step]]\nkind = "quantize"\nto = "Q4_0"\n')
    (step,) = load_compress_config(path, ("step.0.to=Q8_0",)).step
    assert step.to == "Q8_0"
