"""What cannot be meant is refused when the file is read, with the name of its field, and what can be meant is taken."""

import pytest

from gangpao.sandbox.experiments.config import config_type, load_sandbox_config
from gangpao.sandbox.trials.config import Common
from tests.train.conftest import CONFIGS

QUICK = CONFIGS / "sandbox-quick.toml"
SIZE, OTHER = "{width = 32, layers = 2}", "{width = 48, layers = 2}"
# Lists of every experiment that mean nothing without values.
LISTS = {
    "lr.rates": "0.01", "lr.rules": '"minicpm"', "lr.seeds": "0", "batch.batches": "1024", "batch.seeds": "0",
    "schedule.horizons": "5000", "schedule.decays": "0.1", "schedule.shapes": '"wsd"', "schedule.cosine_rates": "1.0",
    "schedule.seeds": "0", "scaling.sizes": SIZE, "scaling.tokens": "5000", "scaling.seeds": "0", "mix.seeds": "0",
    "optim.optimizers": '"muon"', "optim.rates": "0.01", "optim.tokens": "5000", "optim.seeds": "0", "search.seeds": "0",
}  # fmt: skip
# Those that may be empty.
OPTIONAL = {
    "lr.widths": "32", "lr.layers": "2", "lr.standard_rates": "0.01", "batch.check": SIZE, "scaling.targets": SIZE,
}  # fmt: skip


def load(*overrides):
    return load_sandbox_config(QUICK, overrides)


@pytest.mark.parametrize("field", [*LISTS, "batch.sizes"])
def test_an_empty_list_is_refused_by_its_name(field):
    with pytest.raises(ValueError, match=f"{field}: .*is empty; give one value or more"):
        load(f"{field}=[]")


@pytest.mark.parametrize(("field", "value"), [*LISTS.items(), *OPTIONAL.items(), ("batch.sizes", SIZE)])
def test_a_value_twice_is_refused_by_its_name(field, value):
    table, name = field.split(".")
    load(f"{field}=[{value}]")
    with pytest.raises(ValueError, match=f"{table}.*{name}: .*there twice"):
        load(f"{field}=[{value}, {value}]")


@pytest.mark.parametrize("field", [*OPTIONAL, "batch.tokens", "batch.check_tokens", "scaling.target_tokens"])
def test_what_may_be_empty_may_be(field):
    load(f"{field}=[]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr.seeds=[-1]", "lr.seeds.0: .*greater than or equal to 0"), ("lr.rates=[0.01, 0.0]", "lr.rates.1: .*greater than 0"),
        ("lr.rates=[0.01, inf]", "lr.rates.1: .*finite"), ("common.lr=inf", "common.lr: .*finite"),
        ("lr.widths=[0]", "lr.widths.0"), ("lr.layers=[0]", "lr.layers.0"),
        ("lr.rules=['minicp']", "lr.rules.0: .*there are minicpm"),
        ("common.rule='none'", "common.rule: .*there are minicpm"), ("batch.batches=[0]", "batch.batches.0"),
        ("schedule.horizons=[-5]", "schedule.horizons.0"), ("schedule.decays=[0.0]", "schedule.decays.0"),
        ("schedule.decays=[1.0]", "schedule.decays.0"), ("schedule.decays=[1.5]", "schedule.decays.0"),
        ("schedule.cosine_rates=[-1.0]", "schedule.cosine_rates.0"), ("scaling.tokens=[0]", "scaling.tokens.0"),
        ("scaling.sizes=[{width=32, layers=2, tokens=[5000, 5000]}]", "scaling.sizes.0.tokens: .*5000 is there twice"),
        ("scaling.floor=[1.0, 0.0]", "scaling.floor.1"), ("scaling.floor=[-1.0, 0.1]", "scaling.floor.0"),
        ("mix.mixtures={a={x=inf}}", "mix.mixtures.a.x: .*finite"), ("optim.tokens=[-1]", "optim.tokens.0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_its_place(override, message):
    with pytest.raises(ValueError, match=message):
        load(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("batch.tokens=[5000]",), "batch.tokens: .*1 numbers for 3 in sizes; give one for each, or none"),
        (("batch.check_tokens=[5000]",), "batch.check_tokens: .*1 numbers for 0 in check"),
        ((f"batch.check=[{SIZE}]", "batch.check_tokens=[5000, 6000]"), "2 numbers for 1 in check"),
        ((f"scaling.targets=[{SIZE}]", "scaling.target_tokens=[5000, 6000]"), "target_tokens: .*2 numbers for 1 in targets"),
        ((f"batch.sizes=[{SIZE}, {SIZE}]", "batch.tokens=[5000, 5000]"), "sizes: 32x2 with 5,000 tokens is there twice"),
        ((f"scaling.targets=[{SIZE}, {SIZE}]", "scaling.target_tokens=[5000]"), "targets: 32x2 is there twice"),
    ],
)  # fmt: skip
def test_lists_that_belong_together_must_fit(overrides, message):
    with pytest.raises(ValueError, match=message):
        load(*overrides)


