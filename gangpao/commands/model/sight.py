"""What a model sees with: an mmproj file that was named, or one that lies beside it or in the store under the catalog's name.

    sight_of(path, name, given)   --mmproj FILE, "none", or nothing -> the file, or None

Of a model that was pulled from a hub it is the encoder of the same repository, which came with it. Otherwise files are told by
their names (formats/vision/files.py). One that is found by itself has to fit the model: by its name, or as the only one beside
the only model, and by the width of its rows.
"""

from pathlib import Path

from gangpao import catalog
from gangpao.formats.gguf import GGUF
from gangpao.formats.split_names import stem_of
from gangpao.formats.vision.files import is_mmproj, key, key_of_mmproj, rank

NONE = "none"


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
    return _pulled_with(path) or beside(path)


def _pulled_with(path: Path) -> Path | None:
    """The encoder that came with a model of the store from its repository on a hub."""
    if path.parent.parent != catalog.models_dir():
        return None
    return catalog.installed().get(str(catalog.read_record(path.parent.name).get("mmproj")))


def beside(path: Path) -> Path | None:
    """The mmproj file in the model's folder that belongs to it, None where none does or several could."""
    try:
        files = sorted(p for p in path.parent.iterdir() if p.suffix == ".gguf" and p.is_file())
    except OSError:
        return None
    candidates = [p for p in files if is_mmproj(p.name)]
    if not candidates:
        return None
    own = key(stem_of(path.name))
    others = {key(stem_of(p.name)) for p in files if not is_mmproj(p.name)} - {own}
    named = [p for p in candidates if key_of_mmproj(p.name) == own]
    found = [p for p in (named or ([] if others else candidates)) if _fits(p, path)]
    if len({key_of_mmproj(p.name) for p in found}) > 1:  # of several models, it seems
        return None
    return min(found, key=lambda p: rank(p.name), default=None)


def _fits(sight: Path, model: Path) -> bool:
    """Whether the rows are as wide as the model's vectors, as far as both headers say it."""
    try:
        with GGUF.open(sight) as theirs, GGUF.open(model) as ours:
            wide = theirs.metadata.get("clip.vision.projection_dim")
            hidden = ours.metadata.get(f"{ours.metadata.get('general.architecture', '')}.embedding_length")
    except (ValueError, OSError):
        return False
    return wide in (None, 0, hidden)
