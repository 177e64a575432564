"""In Chinese what is kept in English: names of trials that were left out, and why.

A trial writes why it ended into its result.json, in English and for good, so its words are translated when a report is made. What
is not known here stays as it is. Everything else that a report says has both languages where it is written.
"""

from __future__ import annotations

import re

_NUMBER = r"([-+]?[\d.,e+-]*\d|nan|inf|-inf)"
_PHRASES = [
    (re.compile(english.replace("#", _NUMBER)), chinese)
    for english, chinese in (
        # names of trials and points
        (r"\blr #", r"学习率 \1"),
        (r"\bbatch #", r"批大小 \1"),
        (r"\bseed #", r"种子 \1"),
        (r"# tokens\b", r"\1 token"),
        (r"\bcosine\b", r"余弦"),
        (r"\brun #: ", r"第 \1 次训练："),
        (r", loss=", r", 损失="),
        (r" in law (\w+)", r"（\1 规律）"),
        # how a trial ended (gangpao.train.loop, gangpao.sandbox.trials.trial, gangpao.sandbox.trials.queue)
        (r"^diverged\b", r"发散"),
        (r"^pruned\b", r"已剪枝"),
        (r"^no held-out text to judge it by", r"没有留出文本可供评判"),
        (r"\bstep #: ", r"第 \1 步："),
        (r"\bloss # is more than # times the median #", r"损失 \1 超过中位数 \3 的 \2 倍"),
        (r"\bloss #, gradient norm #", r"损失 \1, 梯度范数 \2"),
        (r"stopped as guard\.on_bad_step says", r"按 guard.on_bad_step 停止"),
        (r"the last checkpoint is ", r"最近的检查点是 "),
        (r"nothing is saved yet", r"尚未保存检查点"),
        (r"\ba weight is not finite any more", r"有权重不再是有限数"),
        (r"(\S+) is not finite any more", r"\1 不再是有限数"),
        (r"nothing was saved over the last checkpoint", r"最近的检查点未被覆盖"),
        (r"its parent (\w+) is diverged", r"父训练 \1 已发散"),
        (r"its parent (\w+) is pruned", r"父训练 \1 已剪枝"),
        (r"its loss at step # is worse than that of most others", r"第 \1 步的损失差于大多数试验"),
        # why a point is not in a law, or why there is none (gangpao.sandbox.laws.fit)
        (r"^not finite$", r"不是有限数"),
        (r"^not positive$", r"不是正数"),
        (
            r"^# % from the law of the others, beyond # times the scale # %",
            r"与其余各点的规律相差 \1 %, 超过离散程度 \3 % 的 \2 倍",
        ),
        (r" \(# left out\)", r"（\1 个未计入）"),
        (r"^# size(?= |:|（)", r"\1 个尺寸"),
        (r"^# token count(?=:|（)", r"\1 种 token 数"),
        (r"^# points\b", r"\1 个点"),
        (
            r": a scaling law needs runs of at least two sizes, better four; run other sizes",
            r"：规律至少需要两个尺寸, 最好四个; 请训练其他尺寸",
        ),
        (
            r": a scaling law needs at least two, better four; run each size for other numbers of tokens",
            r"：规律至少需要两种, 最好四种; 请让每个尺寸训练其他 token 数",
        ),
        (
            r" are too few for a law with five unknowns: run at least six, for example three sizes with three token counts each",
            r"不足以拟合有五个未知数的规律：至少需要六个, 例如三个尺寸各三种 token 数",
        ),
    )
]  # fmt: skip


def chinese(text: str) -> str:
    """Its known parts in Chinese."""
    out = text
    for pattern, said in _PHRASES:
        out = pattern.sub(said, out)
    if out == text:
        return text
    for mark, wide in ((": ", "："), ("; ", "；"), (", ", "，")):
        out = out.replace(mark, wide)
    return out
