"""Which font pictures with Chinese words are drawn in: those of reports, of judged conversations, and of the sandbox."""

from __future__ import annotations

import functools

# By how well they go with matplotlib's own.
_CHINESE = (
    "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC", "Heiti SC",
    "Microsoft YaHei", "SimHei", "Noto Sans CJK JP", "Noto Serif CJK SC", "AR PL UMing CN", "Noto Sans SC", "Arial Unicode MS",
)  # fmt: skip


@functools.cache
def chinese_font() -> str | None:
    """The first known font with Chinese signs that is installed."""
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in _CHINESE if name in there), None)
