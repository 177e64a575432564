"""The words of a report, in English and Chinese. A sentence that is missing in one language is a KeyError, not a gap."""

from __future__ import annotations

from collections.abc import Mapping

from gangpao.page import Language

_WORDS: dict[str, tuple[str, str]] = {
    "title": ("gangpao forge: {name}", "gangpao forge：{name}"),
    "made": ("This page is of {when}. Yuan by the cost profile {profile}.", "本页生成于 {when}。费用按 {profile} 计。"),
    "made_by": (
        "gangpao {gangpao}{commit} on {machine}, {cores} cores",
        "gangpao {gangpao}{commit}，机器 {machine}，{cores} 个核",
    ),
    "made_of": ("{maker}: {stages}", "{maker}：{stages}"),
    "stages": ("What was done, and what it cost", "做了什么，花了多少"),
    "stage": ("stage", "阶段"),
    "took": ("took", "用时"),
    "yuan": ("yuan", "元"),
    "came": ("what came", "结果"),
    "all": ("all", "合计"),
    "undone": ("not done yet", "尚未完成"),
    "predicted": ("Predicted before, and what came", "事先的预测与实际"),
    "predicted_head": ("held-out bits a byte", "留出文本每字节比特"),
    "forecast": ("predicted", "预测"),
    "interval": ("95 % interval", "95 % 区间"),
    "actual": ("came", "实际"),
    "error": ("error", "误差"),
    "inside": ("in the interval", "在区间内"),
    "before": ("written before", "事先写下"),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "size": ("size", "尺寸"),
    "tokens": ("tokens", "token 数"),
    "curves": ("Curves", "曲线"),
    "curves_said": (
        "Loss, learning rate and gradient norm by step; dots are held-out losses.",
        "各步的损失、学习率与梯度范数；圆点为留出损失。",
    ),
    "data": ("What it learned from", "学了什么"),
    "source": ("source", "来源"),
    "documents": ("documents", "文档数"),
    "share": ("share of {stage}", "{stage} 中的份额"),
    "vocabulary": (
        "{vocab:,} tokens of vocabulary; fingerprint {fingerprint}.",
        "词表 {vocab:,}；指纹 {fingerprint}。",
    ),
    "tuned": ("Tuning", "微调"),
    "method": ("method", "方法"),
    "objective": ("objective", "目标"),
    "heldout_first": ("held-out loss before", "之前的留出损失"),
    "heldout_last": ("after", "之后"),
    "scores": ("Scores", "得分"),
    "task": ("task", "任务"),
    "metric": ("metric", "指标"),
    "value": ("value ± standard error", "数值 ± 标准误"),
    "items": ("items", "条数"),
    "smaller": ("Quality against bytes", "质量与大小"),
    "step": ("step", "步骤"),
    "bytes": ("bytes", "大小"),
    "bits": ("bits a weight", "每权重比特"),
    "kl": ("KL divergence, nats a token", "KL 散度（nat/token）"),
    "same_top": ("same first choice", "首选相同"),
    "perplexity": ("perplexity", "困惑度"),
    "speed": ("Speed and price", "速度与价格"),
    "speed_said": (
        "{file}: {decode:.1f} tokens a second, {prefill:.0f} of a prompt, one stream; {price} yuan a million tokens. Of {asked} "
        "answers of a server {differing} differ from the engine's own.",
        "{file}：单路每秒 {decode:.1f} token，提示词每秒 {prefill:.0f} token；每百万 token {price} 元。服务器的 {asked} 个回答中"
        "有 {differing} 个与引擎不同。",
    ),
    "answers": ("What it says", "它怎么说"),
    "asked": ("asked", "提示"),
    "said": ("said", "回答"),
    "repeat": ("How to repeat every number", "如何重现每个数字"),
    "repeat_said": (
        "Each stage is these commands, in this order; paths are of the machine that ran them. The whole: "
        "`gangpao forge FILE --out RUN`.",
        "各阶段依次为下列命令，路径为当时机器上的路径。整条线：`gangpao forge FILE --out RUN`。",
    ),
}


class Words:
    """Sentences of a language, by name."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._at = 1 if language == "zh" else 0

    def __call__(self, name: str, /, **values: object) -> str:
        return _WORDS[name][self._at].format(**values) if values else _WORDS[name][self._at]

    def yes(self, value: bool) -> str:
        """Yes or no."""
        return self("yes" if value else "no")


def names() -> Mapping[str, tuple[str, str]]:
    """All sentences."""
    return _WORDS
