"""A conversation with an engine of this process, as the terminal sees it: its settings, its models, what its answers cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from gangpao import catalog, cost, machine
from gangpao.commands.terminal import screen
from gangpao.commands.terminal.conversation import Conversation, Run
from gangpao.commands.terminal.kept import KeptChat
from gangpao.engine.generate import Engine
from gangpao.units import show_bytes


@dataclass(slots=True, kw_only=True)
class Local(Conversation):
    """A conversation with an engine of this process, and what its answers cost here. load: the engine of a model's name; kept: its
    files, where it is to outlive this process."""

    meter: cost.Meter
    load: Callable[[str | None], Engine]
    source: str | None = None  # what was asked to be loaded
    kept: KeptChat | None = None
    unset: ClassVar[str] = "random"

    @property
    def model_name(self) -> str:
        """The model that answers."""
        return self.engine.name

    def setting(self, name: str) -> object:
        """A sampling option as it is; None is a random seed."""
        return getattr(self.params, name)

    def set(self, name: str, value: Any) -> None:
        """Change a sampling option from the next question on; None is the model's own."""
        self.chosen = {**self.chosen, name: value}

    def keep(self, run: Run) -> None:
        """End the answer and remember what it said, also on the disk."""
        super(Local, self).keep(run)
        if self.kept is not None:
            self.kept.keep(self)

    def models(self) -> list[str]:
        """Models of this machine that the engine can read."""
        return [name for name, path in catalog.installed().items() if path.suffix == ".gguf"]

    def switch(self, model: str) -> None:
        """Go on with another installed model. The one before leaves memory first, and comes back when the other cannot be loaded.

        Raises ValueError saying what to do.
        """
        catalog.resolve(model)
        before = self.source or self.engine.name
        try:
            self.use(lambda: self.load(model))
        except BaseException:
            self.engine = self.load(before)
            raise
        self.source = model

    def greeting(self) -> str:
        """Who answers, in one line."""
        sees = ", sees pictures (/image FILE)" if self.engine.seeing else ""
        if not sees and any("pictures" in turn for turn in self.turns):
            sees = ", reads text only: the pictures of this conversation are left out until a model sees again"
        return f"{self.engine.name}, context {self.engine.context} tokens{sees}"

    def figures(self, run: Run) -> str:
        """What the answer took, in one line."""
        return screen.figures(run.stats, self.meter.yuan(run.stats.seconds))

    def facts(self) -> list[tuple[str, str]]:
        """The model, its kernels, and how full its context is."""
        engine = self.engine
        sees = (
            [("sees", f"{engine.seeing.sight.vision.name}, {show_bytes(engine.seeing.sight.nbytes)}")]
            if engine.seeing
            else []
        )
        return [
            ("model", f"{engine.name} ({engine.model.config.architecture}), {screen.kernels_line()}"),
            *sees,
            ("context", f"{self.cached_tokens} of {engine.context} tokens, KV {engine.kv_dtype}"),
        ]

    def costs(self, seconds: float) -> list[tuple[str, str]]:
        """Memory in use, and the price of `seconds` of this machine."""
        return [
            ("memory", f"{machine.rss_mb():.0f} MB"),
            ("cost", f"{cost.show_yuan(self.meter.yuan(seconds))} ({self.meter.name})"),
        ]
