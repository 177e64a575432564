"""What a model sees with: an mmproj file that was named, or one that lies beside it or in the store under the catalog's name.

    sight_of(path, name, given)   --mmproj FILE, "none", or nothing -> the file, or None

Files are called as llama.cpp and people on Hugging Face call them: mmproj-MODEL.gguf, mmproj-model-f16.gguf,
MODEL.mmproj-Q8_0.gguf. One that is found by itself has to fit the model: by its name, or as the only one beside the only model, and
by the width of its rows.
"""

import re
from pathlib import Path

from gangpao import catalog
from gangpao.formats.gguf import GGUF
from gangpao.formats.split_names import stem_of

NONE = "none"
_TYPES = ("f16", "bf16", "q8_0", "f32")  # the first is taken of several: what the encoder loses by it is nothing
_TYPE = re.compile(r"(?i)[-_.]?\b(?:i?q\d[a-z0-9_]*|ud|fp16|b?f16|f32)\b")


def sight_of(path: Path, name: str | None = None, given: str | None = None) -> Path | None:
    """The mmproj file of a model file; name: of the catalog, where it is there. Raises ValueError where a named file is missing."""
    if given is not None:
        if given.lower() == NONE:
            return None
        found = Path(given).expanduser()
        if not found.is_file():
            raise ValueError(f"--mmproj {given}: there is no such file (--mmproj none is to read text only)")
        return found
    entry = catalog.load().models.get(name or "")
    if entry is not None and entry.mmproj and (stored := catalog.installed().get(entry.mmproj)):
        return stored
    return beside(path)


def is_mmproj(path: Path) -> bool:
    """Whether a file is called as encoders of pictures are."""
    return path.suffix == ".gguf" and "mmproj" in path.name.lower()


def beside(path: Path) -> Path | None:
    """The mmproj file in the model's folder that belongs to it, None where none does or several could."""
    try:
        files = sorted(p for p in path.parent.iterdir() if p.suffix == ".gguf" and p.is_file())
    except OSError:
        return None
    candidates = [p for p in files if is_mmproj(p)]
    if not candidates:
        return None
    own = _key(stem_of(path.name))
    others = {_key(stem_of(p.name)) for p in files if not is_mmproj(p)} - {own}
    named = [p for p in candidates if _key_of_mmproj(p) == own]
    found = [p for p in (named or ([] if others else candidates)) if _fits(p, path)]
    if len({_key_of_mmproj(p) for p in found}) > 1:  # of several models, it seems
        return None
    return min(found, key=_rank, default=None)


def _key(stem: str) -> str:
    """A model's name without its weights' type and without signs."""
    return re.sub(r"[^a-z0-9]+", "", _TYPE.sub("", stem).lower())


def _key_of_mmproj(path: Path) -> str:
    return _key(re.sub(r"(?i)mmproj", "", path.stem))


def _rank(path: Path) -> tuple[int, str]:
    name = path.name.lower().replace("fp16", "f16")
    return next((i for i, kind in enumerate(_TYPES) if re.search(rf"(?<![a-z]){kind}", name)), len(_TYPES)), path.name


def _fits(sight: Path, model: Path) -> bool:
    """Whether the rows are as wide as the model's vectors, as far as both headers say it."""
    try:
        with GGUF.open(sight) as theirs, GGUF.open(model) as ours:
            wide = theirs.metadata.get("clip.vision.projection_dim")
            hidden = ours.metadata.get(f"{ours.metadata.get('general.architecture', '')}.embedding_length")
    except (ValueError, OSError):
        return False
    return wide in (None, 0, hidden)
