"""From the model that a command means (find.py) to its engine, with the percentage on stderr."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from gangpao import catalog
from gangpao.commands.model.draft import AUTO, draft_of
from gangpao.commands.model.find import find_model, say
from gangpao.commands.model.sight import NONE, sight_of
from gangpao.commands.terminal.screen import Percent
from gangpao.cost import show_yuan as show_yuan
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.formats.adapters.typed import chosen

DEFAULT = EngineOptions()


def load_engine(
    model: str | None,
    *,
    options: EngineOptions = DEFAULT,
    yes: bool = False,
    adapters: Iterable[str] | None = None,
    mmproj: str | None = NONE,
) -> Engine:
    """The engine of a name, path or address, pulled first if need be. adapters: PATH[:SCALE] of each that it is to use. mmproj:
    what it sees with; None: what is found beside it, as far as there is memory for that.

    Raises ValueError saying what to do.
    """
    with_scales = chosen(adapters)
    name, path = find_model(model, yes=yes)
    sight = sight_of(path, name, mmproj)
    draft = draft_of(name, options.draft, yes=yes)
    progress = Percent(f"loading {name}")
    load = partial(
        Engine.load, path, context=options.context, kv_dtype=options.kv, num_threads=options.threads, progress=progress,
        packed=options.packed_cache, sparse=options.sparse, adapters={label: file for label, (file, _) in with_scales.items()},
    )  # fmt: skip
    try:
        engine = _loaded(load, name, sight, mmproj is None, draft, (options.draft or "").lower() == AUTO)
    finally:
        progress.clear()
    engine.use({label: scale for label, (_, scale) in with_scales.items()})
    engine.name = name
    engine.sampling = {**engine.sampling, **catalog.sampling_of(name)}
    engine.modes = catalog.modes_of(name)
    return engine


def _loaded(
    load: Callable[..., Engine], name: str, sight: Path | None, found_sight: bool, draft: Path | None, found_draft: bool
) -> Engine:
    """The engine, without what was found beside it by itself where that is what fails."""
    try:
        return load(sight=sight, draft=draft)
    except ValueError as error:
        if draft is not None and found_draft:
            say(f"{name} goes without a draft model: {draft.name} cannot be used ({error})")
            return _loaded(load, name, sight, found_sight, None, False)
        if sight is None or not found_sight:
            raise
        say(f"{name} reads text only: {sight.name} beside it cannot be used ({error})")
        return load(draft=draft)


def with_own(
    load: Callable[..., Engine], model: str | None, adapters: Iterable[str] | None, mmproj: str | None
) -> Callable[[str | None], Engine]:
    """A way of loading models in which that one has these adapters and sees with this file, and another, which a talk may go on
    with, has no adapters and sees with what lies beside it."""
    own = {model}

    def loaded(name: str | None) -> Engine:
        if name not in own:
            return load(name, mmproj=None)
        engine = load(name, adapters=adapters, mmproj=mmproj)
        own.add(engine.name)
        return engine

    return loaded
