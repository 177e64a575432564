"""What drafts for a model: a small one of the same vocabulary that was named, or that the catalog names for it and that is here.

draft_of(name, given)   --draft NAME or FILE, "auto", "none" or nothing -> the file, or None
"""

from pathlib import Path

from gangpao import catalog
from gangpao.commands.model.find import find_model

NONE = "none"
AUTO = "auto"


def draft_of(name: str, given: str | None, *, yes: bool = False) -> Path | None:
    """The file of the draft model of the model of that name, pulled where it was named and is not here. Raises ValueError."""
    if given is None or given.lower() == NONE:
        return None
    if given.lower() != AUTO:
        return find_model(given, yes=yes)[1]
    entry = catalog.load().models.get(name)
    return catalog.installed().get(entry.draft) if entry is not None and entry.draft else None
