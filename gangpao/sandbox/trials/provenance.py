"""Where a result comes from: when, with which configuration and data, by which code, on which machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gangpao
from gangpao import machine
from gangpao.sandbox.bilingual import Text
from gangpao.sandbox.trials.queue import workers_of
from gangpao.sandbox.trials.trial import Lab
from gangpao.units import show_seconds, utc_now


def provenance(lab: Lab, config: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Plain data. config: the sandbox's TOML as it was given; overrides: what --set put over it."""
    resolved = json.dumps(lab.config.model_dump(mode="json"), sort_keys=True)
    return {
        "when": utc_now(),
        "config": str(config) if config else None,
        "set": list(overrides),
        "config_sha256": hashlib.sha256(resolved.encode()).hexdigest(),
        "data": Path(lab.config.data).name,
        "data_fingerprint": lab.built.fingerprint,
        "gangpao": gangpao.__version__,
        "commit": machine.git_commit(),
        "machine": machine.cpu_name(),
        "cores": machine.physical_cores(),
        "workers": workers_of(lab.config),
        "threads": lab.config.threads,
    }


def said(made: Mapping[str, Any]) -> Text:
    """One sentence in English and Chinese."""
    commit = f"gangpao {made['gangpao']}" + (f", commit {short(made['commit'])}" if made["commit"] else "")
    settings = "".join(f" --set {text}" for text in made["set"])
    config = f"`{made['config'] or 'a configuration without a file'}{settings}` (sha256 {made['config_sha256'][:8]})"
    data = f"`{made['data']}` (fingerprint {made['data_fingerprint'][:8]})"
    place = f"{made['machine']}, {made['cores']}"
    en = f"Made {made['when']} with {config} on the data of {data}, by {commit}, on {place} cores, "
    en += f"{made['workers']} trials at a time."
    zh = (
        f"{made['when']} 生成；配置 {config}，数据 {data}，{commit}；机器 {place} 个核，同时 {made['workers']} 个试验。"
    )
    return Text(en, zh.replace("a configuration without a file", "（无文件）"))


def short(commit: str) -> str:
    """A commit to read: ten digits, and whether files differ from it."""
    head, plus, rest = commit.partition("+")
    return head[:10] + plus + rest


def spent(o: Mapping[str, Any]) -> Text:
    """What the trials of an outcome cost, as a sentence: also those that an earlier experiment had trained already."""
    time, yuan = show_seconds(o["seconds"]), f"{o['yuan']:.3g}"
    en = f"It rests on {o['trials']:,} trials: {o['flops']:.3g} FLOPs, {time} of trial time, {yuan} yuan."
    return Text(en, f"依据 {o['trials']:,} 个试验：{o['flops']:.3g} FLOPs，试验时间 {time}，{yuan} 元。")
