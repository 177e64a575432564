"""From the model that a command means (find.py) to its engine, with the percentage on stderr."""

from gangpao import catalog
from gangpao.commands.model.find import find_model
from gangpao.commands.terminal.screen import Percent
from gangpao.cost import show_yuan as show_yuan
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions

DEFAULT = EngineOptions()


def load_engine(model: str | None, *, options: EngineOptions = DEFAULT, yes: bool = False) -> Engine:
    """The engine of a name, path or address, pulled first if need be. Raises ValueError saying what to do."""
    name, path = find_model(model, yes=yes)
    progress = Percent(f"loading {name}")
    try:
        engine = Engine.load(
            path, context=options.context, kv_dtype=options.kv, num_threads=options.threads, progress=progress
        )
    finally:
        progress.clear()
    engine.name = name
    engine.sampling = {**engine.sampling, **catalog.sampling_of(name)}
    return engine
