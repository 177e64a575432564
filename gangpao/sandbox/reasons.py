"""Why something was left out, ended early or is to be doubted: a code with values, and the table of what each code says.

Results keep the code and the values, so that a sentence can be mended, or said in another language, without training or judging
anything again.
"""

from __future__ import annotations

import math

from pydantic import Field

from gangpao.config import Frozen
from gangpao.sandbox.bilingual import Text

_REASONS: dict[str, Text] = {
    "other": Text("{text}", "{text}"),
    # how a trial ended
    "no_text": Text("no held-out text to judge it by", "没有留出文本可供评判"),
    "bad_loss": Text("step {step}: loss {loss}, gradient norm {norm}", "第 {step} 步：损失 {loss}，梯度范数 {norm}"),
    "spike": Text(
        "step {step}: loss {loss:.4g} is more than {factor:g} times the median {median:.4g}",
        "第 {step} 步：损失 {loss:.4g} 超过中位数 {median:.4g} 的 {factor:g} 倍",
    ),
    "weight": Text("step {step}: {name} is not finite any more", "第 {step} 步：{name} 不再是有限数"),
    "weights": Text("step {step}: a weight is not finite any more", "第 {step} 步：有权重不再是有限数"),
    "parent_diverged": Text("its parent {key} is diverged", "父训练 {key} 已发散"),
    "parent_pruned": Text("its parent {key} is pruned", "父训练 {key} 已剪枝"),
    "worse": Text("its loss at step {step} is worse than that of most others", "第 {step} 步的损失差于大多数试验"),
    # why a point is not in a law
    "not_finite": Text("not finite", "不是有限数"),
    "not_positive": Text("not positive", "不是正数"),
    "far": Text(
        "{percent:+.2g} % from the law of the others, beyond {times:g} times the scale {scale:.2g} %",
        "与其余各点的规律相差 {percent:+.2g} %，超过离散程度 {scale:.2g} % 的 {times:g} 倍",
    ),
    # why there is no law
    "few_sizes": Text(
        "{count} size{out}: a scaling law needs runs of at least two sizes, better four; run other sizes",
        "{count} 个尺寸{out}：规律至少需要两个尺寸，最好四个；请训练其他尺寸",
    ),
    "few_tokens": Text(
        "{count} token count{out}: a scaling law needs at least two, better four; run each size for other numbers of tokens",
        "{count} 种 token 数{out}：规律至少需要两种，最好四种；请让每个尺寸训练其他 token 数",
    ),
    "few_points": Text(
        "{count} points{out} are too few for a law with five unknowns: run at least six, for example three sizes with three token "
        "counts each",
        "{count} 个点{out}不足以拟合有五个未知数的规律：至少需要六个，例如三个尺寸各三种 token 数",
    ),
    # what to doubt about a law
    "floor_zero": Text(
        "E, the loss that no model gets below, is 0, the end of what is allowed: the points do not tell it, and losses far away "
        "are probably predicted too low; run longer and larger, or give scaling.floor.",
        "任何模型都不会低于的损失 E 为 0，即允许范围的端点：这些点定不出 E，远处的损失很可能预测得过低；请训练更久、更大，或给出 "
        "scaling.floor。",
    ),
    "floor_share": Text(
        "E, the loss that no model gets below, is 0 in {share:.0%} of the laws that the points allow: the points do not tell it, "
        "and losses far away are probably predicted too low; run longer and larger, or give scaling.floor.",
        "在各点允许的规律中，有 {share:.0%} 的 E（任何模型都不会低于的损失）为 0：这些点定不出 E，远处的损失很可能预测得过低；"
        "请训练更久、更大，或给出 scaling.floor。",
    ),
    "ratio_vague": Text(
        "The points do not tell the best D/N at 6ND = {C:.3g}: its interval is {low:.3g} .. {high:.3g}.",
        "这些点定不出 6ND = {C:.3g} 时的最优 D/N：其区间为 {low:.3g} .. {high:.3g}。",
    ),
    "optimum_outside": Text(
        "The optimum there, N = {N:.3g} and D = {D:.3g}, lies outside the runs (N {n_low:.3g} .. {n_high:.3g}, D {d_low:.3g} .. "
        "{d_high:.3g}): it is the law's, and was not measured.",
        "该处的最优点 N = {N:.3g}、D = {D:.3g} 在所做训练之外（N {n_low:.3g} .. {n_high:.3g}，D {d_low:.3g} .. {d_high:.3g}）："
        "出自规律，没有测过。",
    ),
    "ratio_far": Text(
        "A D/N of {ratio:.3g} is more than {times:g} times outside the best ones that were published, {low:g} .. {high:g}.",
        "D/N 为 {ratio:.3g}，超出已发表的最优值 {low:g} .. {high:g} 达 {times:g} 倍以上。",
    ),
    "ratio_not_run": Text(
        "Its D/N of {ratio:.3g} is far from those that were run, {low:.3g} .. {high:.3g}.",
        "其 D/N 为 {ratio:.3g}，远离所做训练的 {low:.3g} .. {high:.3g}。",
    ),
    "below_best": Text(
        "The predicted {loss:.4f} is below the best run that was measured, {best:.4f}: a law says so, no run has shown it.",
        "预测值 {loss:.4f} 低于测得的最好训练 {best:.4f}：出自规律，没有训练证实过。",
    ),
}


class Reason(Frozen):
    """A code of the table with its values. A number that is not finite is a word here: JSON has none."""

    code: str
    values: dict[str, int | float | str] = Field(default={})

    @classmethod
    def of(cls, code: str, **values: float | str) -> Reason:
        """Raises ValueError for a code that says nothing yet."""
        if code not in _REASONS:
            raise ValueError(f"reason {code!r:.40}: give it a sentence in gangpao.sandbox.reasons")
        plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return cls(code=code, values=plain)

    def text(self) -> Text:
        """The sentence, or a part of one. left_out, where it is a value: of how many points."""
        out = self.values.get("left_out")
        note = Text(f" ({out} left out)", f"（{out} 个未计入）") if out else Text("", "")
        return _REASONS[self.code].fill({**self.values, "out": note})


class NoLaw(ValueError):
    """The points give no law; the reason says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text().en)
        self.reason = reason
