"""What a model sees with, opened and found to belong to it."""

import os

from gangpao.engine.config import ModelConfig
from gangpao.engine.pictures.seeing import Sight
from gangpao.formats.gguf import GGUF


def open_sight(sight: Sight | str | os.PathLike[str], gguf: GGUF, config: ModelConfig) -> Sight:
    """The encoder of an mmproj file, or the one that is there already. Raises ValueError where it is of another model."""
    if isinstance(sight, str | os.PathLike):
        from gangpao.engine.vision.sight import Sight as Opened

        found: Sight = Opened.open(sight)
    else:
        found = sight
    if found.text_size != config.hidden_size:
        raise ValueError(
            f"{gguf.path}: its vectors have {config.hidden_size} numbers and the rows of the mmproj file {found.text_size}: it "
            "belongs to another model"
        )
    return found


def sight_bytes(sight: Sight | str | os.PathLike[str] | None) -> int | None:
    """Bytes of its weights in memory, from the file's header alone where it is not open yet; None for none."""
    if sight is None:
        return None
    if not isinstance(sight, str | os.PathLike):
        return sight.nbytes
    from gangpao.engine.vision.sight import weight_bytes

    with GGUF.open(sight) as gguf:
        return weight_bytes(gguf)
