"""What came of a stage in a few words, in English and Chinese: the figure that a person looks at first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gangpao.page import Language
from gangpao.units import show_bytes

Facts = Mapping[str, Any]


def quality(facts: Facts, language: Language = "en") -> str:
    """Of the facts of a stage; empty where there is no figure."""
    for kind, said in _SAID.items():
        if kind in facts:
            return said(facts, language == "zh")
    return ""


def score(one: Mapping[str, Any]) -> str:
    """A value with its standard error, where it has one."""
    error = one.get("stderr")
    return f"{one['value']:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def _built(facts: Facts, zh: bool) -> str:
    return f"{sum(one['train']['tokens'] for one in facts['built']['sources'].values()):,} {'个 token' if zh else 'tokens'}"


def _experiments(facts: Facts, zh: bool) -> str:
    found = facts["experiments"]
    trials, yuan = (sum(one[key] or 0 for one in found.values()) for key in ("trials", "yuan"))
    if zh:
        return f"{', '.join(found)}：{trials:,} 个试验，共 {yuan:.3g} 元"
    return f"{', '.join(found)}: {trials:,} trials that cost {yuan:.3g} yuan"


def _choice(facts: Facts, zh: bool) -> str:
    choice, (low, high) = facts["choice"], facts["interval"]
    what, interval = f"{choice['width']}x{choice['layers']}, {choice['D']:,}", f"{low:.4f} .. {high:.4f}"
    if zh:
        return f"{what} 个 token，预测每字节 {choice['loss']:.4f} 比特（{interval}）"
    return f"{what} tokens, {choice['loss']:.4f} bits a byte predicted ({interval})"


def _trained(facts: Facts, zh: bool) -> str:
    bits, loss = facts["trained"]["heldout"].get("heldout_bpb"), facts["trained"]["loss"]
    if bits is None:
        said = f"损失 {loss:.4f}" if zh else f"loss {loss:.4f}"
    else:
        said = f"留出文本每字节 {bits:.4f} 比特" if zh else f"held-out {bits:.4f} bits a byte"
    for one in [one for one in facts.get("predicted", ()) if one["before"]][-1:]:
        what = f"{one['predicted']:.4f} ({one['error']:+.2f} %)"
        said += f"，预测 {what}" if zh else f", predicted {what}"
    return said


def _tuned(facts: Facts, zh: bool) -> str:
    tuned = facts["tuned"]
    first, last = tuned["heldout_first"].get("heldout"), tuned["heldout"].get("heldout")
    said = f"损失 {tuned['loss']:.4f}" if zh else f"loss {tuned['loss']:.4f}"
    if first is None or last is None:
        return said
    return f"{said}，留出 {first:.4f} 到 {last:.4f}" if zh else f"{said}, held-out {first:.4f} to {last:.4f}"


def _compressed(facts: Facts, zh: bool) -> str:
    last = facts["compressed"][-1]
    kl = last["kl_divergence"]
    return show_bytes(last["bytes"]) + ("" if kl is None else f", KL {kl:.4f}")


def _results(facts: Facts, zh: bool) -> str:
    tasks = [one for result in facts["results"] for one in result["tasks"] if one.get("main", True)]
    return ", ".join(f"{one['task']} {one['metric']} {score(one)}" for one in tasks[:3])


def _file(facts: Facts, zh: bool) -> str:
    return f"{facts['file']} ({show_bytes(facts['bytes'])})"


def _checked(facts: Facts, zh: bool) -> str:
    found = facts["checked"]
    wrong, speed = len(found["differing"]), f"{found['decode_tps']:.1f} tok/s"
    if zh:
        return f"{found['asked']} 个回答，{wrong} 个不同，{speed}"
    return f"{found['asked']} answers, {wrong or 'none'} differ, {speed}"


_SAID: dict[str, Callable[[Facts, bool], str]] = {
    "built": _built, "experiments": _experiments, "choice": _choice, "trained": _trained, "tuned": _tuned,
    "compressed": _compressed, "results": _results, "file": _file, "checked": _checked,
}  # fmt: skip
