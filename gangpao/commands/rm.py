"""`gangpao rm`: deletes an installed model."""

from typing import TYPE_CHECKING

from gangpao import catalog
from gangpao.commands import options as opt
from gangpao.commands.model import find
from gangpao.units import show_bytes

if TYPE_CHECKING:
    pass


def rm(name: opt.StoreName) -> None:
    """Delete an installed model."""
    name = find.installed_name(name)
    freed = catalog.remove(name)
    print(f"removed {name}, {show_bytes(freed)} freed")
