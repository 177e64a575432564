"""A Hugging Face folder as GGUF: one file, or of a model that sees two that belong together, the language model and its encoder of
pictures beside it (mmproj-NAME)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gangpao.deploy import gguf, mmproj
from gangpao.model.command import vision_of

Progress = Callable[[int, int], None]
OnNote = Callable[[str], None]


def export(
    folder: Path,
    target: Path,
    kind: str,
    *,
    sight: str | None = None,
    progress: Progress | None = None,
    on_note: OnNote = lambda _: None,
    check: bool = True,
) -> list[Path]:
    """The language model as `target`, and of a model that sees the encoder beside it; all of them or none.

    sight: type of the encoder; None: F32, F16 or BF16 as the language model, else Q8_0. It is there before the language model is.
    Raises ValueError as gguf.export and mmproj.write, and for a type of an encoder where the model does not see.
    """
    beside = target.with_name(f"mmproj-{target.name}")
    written = []
    sees = vision_of(str(folder)) is not None
    if sight is not None and not sees:
        raise ValueError(f"--mmproj-type {sight}: {folder} does not see, and has no encoder; leave it out")
    if sees:
        if target.exists():
            raise ValueError(f"{target} exists already; choose another name or delete it first")
        dtype = sight or (kind if kind in ("F32", "F16", "BF16") else "Q8_0")
        written.append(mmproj.write_mmproj(folder, beside, dtype=dtype, on_note=on_note))
    try:
        return [
            gguf.export(folder, target, kind, progress=progress, on_note=on_note, check=check, alone=not sees),
            *written,
        ]
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
