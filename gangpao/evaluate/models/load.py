"""Which model an argument means: a server's address, a folder of weights, or a GGUF file by path or by name.

How a name becomes a file, and what is pulled for it, is the business of the commands: they say so once (`use_finder`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangpao import catalog
from gangpao.evaluate.models.protocol import Model
from gangpao.evaluate.results import ModelFacts, sha256_of

if TYPE_CHECKING:
    from gangpao.engine.generate import Engine
    from gangpao.engine.memory import EngineOptions

Finder = Callable[[str], tuple[str, Path]]
SightFinder = Callable[[Path, str | None, str | None], Path | None]


def _resolved(model: str) -> tuple[str, Path]:
    path = catalog.resolve(model)
    return path.name.removesuffix(".gguf"), path


def _named(path: Path, name: str | None, given: str | None) -> Path | None:
    return Path(given).expanduser() if given is not None else None


_finder: Finder = _resolved
_sight_finder: SightFinder = _named


def use_finder(finder: Finder, sight: SightFinder = _named) -> None:
    """How names of models become files from now on. sight: a model's file, its name and what was given -> what it sees with."""
    global _finder, _sight_finder
    _finder, _sight_finder = finder, sight


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What is said about a server beside its address. name: of the model there; batch: requests at a time."""

    name: str | None = None
    api_key: str | None = None


def is_url(model: str) -> bool:
    """Whether the argument is a server's address."""
    return model.startswith(("http://", "https://"))


def load_engine(
    model: str,
    options: EngineOptions,
    *,
    float32: bool = False,
    adapters: Mapping[str, tuple[Path, float]] | None = None,
    sees: bool = False,
    mmproj: str | None = None,
) -> tuple[Engine, ModelFacts]:
    """Our engine with a file given by name or path, and what is known of the file. adapters: those that it uses, name -> file and
    scale. sees: with its encoder, `mmproj` or the one that is found. Raises ValueError saying what to do."""
    from gangpao.engine.generate import Engine

    name, path = _finder(model)
    sight = _sight_finder(path, name, mmproj) if sees else None
    if sees and sight is None:
        missing = "--mmproj none was given" if mmproj is not None else f"there is no mmproj file beside {path}"
        raise ValueError(f"{name} does not see: {missing}; name one with --mmproj")
    engine = Engine.load(
        path, context=options.context, kv_dtype=options.kv, sparse=options.sparse, num_threads=options.threads, float32=float32,
        packed=options.packed_cache, sight=sight,
        adapters={label: file for label, (file, _) in (adapters or {}).items()},
    )  # fmt: skip
    engine.use({label: scale for label, (_, scale) in (adapters or {}).items()})
    engine.name = name
    facts = facts_of(name, path)
    return engine, facts if sight is None else facts.model_copy(update={"mmproj_sha256": sha256_of([sight])})


def load(
    model: str,
    options: EngineOptions,
    *,
    batch: int,
    torch: bool = False,
    float32: bool = False,
    serving: Serving | None = None,
    adapters: Mapping[str, tuple[Path, float]] | None = None,
    sees: bool = False,
    mmproj: str | None = None,
) -> Model:
    """The model of an argument. torch: a folder of weights is run as it is, instead of as the GGUF file made of it. float32: our
    engine computes with such weights and activations. sees, mmproj: as of `load_engine`.

    Raises ValueError saying what to do.
    """
    if adapters and (torch or is_url(model)):
        raise ValueError(
            "--adapter: only our own engine adds one here; merge it (gangpao merge), or ask a server by its name"
        )
    if is_url(model):
        if mmproj is not None:
            raise ValueError("--mmproj: a server has its own; leave it out")
        from gangpao.evaluate.models.endpoint import Endpoint

        serving = serving or Serving()
        return Endpoint.connect(model, serving.name, serving.api_key, batch)
    if torch:
        from gangpao.evaluate.models.checkpoint import CheckpointModel

        return CheckpointModel.load(Path(model).expanduser(), options, batch)
    from gangpao.evaluate.models.gguf import EngineModel

    engine, facts = load_engine(model, options, float32=float32, adapters=adapters, sees=sees, mmproj=mmproj)
    return EngineModel(engine, facts, batch=batch, float32=float32, adapters=used_adapters(adapters))


def used_adapters(adapters: Mapping[str, tuple[Path, float]] | None) -> dict[str, Any]:
    """What a result tells of adapters: scale, and sha256 of the file or of all files of the folder."""

    def files(path: Path) -> list[Path]:
        return sorted(p for p in ([path] if path.is_file() else path.iterdir()) if p.is_file())

    return {
        label: {"scale": scale, "sha256": sha256_of(files(path))} for label, (path, scale) in (adapters or {}).items()
    }


def facts_of(name: str, path: Path) -> ModelFacts:
    """Of a GGUF file, all parts of a split one together."""
    from gangpao.engine.config import ModelConfig
    from gangpao.formats.gguf import GGUF
    from gangpao.formats.split_names import parts_of

    files = [path.parent / part for part in parts_of(path.name)] or [path]
    files = [file for file in files if file.is_file()] or [path]
    with GGUF.open(path) as gguf:
        architecture = ModelConfig.from_gguf(gguf).architecture
        kinds: Counter[str] = Counter()
        for tensor in gguf.tensors.values():
            count = 1
            for size in tensor.shape:
                count *= size
            kinds[tensor.type] += count
    return ModelFacts(
        name=name, kind="gguf", sha256=sha256_of(files), bytes=sum(file.stat().st_size for file in files),
        parameters=sum(kinds.values()), architecture=architecture, quantization=kinds.most_common(1)[0][0],
    )  # fmt: skip
