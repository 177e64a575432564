"""What `gangpao cost` prints: the facts of commands/cost.py as plain lines and tables."""

from __future__ import annotations

from typing import Any

from gangpao.evaluate.pricing.devices import Devices
from gangpao.evaluate.pricing.plots import label
from gangpao.evaluate.pricing.workload import SPEED, UNITS
from gangpao.units import table


def devices_table(found: Devices) -> str:
    """The phones by name."""
    rows = [[name, d.title, d.soc, d.os, d.ram_gb, f"{d.tok_s:g}"] for name, d in found.devices.items()]
    head = ["name", "device", "chip", "system", "RAM, GB", "tok/s"]
    return f"{table(head, rows)}\n\n{found.model}, {found.date}: {found.source}"


def report(facts: dict[str, Any]) -> str:
    """One speed on one machine."""
    per_yuan = facts["tokens_per_yuan"]
    lines = [
        *_assumptions(facts),
        "",
        f"tokens per yuan          {'no end: this machine costs nothing' if per_yuan is None else f'{per_yuan:,.0f}'}",
        f"yuan per million tokens  {facts['yuan_per_million']:.4g}",
    ]
    if len(facts["ways"]) > 1:
        lines += [
            f"  {way['what']:23}{way['answers_tps']:.1f} tok/s, {way['yuan_per_million']:.4g} yuan per million"
            for way in facts["ways"]
        ]
    if facts["report_example"]:
        lines += ["", *_example(facts)]
    lines += ["", *_sensitivity(facts), "", *_apis(facts)]
    lines += [f"plot: {facts['plot']}"] if facts["plot"] else []
    return "\n".join(lines)


def comparison(facts: dict[str, Any]) -> str:
    """Runs side by side."""
    rows = [
        [m["name"], f"{m['score']:.1f}", f"{m['yuan_per_million']:.4g}", "yes" if m["best_at_its_price"] else ""]
        for m in facts["models"]
    ]
    lines = [*_machine(facts), f"score        mean of {', '.join(facts['tasks'])}", ""]
    lines += [table(["model", "score, %", "yuan per million tokens", "best at its price"], rows), ""]
    lines += facts["notes"]
    lines += [f"plot: {facts['plot']}"] if facts["plot"] else []
    return "\n".join(lines).rstrip()


def _assumptions(facts: dict[str, Any]) -> list[str]:
    counted, speed = facts["counted"], facts["speed"]
    served, share = counted["served"], counted["input_share"]
    tps, whose = (speed["batch_tps"], "all answers together") if served else (speed["decode_tps"], "one answer")
    tokens = "of answers only; those of prompts are taken as free (--input-share counts them)"
    if share:
        tokens = f"{share:.0%} of prompts at {speed['prefill_tps']:.4g} tok/s, the rest of answers: "
        tokens += f"{counted['tokens_per_second']:.4g} tok/s in all"
    return [
        f"speed        {tps:.4g} tok/s of {whose}, {speed['from']}",
        f"tokens       {tokens}",
        *_machine(facts),
    ]


def _machine(facts: dict[str, Any]) -> list[str]:
    machine = facts["machine"]
    purchase = f"{machine['price_yuan']:g} yuan, used for {machine['lifetime_years']:g} years"
    changes = f", changed: {', '.join(facts['changed'])}" if facts["changed"] else ""
    return [
        f"machine      {machine['title']} (cost profile {facts['cost_profile']}{changes})",
        f"price        {purchase}" if machine["price_yuan"] else "price        none, it is not bought",
        *([f"rent         {machine['rent_yuan_per_hour']:g} yuan an hour"] if machine["rent_yuan_per_hour"] else []),
        f"utilisation  works {machine['utilisation']:.0%} of that time",
        f"power        {machine['power_watts']:g} W while it works and none while idle, "
        f"{machine['electricity_yuan_per_kwh']:g} yuan/kWh",
        f"source       {machine['source']}",
    ]


def _example(facts: dict[str, Any]) -> list[str]:
    example = facts["report_example"]
    return [
        f"The report's example: it prints {example['printed_tokens_per_yuan']:,.0f} tokens for 1 yuan "
        f"({example['printed_yuan_per_million']:.3g} yuan per million); its inputs give the {facts['tokens_per_yuan']:,.0f} above.",
        f"The printed figure would fit {example['fits_tokens_per_second']:.2g} tok/s. Source: {example['source']}.",
    ]


def _sensitivity(facts: dict[str, Any]) -> list[str]:
    rows = [
        [
            label(s["name"]),
            _value(s["name"], s["low"]),
            _value(s["name"], s["high"]),
            f"{s['at_low']:.4g}",
            f"{s['at_high']:.4g}",
        ]
        for s in facts["sensitivity"]
    ]
    head = ["assumption", "low", "high", "yuan per million at low", "at high"]
    lines = [table(head, rows)] if rows else []
    if facts["not_varied"]:
        lines.append(f"not varied, because they are 0: {', '.join(facts['not_varied'])} (--range NAME=LOW:HIGH)")
    return lines


def _value(name: str, value: float) -> str:
    return f"{value:.2f} x" if name == SPEED else f"{value:g} {UNITS[name]}"


def _apis(facts: dict[str, Any]) -> list[str]:
    rows, notes = [], []
    for row in facts["apis"]:
        times = row["times_ours"]
        asked = (
            f"{row['times_example']:g} x the report's example"
            if "times_example" in row
            else f"{row['input']:g} / {row['output']:g} {row['currency']} per {row['per_tokens']:,.0f}"
        )
        rows.append(
            [
                row["title"],
                asked,
                f"{row['yuan_per_million']:.4g}",
                f"{times:.3g} x" if times else "-",
                row["date"],
            ]
        )
        notes.append(f"  {row['name']}: {row['source']}{'; ' + row['rate'] if row['rate'] else ''}")
    head = ["API", "input / output", "yuan per million", "against ours", "as of"]
    return [table(head, rows), *notes, f"  prices of today belong into {facts['prices_file']}"]
