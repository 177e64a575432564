"""The models of a server: loaded when first asked for, unloaded when nobody does, within a budget of memory.

    use(name)    a context in which that model is loaded and stays so; whoever comes while it is being loaded waits for it
    budget       what all loaded models may take together; models that nobody uses leave in the order of their last use

One scheduler a model. Everything here runs in one event loop; loading and closing, which take seconds, run in threads. What
it gives up: two models are never loaded at the same time, so that each sees the memory that the other left.
"""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from gangpao import catalog, machine
from gangpao.engine import memory
from gangpao.engine.adapters import bytes_of, read
from gangpao.engine.answer import Progress
from gangpao.engine.config import ModelConfig
from gangpao.engine.generate import Engine
from gangpao.engine.layers.kept import KVType, chosen_kv
from gangpao.engine.memory import EngineOptions
from gangpao.engine.pictures.seeing import Sight
from gangpao.engine.sample import MAX_STOP
from gangpao.engine.scheduler import DEFAULT_BATCH, DEFAULT_QUEUE, Scheduler
from gangpao.engine.sessions.store import PrefixFolder
from gangpao.engine.speculate.loading import DraftFile, open_draft
from gangpao.engine.vision.opened import sight_bytes
from gangpao.formats.adapters import Adapter
from gangpao.formats.gguf import GGUF
from gangpao.options import option
from gangpao.serve.http.access import is_key
from gangpao.serve.http.errors import NO_RETRY, ApiError, busy, retry_headers
from gangpao.text.tokenizer import Tokenizer
from gangpao.units import show_bytes

log = logging.getLogger("gangpao.serve")
SWEEP_S = 5.0
FULL_RETRY_S = 10.0
ANY_NAME = "*"
DEFAULT_STOPS = 256
DEFAULT_PROMPTS = 256
DEFAULT_PREFIX_BYTES = 8_000_000_000


@dataclass(frozen=True, kw_only=True)
class Limits(EngineOptions):
    """How models are loaded, and what one request may ask of them. memory: bytes for all models together, None is what the
    machine has. idle_unload_s: seconds without a request after which a model leaves memory, None is never."""

    batch: int = option(DEFAULT_BATCH, "Answers in progress at once, for each model.", 1, 256)
    queue: int = option(DEFAULT_QUEUE, "Requests that may wait; more are told to come back.", 1, 4096)
    memory: int | None = option(
        None,
        "GB for all models together; what is free if not given.",
        0.1,
        typed=float,
        read=lambda gigabytes: int(gigabytes * 1e9),
    )
    idle_unload_s: float | None = option(
        None,
        "Minutes without a request after which a model leaves memory.",
        0.01,
        flag="--idle-unload",
        typed=float,
        read=lambda minutes: minutes * 60,
    )
    max_stop: int = option(DEFAULT_STOPS, "Stop strings of one request at most.", 1, MAX_STOP)
    max_prompts: int = option(DEFAULT_PROMPTS, "Prompts of one request to /v1/completions at most.", 1, 2048)
    context_shift: bool = option(
        False,
        "Drop the oldest turns of a chat that fills its context, and go on; without it, it is refused or cut off.",
    )
    prefix_cache: Path | None = option(None, "Keep the beginnings of prompts in this folder, for the next start.")
    prefix_cache_bytes: int = option(
        DEFAULT_PREFIX_BYTES, "GB of --prefix-cache.", 0.01, flag="--prefix-cache-gb", typed=float, unset="8",
        read=lambda gigabytes: int(gigabytes * 1e9),
    )  # fmt: skip

    @property
    def prefixes(self) -> PrefixFolder | None:
        """Where prefixes are kept, if they are."""
        return None if self.prefix_cache is None else PrefixFolder(self.prefix_cache, self.prefix_cache_bytes)


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter that is served under a name of its own: on which model, from which PEFT folder or GGUF file, with which scale."""

    base: str
    path: Path
    scale: float = 1.0


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A model in memory. users: requests that hold it; adapters: what its answers are computed with, names -> scales."""

    name: str
    path: Path
    engine: Engine
    scheduler: Scheduler
    need: int
    limits: Limits
    adapters: Mapping[str, float] = field(default_factory=dict)
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    longest_piece: int = 0

    def __post_init__(self) -> None:
        # No token stands for more characters than its spelling in the vocabulary has.
        self.longest_piece = self.longest_piece or max(map(len, self.engine.tokenizer.vocabulary.pieces))

    @property
    def unfilled(self) -> int:
        """Bytes of its cache that it has not asked the system for yet, at most."""
        pool = self.scheduler.pool
        return pool.nbytes - pool.nbytes * pool.pages_used // max(1, pool.pages)

    @property
    def idle(self) -> bool:
        """Whether nobody needs it now."""
        return self.users == 0 and self.scheduler.idle


