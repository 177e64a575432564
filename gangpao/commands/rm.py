"""`gangpao rm`: deletes an installed model, and what is kept of it."""

from typing import TYPE_CHECKING

from gangpao import catalog
from gangpao.commands import options as opt
from gangpao.commands.model import find
from gangpao.engine.packed import store
from gangpao.units import show_bytes

if TYPE_CHECKING:
    pass


def rm(name: opt.StoreName) -> None:
    """Delete an installed model."""
    name = find.installed_name(name)
    folder = catalog.folder_of(name)
    freed = catalog.remove(name) + store.remove_of(lambda source: source.is_relative_to(folder))
    print(f"removed {name}, {show_bytes(freed)} freed")