def test_a_size_again_with_other_tokens_is_another_run():
    load(f"batch.sizes=[{SIZE}, {SIZE}, {OTHER}]", "batch.tokens=[5000, 6000, 5000]")
    load(f"scaling.targets=[{SIZE}, {SIZE}]", "scaling.target_tokens=[5000, 6000]")
    load(f"scaling.targets=[{SIZE}, {OTHER}]", "scaling.target_tokens=[5000]")
    load("scaling.targets=[]", "scaling.target_tokens=[5000, 6000]")  # switched off


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{lrr = {low = 0.1, high = 0.2}}", "search.space: .*'lrr' is no field of a trial; did you mean lr"),
        ("{weight-decay = {choices = [0.1]}}", "did you mean weight_decay"),
        ("{xyzzy = {choices = [1]}}", "did you mean width, layers"), ("{seed = {choices = [1]}}", "give search.seeds"),
        ("{}", "name one field of a trial"), ("{optimizer = {choices = ['adam']}}", "optimizer: 'adam' cannot be"),
        ("{rule = {choices = ['minicp']}}", "there are minicpm"), ("{decay = {low = 0.1, high = 2.0}}", "decay: 2 cannot be"),
        ("{layers = {low = 1.5, high = 3}}", "layers: 1.5 cannot be"), ("{width = {choices = ['16']}}", "width: '16' cannot be"),
        ("{width = {choices = [16, 20]}}", "search.space.width: give choices that are multiples of head_dim 16"),
        ("{batch_tokens = {low = 65, high = 127}}", "search.space.batch_tokens: no multiple of seq_len 64 is between 65 and 127"),
        ("{lr = {low = 0.1}}", "give low and high, or choices"), ("{lr = {low = 0.1, choices = [0.1]}}", "high, or choices"),
        ("{lr = {choices = [0.1, 0.1]}}", "search.space.lr.choices: .*there twice"),
    ],
)  # fmt: skip
def test_a_search_that_a_worker_could_not_do_is_refused(space, message):
    with pytest.raises(ValueError, match=message):
        load(f"search.space={space}")


def test_every_field_of_a_trial_can_be_searched():
    common = Common().model_dump(exclude={"seed", "width", "batch_tokens"})
    space = {name: {"choices": [value]} for name, value in common.items()}
    space |= {"width": {"choices": [16, 32.0]}, "batch_tokens": {"choices": [64, 128]}}
    config_type().model_validate({"data": "x", "head_dim": 16, "seq_len": 64, "search": {"space": space}})
    load("search.space={layers = {low = 1, high = 4}, lr = {low = 0.001, high = 0.1}}")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sandbox-*.toml")), ids=lambda p: p.name)
def test_a_worker_reads_what_the_driver_wrote(path):
    config = load_sandbox_config(path)
    assert config_type().model_validate_json(config.model_dump_json()) == config
