"""What a server is made of: its settings, its models, its price list and its figures; no HTTP here.

Routes get one of these. It is made anywhere, and started and stopped by the application's life cycle (app.py).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gangpao.cost import Meter
from gangpao.engine.pictures.seeing import Sight
from gangpao.engine.thinking.options import Thinking
from gangpao.engine.thinking.rule import NOTHING_SAID
from gangpao.formats.gguf import GGUF
from gangpao.serve.http.access import Access, Listen
from gangpao.serve.http.metrics import Metrics
from gangpao.serve.models import AdapterFile, Limits, Models


@dataclass(frozen=True)
class Settings(Listen, Access, Limits):
    """A server's options. models: public name -> file, the default first; aliases: other names of theirs ("*": every other
    name); adapters: names of models that are one of them with an adapter; sights: names of models that see -> their mmproj files;
    drafts: names of models -> the files of small ones that draft for them; short_paths: routes under /v1 answer without it, too;
    thinking: what holds where a request says nothing of it."""

    models: Mapping[str, Path]
    aliases: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, AdapterFile] = field(default_factory=dict)
    sights: Mapping[str, Path | Sight] = field(default_factory=dict)
    drafts: Mapping[str, Path] = field(default_factory=dict)
    short_paths: bool = False
    thinking: Thinking = NOTHING_SAID
    cost_profile: str | None = None

    @property
    def places(self) -> int:
        """Answers that may run or wait together, for each model."""
        return self.batch + self.queue

    def __post_init__(self) -> None:
        Access.__post_init__(self)
        if not self.models:
            raise ValueError("a server needs at least one model: -m NAME")


class Server:
    """A server's state. opened: model files that are open already, by name. Raises ValueError for a cost profile that does not
    exist."""

    def __init__(self, settings: Settings, opened: Mapping[str, GGUF] | None = None) -> None:
        self.settings = settings
        self.meter = Meter(settings.cost_profile)
        self.metrics = Metrics()
        self.started = time.time()
        self.models = Models(
            settings.models, settings, settings.aliases, opened, settings.adapters, settings.sights, settings.drafts,
            keyed=bool(settings.api_keys),
        )  # fmt: skip
