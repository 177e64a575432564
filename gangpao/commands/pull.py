"""`gangpao pull`: a model of the catalog or of a hub comes to this machine.

It asks before it fetches what the engine does not run. The work is done by gangpao.pull and gangpao.catalog; here are
only the options and what is printed: the path to stdout, progress to stderr.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from gangpao import catalog
from gangpao.commands import options as opt
from gangpao.commands.model import find
from gangpao.progress import Progress
from gangpao.units import show_bytes

if TYPE_CHECKING:
    from gangpao.pull import Offer


def pull(
    name: opt.StoreName,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Try only this kind of source, in the order given; repeatable.")
    ] = None,
    from_path: Annotated[
        str | None, typer.Option("--from", help="Take this file, which is checked, then kept.")
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Accept a file nobody announces a hash for.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=32, help="Downloads at once.")] = catalog.DEFAULT_JOBS,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Pull also what our engine does not run.")] = False,
) -> None:
    """Download a model of the catalog or of a hub, verified and resumable."""
    from gangpao.pull import pull as fetch
    from gangpao.pull import pull_ref, refs

    ref = refs.parse(name) if "/" in name else None
    if ref is not None and (source or from_path):
        raise ValueError(f"{name}: --source and --from are for names of the catalog")
    with Progress() as progress:
        if ref is not None and (found := refs.match(ref, catalog.records())) and _complete(found):
            path = catalog.installed()[found]
        elif ref is not None:
            path = pull_ref(
                ref, agree=lambda offer: _agree_ref(ref, offer, yes), unverified=unverified, progress=progress, jobs=jobs
            )[1]  # fmt: skip
        else:
            _agree(name, yes)
            path = fetch(name, sources=source, from_path=from_path, unverified=unverified, progress=progress, jobs=jobs)
            if sight := catalog.entry(name).mmproj:
                fetch(sight, sources=source, unverified=unverified, progress=progress, jobs=jobs)
    print(path)


def _complete(name: str) -> bool:
    """Whether what an installed model sees with is here, too, where it sees."""
    mmproj = catalog.read_record(name).get("mmproj")
    return mmproj is None or mmproj in catalog.installed()


def _agree(name: str, yes: bool) -> None:
    entry = catalog.entry(name)
    if entry.state == "cannot run" and name not in catalog.installed():
        _ask(name, entry.note or "our engine does not run it", entry.bytes, yes)


def _agree_ref(ref: object, offer: "Offer", yes: bool) -> None:
    reason = find.cannot_run(offer.architecture, offer.quantization)
    find.say(f"{ref}: {offer.quantization}, {show_bytes(offer.bytes)}, becomes {offer.name}")
    if offer.sight:
        find.say(find.sees_with(offer))
    if reason:
        _ask(str(ref), reason, offer.bytes, yes)


def _ask(name: str, reason: str, size: int, yes: bool) -> None:
    """Ask before something is fetched that does not run here; leaves with 1 after a no."""
    what = f"{name} cannot run here: {reason.rstrip('.')}. {show_bytes(size) if size else 'Unknown size'} to download"
    if not find.agreed(what, yes, f"{what}, so it is not pulled; --yes pulls it nevertheless"):
        raise typer.Exit(1)
