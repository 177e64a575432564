"""Prices of tokens and their sensitivity are the arithmetic that the documents state."""

import math

import pytest

from gangpao import cost
from gangpao.evaluate.pricing import api, devices
from gangpao.evaluate.pricing.workload import INPUTS, Workload, changed, sensitivity, yuan_per_million


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def profile(**over):
    values = {"price_yuan": 4000, "lifetime_years": 5, "power_watts": 80, "electricity_yuan_per_kwh": 0.6}
    return cost.CostProfile(title="t", source="s", **values | over)


def test_a_million_tokens_agree_with_tokens_per_yuan():
    assert yuan_per_million(profile(), Workload(7.5)) == pytest.approx(1e6 / cost.tokens_per_yuan(profile(), 7.5))


def test_prompts_and_answers_take_their_own_time():
    work = Workload(10, prefill_tps=200, input_share=0.75)
    assert 1e6 / work.tps == pytest.approx(750_000 / 200 + 250_000 / 10)
    assert Workload(10, prefill_tps=200).tps == 10


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((0.0,), "must be above 0"), ((math.nan,), "must be above 0"), ((math.inf,), "above 0"),
        ((5, 0.0), "speed of prompts"), ((5, 100, 1.5), "between 0 and 1"), ((5, 100, -0.1), "between 0 and 1"),
        ((5, None, 0.5), "--prefill-speed"),
    ],
)  # fmt: skip
def test_what_cannot_be_priced_says_why(args, match):
    with pytest.raises(ValueError, match=match):
        Workload(*args)


def test_every_assumption_is_varied_alone_and_the_widest_comes_first():
    swings, fixed = sensitivity(profile(), Workload(10))
    assert fixed == ["rent_yuan_per_hour"]
    assert {s.name for s in swings} | set(fixed) == set(INPUTS)
    assert [s.width for s in swings] == sorted((s.width for s in swings), reverse=True)
    by_name = {s.name: s for s in swings}
    assert by_name["price_yuan"].at_high == pytest.approx(yuan_per_million(profile(price_yuan=8000), Workload(10)))
    assert by_name["lifetime_years"].at_low == pytest.approx(
        yuan_per_million(profile(lifetime_years=2.5), Workload(10))
    )
    assert by_name["speed"].at_high == pytest.approx(yuan_per_million(profile(), Workload(13)))
    assert by_name["utilisation"].at_low == pytest.approx(yuan_per_million(profile(utilisation=0.1), Workload(10)))


def test_ranges_of_ones_own_replace_ours():
    swings, fixed = sensitivity(profile(), Workload(10), {"rent_yuan_per_hour": (0, 1), "speed": (0.9, 1.1)})
    assert fixed == []
    by_name = {s.name: s for s in swings}
    assert (by_name["rent_yuan_per_hour"].low, by_name["rent_yuan_per_hour"].high) == (0, 1)
    assert by_name["speed"].at_low == pytest.approx(yuan_per_million(profile(), Workload(9)))
    with pytest.raises(ValueError, match=r"--range: utilisation"):
        sensitivity(profile(), Workload(10), {"utilisation": (0.1, 2)})
    with pytest.raises(ValueError, match="factor on the speed"):
        sensitivity(profile(), Workload(10), {"speed": (0, 1)})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"utilisation": 1.2}, r"utilisation.*1\.2"), ({"utilisation": 0}, "utilisation"),
        ({"utilization": 0.5}, "utilisation"), ({"price_yuan": math.inf}, "price_yuan"),
    ],
)  # fmt: skip
def test_a_wrong_figure_is_named(values, match):
    with pytest.raises(ValueError, match=match):
        changed(profile(), values, "--set")


def test_the_phone_table_is_whole():
    """Rows and speeds of the README's table, the row that it prints twice included; the least and the fastest."""
    table = devices.load()
    speeds = sorted(d.tok_s for d in table.devices.values())
    assert speeds == [
        1.3, 1.9, 2.3, 3.0, 3.0, 3.0, 3.2, 3.5, 3.5, 3.5, 3.7, 3.7, 4.6, 5.8, 5.8, 6.4, 6.5, 15.0, 18.0,
    ]  # fmt: skip
    assert sum("iOS" in d.os for d in table.devices.values()) == 5
    with pytest.raises(ValueError, match=r"Did you mean iphone-15\? There are oppo-find-n3, .*redmi-k50"):
        devices.get("iPhone 15s")


def test_the_rows_of_the_report_are_its_ratios():
    prices = api.load()
    mistral, gpt4 = (prices.yuan_per_million(f"{name}-report", 0.5) for name in ("mistral-medium", "gpt-4"))
    assert mistral == pytest.approx(100 / 1.7)
    assert gpt4 == pytest.approx(360 / 1.7)
    phone = cost.load_profiles()[prices.example.profile]
    assert cost.tokens_per_yuan(phone, prices.example.tok_s) == pytest.approx(1.971e6)
    assert all(row.source and row.date for row in prices.prices.values())


OWN = """
[prices.mine]
title = "Mine"
input = 0.5
output = 2
currency = "USD"
date = "2026-11-28"
source = "its page"
"""


def test_prices_of_ones_own_need_a_rate(tmp_path):
    (tmp_path / "gangpao").mkdir()
    file = tmp_path / "gangpao/api_prices.toml"
    file.write_text(OWN)
    with pytest.raises(ValueError, match=r"api_prices\.toml: prices\.mine: no rate for USD: add \[rates\.USD\]"):
        api.load().yuan_per_million("mine", 0)
    api._load.cache_clear()
    file.write_text(OWN + '[rates.USD]\nyuan = 7\ndate = "2026-11-28"\nsource = "a bank"\n')
    prices = api.load()
    assert prices.yuan_per_million("mine", 0.75) == pytest.approx(7 * (0.75 * 0.5 + 0.25 * 2))
    assert prices.rate_line("mine") == "1 USD = 7 yuan (2026-11-28, a bank)"
    assert "gpt-4-report" in prices.prices
    api._load.cache_clear()


@pytest.mark.parametrize("wrong", ["input = 1", "input = 1\noutput = 1\ntimes_example = 3", ""])
def test_a_row_has_prices_or_a_ratio(wrong, tmp_path):
    (tmp_path / "gangpao").mkdir()
    text = f'[prices.mine]\ntitle = "Mine"\n{wrong}\ndate = "2026-11-28"\nsource = "s"\n'
    (tmp_path / "gangpao/api_prices.toml").write_text(text)
    with pytest.raises(ValueError, match=r"prices\.mine: a row has input and output, or times_example"):
        api.load()
