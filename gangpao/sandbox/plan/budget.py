"""What a budget of FLOPs, hours or yuan buys, and on which machine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gangpao import cost, machine
from gangpao.sandbox.bilingual import Text
from gangpao.sandbox.plan.findings import Laws
from gangpao.sandbox.trials.trial import Lab

HERE = "this machine"
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "秒": 1, "分钟": 60, "小时": 3600, "天": 86400}
_BUDGET = re.compile(
    r"\s*([0-9]+(?:[.][0-9]*)?(?:e[+-]?[0-9]+)?)\s*(flops?|yuan|元|s|min|h|d|秒|分钟|小时|天)\s*(?:on\s+(\S.*?))?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the recipe will run. speed: FLOP/s over all its cores; memory: bytes for training; assumed: nobody said so."""

    profile: str
    speed: float | None
    memory: int
    how: Text
    assumed: bool = False


def machine_of(budget: str, laws: Laws, lab: Lab, *, speed: float | None = None, memory: int | None = None) -> Machine:
    """The machine that a budget names ("... on PROFILE"), else the one that the sandbox ran on, whose speed was measured.

    memory: in bytes, else all that this machine has: what is free now says little about the day of the training. Raises
    ValueError for a speed or memory that is none.
    """
    own, where = cost.get_profile(lab.config.cost_profile)[0], parse_budget(budget)[2]
    name = cost.get_profile(where)[0] if where else own
    if memory is not None and memory <= 0:
        raise ValueError(f"memory {memory}: give what the machine has, above zero, for example 16 (GB)")
    if speed is not None:
        if not (math.isfinite(speed) and speed > 0):
            raise ValueError(f"speed {speed}: give FLOP/s above zero, for example 5e10")
        how = Text("the speed that was given", "给定的速度")
    else:
        speed = laws.speed if name == own else None
        how = Text(
            "the sandbox's largest trials, times the trials at a time: one run over all cores is taken to be as fast",
            "沙盒最大的试验乘以同时运行的试验数：假定一次训练占用全部核心时同样快",
        )
    return Machine(
        name, speed, machine.total_memory() if memory is None else memory, how, assumed=memory is None and name != own
    )


def parse_budget(text: str) -> tuple[float, str, str | None]:
    """Amount, unit (flops, s or yuan) and profile (None: this machine) of '8 h on this machine', '3e19 flops', '2000 yuan on
    desktop-cpu'. Raises ValueError saying how to write it."""
    found = _BUDGET.fullmatch(text)
    if found is None:
        raise ValueError(
            f"budget {text!r:.60}: write it like '8 h on this machine', '3e19 flops' or '2000 yuan on desktop-cpu'"
        )
    amount, unit = float(found[1]), found[2].lower()
    if not (math.isfinite(amount) and amount > 0):
        raise ValueError(f"budget {text!r:.60}: {found[1]} is no amount above zero")
    where = None if (found[3] or HERE).lower() == HERE else found[3]
    if unit in _SECONDS:
        return amount * _SECONDS[unit], "s", where
    return amount, "flops" if unit.startswith("flop") else "yuan", where


def flops_of(budget: str, here: Machine) -> float:
    """What a budget buys on a machine. Raises ValueError where its speed is not known, or it costs nothing."""
    amount, unit, _ = parse_budget(budget)
    if unit == "flops":
        return amount
    if here.speed is None:
        raise ValueError(
            f"budget {budget!r:.60}: how fast {here.profile} trains is not known; give its speed in FLOP/s, or flops"
        )
    price = cost.yuan_per_second(cost.get_profile(here.profile)[1])
    if unit == "yuan" and not price:
        raise ValueError(f"budget {budget!r:.60}: {here.profile} costs nothing: give hours or flops")
    return amount * here.speed / (price if unit == "yuan" else 1.0)
