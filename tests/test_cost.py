"""Cost: the report's example, the arithmetic, the profiles and the user's own prices."""

import math
from datetime import date

import pytest

from gangpao import cost


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def test_the_example_of_the_report():
    """600 yuan, 7.5 tokens/s, 5 years: the report says 1.7 million tokens for 1 yuan, its inputs give 1.97 million."""
    phone = cost.load_profiles()["report-phone"]
    assert (phone.price_yuan, phone.lifetime_years, phone.power_watts) == (600, 5, 0)
    assert cost.tokens_per_yuan(phone, 7.5) == pytest.approx(1.971e6)
    assert cost.tokens_per_yuan(phone, 6.5) == pytest.approx(1.7e6, rel=0.005)


def test_every_part_of_the_price_counts():
    year = cost.SECONDS_PER_YEAR
    assert cost.yuan(cost.CostProfile(title="t", price_yuan=year, source="s"), 3) == pytest.approx(3)
    power = cost.CostProfile(title="t", power_watts=1000, electricity_yuan_per_kwh=0.6, source="s")
    assert cost.yuan(power, 3600) == pytest.approx(0.6)
    rent = cost.CostProfile(title="t", rent_yuan_per_hour=0.36, source="s")
    assert cost.tokens_per_yuan(rent, 10) == pytest.approx(10 * 3600 / 0.36)
    together = cost.CostProfile(
        title="t", price_yuan=year, power_watts=1000, electricity_yuan_per_kwh=0.6, rent_yuan_per_hour=0.36, source="s"
    )
    assert cost.yuan(together, 3600) == pytest.approx(3600 + 0.6 + 0.36)


def test_a_machine_that_rests_spreads_its_price_over_the_time_it_works():
    """Purchase and rent are paid for all hours, electricity for those of work."""
    whole = cost.CostProfile(
        title="t", price_yuan=600, power_watts=50, electricity_yuan_per_kwh=0.6, rent_yuan_per_hour=0.3, source="s"
    )
    assert whole.utilisation == 1
    half, silent = whole.model_copy(update={"utilisation": 0.5}), whole.model_copy(update={"power_watts": 0})
    electricity = cost.yuan_per_second(whole) - cost.yuan_per_second(silent)
    assert cost.yuan_per_second(half) == pytest.approx(2 * cost.yuan_per_second(silent) + electricity)


def test_price_and_tokens_agree():
    for name, profile in cost.load_profiles().items():
        seconds = 1e6 / 7.5
        assert cost.yuan(profile, seconds) == pytest.approx(1e6 / cost.tokens_per_yuan(profile, 7.5)), name


def test_edges():
    free = cost.CostProfile(title="t", source="s")
    assert cost.tokens_per_yuan(free, 5) == math.inf
    assert cost.yuan(free, 5) == 0
    assert cost.tokens_per_yuan(cost.load_profiles()["mini-pc"], 0) == 0
    with pytest.raises(ValueError, match="below zero"):
        cost.tokens_per_yuan(free, -1)
    for wrong in (
        {"price_yuan": -1},
        {"lifetime_years": 0},
        {"power_wats": 3},
        {"utilisation": 0},
        {"utilisation": 1.1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cost.CostProfile(title="t", source="s", **wrong)


def test_shipped_prices_are_dated_and_sourced():
    prices = cost.load_prices()
    assert prices.as_of >= date(2026, 11, 1)
    assert {"report-phone", "old-phone", "raspberry-pi-5", "mini-pc", "desktop-cpu", "cloud-2-vcpu"} <= set(
        prices.profiles
    )
    for name, profile in prices.profiles.items():
        assert cost.yuan_per_second(profile) > 0, name
        assert "our assumption, 2026-11" in profile.source or name == "report-phone"


def test_user_prices_are_merged_over(tmp_path):
    (tmp_path / "gangpao").mkdir()
    (tmp_path / "gangpao/cost.toml").write_text(
        'default = "mine"\n[profiles.mine]\ntitle = "Mine"\nprice_yuan = 100\nsource = "receipt"\n'
        "[profiles.mini-pc]\npower_watts = 35\n"
    )
    name, mine = cost.get_profile()
    assert (name, mine.price_yuan) == ("mine", 100)
    assert cost.load_profiles()["mini-pc"].power_watts == 35
    assert cost.load_profiles()["mini-pc"].price_yuan == 1300


def test_unknown_profile_lists_the_known():
    with pytest.raises(ValueError, match=r"'fridge': unknown; there are report-phone, .*cost\.toml"):
        cost.get_profile("fridge")


def test_a_default_that_does_not_exist(tmp_path):
    (tmp_path / "gangpao").mkdir()
    (tmp_path / "gangpao/cost.toml").write_text('default = "nothing"\n')
    with pytest.raises(ValueError, match="no such profile 'nothing'"):
        cost.get_profile()