@dataclass(frozen=True, slots=True)
class _Plan:
    """context: positions of one answer; tokens: of all together; bytes: what the model takes with all of them filled."""

    context: int
    tokens: int
    bytes: int


class Models:
    """See the module. models: public name -> file, the default first; aliases: another name -> one of those, ANY_NAME -> the one
    for every other name. opened: files of them that somebody has opened already; the first loading of such a model takes that
    instead of opening it again. adapters: public name -> adapter, a model to clients; it is loaded with its base, whose memory,
    places and steps all of them share. sights: public name -> the mmproj file that it sees with; drafts: public name ->
    the file of the small model that drafts for it. keyed: whether clients are told apart by API keys."""

    def __init__(
        self,
        models: Mapping[str, Path],
        limits: Limits,
        aliases: Mapping[str, str] | None = None,
        opened: Mapping[str, GGUF] | None = None,
        adapters: Mapping[str, AdapterFile] | None = None,
        sights: Mapping[str, Path | Sight] | None = None,
        drafts: Mapping[str, Path] | None = None,
        *,
        keyed: bool = False,
    ) -> None:
        self.files = dict(models)
        self.adapters = dict(adapters or {})
        self.sights = dict(sights or {})
        self.drafts = dict(drafts or {})
        self._keyed = keyed
        self.aliases = dict(aliases or {})
        self._opened = dict(opened or {})
        self.limits = limits
        self.progress: dict[str, float] = {}  # share of a model that is read, while it is being loaded
        self.on_progress: Progress | None = None
        self.state: Literal["loading", "ok", "failed", "stopping"] = "loading"
        self._loaded: dict[str, LoadedModel] = {}
        self._waiting = 0
        self._lock = asyncio.Lock()
        self._closing = False

    def names(self) -> list[str]:
        """All that may be asked for, the default first, adapters last."""
        return [*self.files, *self.adapters]

    def base_of(self, name: str) -> str:
        """The model that is loaded for a public name: itself, or what the adapter of that name belongs to."""
        return self.adapters[name].base if name in self.adapters else name

    def loaded(self) -> dict[str, LoadedModel]:
        """Models in memory now."""
        return dict(self._loaded)

    def name_of(self, asked: str | None) -> str:
        """The public name of a model that a request asked for. Raises ApiError (404)."""
        name = asked or next(iter(self.files))
        if name not in self.names():
            name = self.aliases.get(name) or self.aliases.get(ANY_NAME) or name
        if name not in self.names():
            known = ", ".join([*self.names(), *self.aliases][:10])
            raise ApiError(
                404, f"there is no model {name[:80]!r} here; there are {known}", param="model", code="model_not_found"
            )
        return name

    @contextlib.asynccontextmanager
    async def use(self, asked: str | None) -> AsyncIterator[LoadedModel]:
        """The model of that name (None: the default), loaded for as long as the context is open. Raises ApiError."""
        name = self.name_of(asked)
        found = await self._get(self.base_of(name))
        adapter = self.adapters.get(name)
        try:
            yield replace(found, name=name, adapters={name: adapter.scale}) if adapter else found
        finally:
            found.users -= 1
            found.used = time.monotonic()

    async def _get(self, name: str) -> LoadedModel:
        """The model with one more user, counted before anything else is awaited: nobody unloads it in between."""
        while True:
            found = self._loaded.get(name)
            if found is not None and found.scheduler.alive:
                found.users += 1
                return found
            if self._closing:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            if self._waiting >= self.limits.queue:
                raise busy(FULL_RETRY_S)
            self._waiting += 1
            try:
                # Shielded: that a client left is no reason to throw half a model away, others wait for it.
                task = asyncio.ensure_future(self.load(name))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                await asyncio.shield(task)
            finally:
                self._waiting -= 1

    async def load(self, name: str) -> None:
        """Have the model in memory. Raises ApiError (503) where it does not fit, (500) where its file is damaged."""
        async with self._lock:
            found = self._loaded.get(name)
            if found is not None:
                if found.scheduler.alive:
                    return
                await self._unload(found)  # its thread ended by a bug of ours, which is in the log
            path = self.files[name]
            try:
                gguf = await asyncio.to_thread(self._header, name, path)
                config = ModelConfig.from_gguf(gguf)
                adapters = await asyncio.to_thread(self._read_adapters, name, gguf, config)
                size = await asyncio.to_thread(sight_bytes, self.sights.get(name))
                draft = await asyncio.to_thread(self._read_draft, name, gguf, config)
                plan = await self._make_room(name, gguf, config, sum(map(bytes_of, adapters.values())), size, draft)
                self.progress[name] = 0.0
                engine, scheduler = await asyncio.to_thread(self._open, name, gguf, plan, adapters, draft)
                del gguf, adapters, draft
            except (ValueError, OSError, MemoryError) as error:
                log.error("%s could not be loaded: %s", name, error)
                raise ApiError(500, f"{name} could not be loaded: {_reason(error)}", headers=NO_RETRY) from error
            finally:
                self.progress.pop(name, None)
            self._loaded[name] = LoadedModel(name, path, engine, scheduler, plan.bytes, self.limits)
            if self.state == "failed":
                self.state = "ok"
            log.info("%s is loaded: %d tokens of context, up to %s", name, engine.context, show_bytes(plan.bytes))

    def _header(self, name: str, path: Path) -> GGUF:
        """The open file of a model. One that was replaced since it was opened is opened again."""
        found = self._opened.pop(name, None)
        return found if found is not None and found.unchanged() else GGUF.open(path)

    def _read_adapters(self, base: str, gguf: GGUF, config: ModelConfig) -> dict[str, Adapter]:
        """Those of a model, by name."""
        return {name: read(one.path, gguf, config) for name, one in self.adapters.items() if one.base == base}

    def _read_draft(self, name: str, gguf: GGUF, config: ModelConfig) -> DraftFile | None:
        """The open file of what drafts for a model."""
        file = self.drafts.get(name)
        return None if file is None else open_draft(file, Tokenizer.from_gguf(gguf.metadata), config)

    def _open(
        self, name: str, gguf: GGUF, plan: _Plan, adapters: Mapping[str, Adapter], draft: DraftFile | None
    ) -> tuple[Engine, Scheduler]:
        def progress(done: int, total: int) -> None:
            self.progress[name] = done / max(total, 1)
            if self.on_progress:
                self.on_progress(done, total)

        limits = self.limits
        engine = Engine.load(
            gguf, context=plan.context, kv_dtype=limits.kv, num_threads=limits.threads, progress=progress, adapters=adapters,
            sight=self.sights.get(name), packed=limits.packed_cache, sparse=limits.sparse,
            draft=draft.gguf if draft else None,
        )  # fmt: skip
        engine.name = name
        engine.sampling = {**engine.sampling, **catalog.sampling_of(name)}
        engine.modes = catalog.modes_of(name)
        pools = is_key if self._keyed else lambda client: False
        return engine, Scheduler(
            engine,
            batch=limits.batch,
            queue=limits.queue,
            pool_tokens=plan.tokens,
            prefixes=limits.prefixes,
            pools=pools,
        )

    async def _make_room(
        self, name: str, gguf: GGUF, config: ModelConfig, adapters: int, sight: int | None, draft: DraftFile | None
    ) -> _Plan:
        """How to load a model with so many bytes of adapters, of what it sees with, and what drafts for it, after idle
        ones have made room for it. Raises ApiError (503)."""
        limits = self.limits
        context = min(limits.context or memory.WIDEST_DEFAULT, config.max_position_embeddings)
        while True:
            kv = self._kv(config)
            drafting = memory.draft_bytes(draft.gguf, draft.config, context, kv, work=draft.work) if draft else 0
            need = memory.estimate(
                gguf, config, context, kv, adapters=adapters, sight=sight, draft=drafting, sparse=limits.sparse
            )
            have = self._free_bytes()
            if need.total <= have:
                return self._size_cache(need, config, context, have, sight is not None, draft)
            idle = [m for m in self._loaded.values() if m.idle]
            if idle:
                await self._unload(min(idle, key=lambda m: m.used))
            elif limits.context is None and context > memory.NARROWEST_DEFAULT:
                context = max(memory.NARROWEST_DEFAULT, context // 2)
            else:
                raise self._no_room(name, need.total, have)

    def _kv(self, config: ModelConfig) -> KVType:
        return chosen_kv(config, self.limits.kv)

    def _size_cache(
        self, need: memory.Need, config: ModelConfig, context: int, have: int, sees: bool, draft: DraftFile | None
    ) -> _Plan:
        """The cache that all running answers share: as much of their contexts as there is memory for, at least one."""
        kv, sparse = self._kv(config), self.limits.sparse
        wanted = memory.pool_tokens(config, context, kv, self.limits.batch, sparse)
        fixed = need.weights + need.work + need.draft

        def beside(tokens: int) -> int:
            """Bytes beyond those of one context: rows of pictures are kept for as many positions, and what a draft head keeps."""
            more = memory.row_bytes(config, tokens) - memory.row_bytes(config, context) if sees else 0
            if draft is None:
                return more
            of_all = memory.draft_bytes(draft.gguf, draft.config, context, kv, work=draft.work, positions=tokens)
            return more + of_all - need.draft

        def that_fit(more: int) -> int:
            return max(context, min(wanted, memory.tokens_in(config, context, kv, have - fixed - more, sparse)))

        tokens = that_fit(beside(that_fit(0)))
        fixed += beside(tokens)
        return _Plan(context, tokens, fixed + memory.cache_bytes(config, tokens, kv, context, sparse=sparse))

    def _no_room(self, name: str, need: int, have: int) -> ApiError:
        others = ", ".join(f"{m.name} ({show_bytes(m.need)})" for m in self._loaded.values())
        message = f"{name} needs {show_bytes(need)} of memory and {show_bytes(max(0, have))} are free for it"
        if not others:
            message += "; take a smaller model or --context, --kv int8, or a larger --memory"
            return ApiError(503, message, code="out_of_memory", headers=NO_RETRY)
        message += f"; in use: {others}"
        return ApiError(503, message, code="out_of_memory", headers=retry_headers(FULL_RETRY_S))

    def _free_bytes(self) -> int:
        """Bytes that one more model may take: what is free, without what the caches of the others have not filled yet."""
        free = machine.available_memory() - sum(m.unfilled for m in self._loaded.values())
        if self.limits.memory is None:
            return free
        return min(free, self.limits.memory - sum(m.need for m in self._loaded.values()))

    async def _unload(self, model: LoadedModel, timeout: float | None = None) -> None:
        self._loaded.pop(model.name, None)
        await asyncio.to_thread(model.scheduler.close, timeout=timeout)
        gc.collect()  # an engine is a circle of references; its weights are to be free now
        log.info("%s is unloaded", model.name)

    async def start(
        self, on_ready: Callable[[], None] | None = None, on_failed: Callable[[str], None] | None = None
    ) -> None:
        """Load the default model; `state` says how that goes, and on_failed is told why it did not."""
        try:
            await self.load(next(iter(self.files)))
        except ApiError as error:
            self.state = "failed"
            if on_failed:
                on_failed(str(error.__cause__ or "") or error.message)
            else:
                log.error("%s", error.message)
            return
        self.state = "ok"
        if on_ready:
            on_ready()

    async def sweep(self) -> None:
        """Unload what nobody asked for in a long time, until cancelled."""
        idle_s = self.limits.idle_unload_s
        while idle_s is not None:
            await asyncio.sleep(min(SWEEP_S, idle_s / 4))
            async with self._lock:
                now = time.monotonic()
                for model in [m for m in self._loaded.values() if m.idle and now - m.used >= idle_s]:
                    await self._unload(model)

    async def close(self, timeout: float | None = None) -> None:
        """Unload everything, after what was begun has ended, or after `timeout` seconds."""
        self._closing, self.state = True, "stopping"
        async with self._lock:
            await asyncio.gather(*(self._unload(m, timeout) for m in list(self._loaded.values())))


def _reason(error: BaseException) -> str:
    """An error for a client, who is not to learn where files lie here."""
    return (
        "not enough memory" if isinstance(error, MemoryError) else "its file cannot be used; the server's log says why"
    )
