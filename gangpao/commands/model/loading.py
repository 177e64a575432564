"""From the model that a command means (find.py) to its engine, with the percentage on stderr."""

from collections.abc import Callable, Iterable

from gangpao import catalog
from gangpao.commands.model.adapters import chosen
from gangpao.commands.model.find import find_model
from gangpao.commands.terminal.screen import Percent
from gangpao.cost import show_yuan as show_yuan
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions

DEFAULT = EngineOptions()


def load_engine(
    model: str | None, *, options: EngineOptions = DEFAULT, yes: bool = False, adapters: Iterable[str] | None = None
) -> Engine:
    """The engine of a name, path or address, pulled first if need be. adapters: PATH[:SCALE] of each that it is to use.

    Raises ValueError saying what to do.
    """
    with_scales = chosen(adapters)
    name, path = find_model(model, yes=yes)
    progress = Percent(f"loading {name}")
    try:
        engine = Engine.load(
            path, context=options.context, kv_dtype=options.kv, num_threads=options.threads, progress=progress,
            adapters={label: file for label, (file, _) in with_scales.items()},
        )  # fmt: skip
    finally:
        progress.clear()
    engine.use({label: scale for label, (_, scale) in with_scales.items()})
    engine.name = name
    engine.sampling = {**engine.sampling, **catalog.sampling_of(name)}
    return engine


def with_adapters(
    load: Callable[..., Engine], model: str | None, adapters: Iterable[str] | None
) -> Callable[[str | None], Engine]:
    """A way of loading models in which that one has these adapters, and another, which a talk may go on with, has none."""
    own = {model}

    def loaded(name: str | None) -> Engine:
        if not adapters or name not in own:
            return load(name)
        engine = load(name, adapters=adapters)
        own.add(engine.name)
        return engine

    return loaded
