"""Prefixes of many texts in a folder, page by page, so that a server that starts again finds the system prompts of the one before.

A page's name is a digest of everything in front of it: what computed it (identity.py), and all ids from the first on. So prefixes
that begin in the same way share their pages on the disk as they do in memory, a page of another model is never found, and nothing
has to be kept in step. A page that was damaged is told by its checksum, named in the log, deleted, and computed again.

    written    the second time that a prefix is asked for, by a thread of its own; and at the end of the server, what was used last
    read       when a prompt begins with more pages than memory remembers
    deleted    the longest unused, when the folder holds more than its budget

What it gives up: models with recurrent layers, whose state is not in pages, and texts behind the first picture.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gangpao.engine.cache import PAGE, KVCache, KVPool
from gangpao.engine.config import Mix
from gangpao.engine.sessions.identity import digest, identity_of
from gangpao.engine.transformer import Transformer

log = logging.getLogger("gangpao.serve")
MAGIC = b"GANGPAO KV PAGE 1\n"
WAITING = 64  # pages on their way to the disk at most; more are written another time
SEEN = 1 << 16  # pages of prompts whose first sight is remembered
CLOSE_S = 5.0  # what may be spent on writing at the end
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PrefixFolder:
    """A folder for prefixes, and how many bytes of it may be used."""

    path: Path
    budget: int


class PrefixStore:
    """Pages of one model's pool in a folder. Called from the scheduler's thread."""

    @classmethod
    def open(
        cls, where: PrefixFolder, model: Transformer, model_id: Callable[[], str], pool: KVPool
    ) -> PrefixStore | None:
        """The store of a pool; None, with a line in the log, for a model or a folder that can have none."""
        if pool.states is not None:
            log.warning(
                "no prefixes are kept in %s: this model has recurrent layers, whose state is not in pages", where.path
            )
            return None
        try:
            return cls(where.path, where.budget, model, model_id(), pool)
        except OSError as error:
            log.warning("no prefixes are kept in %s: %s", where.path, error.strerror)
            return None

    def __init__(self, folder: Path, budget: int, model: Transformer, model_id: str, pool: KVPool) -> None:
        self.read_pages = self.written_pages = 0
        self._folder, self._budget = folder, budget
        self._model, self._model_id, self._pool = model, model_id, pool
        self._roots: dict[Mix, str] = {}
        self._seen: dict[str, None] = {}
        self._queue: queue.Queue[tuple[Path, Bytes] | None] = queue.Queue(WAITING)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._used = sum(size for _, size, _ in self._files())
        self._writer = threading.Thread(target=self._write_all, name="prefix-store", daemon=True)
        self._writer.start()

    def extend(self, cache: KVCache, ids: Sequence[int]) -> None:
        """Put behind what a cache has of ids the pages that the folder has, one id at least left to compute."""
        whole, count = cache.length // PAGE, (len(ids) - 1) // PAGE
        found: list[Bytes] = []
        for path in list(self._paths(ids, cache.adapters, count))[whole:] if whole < count else ():
            page = self._read(path)
            if page is None:
                break
            found.append(page)
        if not found:
            return
        cache.truncate(whole * PAGE)
        for page in found:
            if not self._pool.extend(cache, cache.length + PAGE):
                break
            self._pool.page_for_file(cache.pages[cache.length // PAGE])[:] = page
            cache.length += PAGE
            self.read_pages += 1
        self._pool.insert_prefix(cache, ids)

    def offer(self, cache: KVCache, ids: Sequence[int], count: int) -> None:
        """A prompt of `count` ids is whole: what of it was seen before and is not in the folder is written."""
        for number, path in enumerate(self._paths(ids, cache.adapters, min(count, cache.length) // PAGE)):
            if path.name in self._seen:
                self._put(path, cache.pages[number])
            self._seen[path.name] = None
            if len(self._seen) > SEEN:
                del self._seen[next(iter(self._seen))]

    def close(self) -> None:
        """Write what the pool remembers, the newest first, for a few seconds; then let the writer end."""
        until = time.monotonic() + CLOSE_S
        for ids, mix, pages in self._pool.remembered():
            if time.monotonic() > until:
                break
            # Not strict: of a text with a picture there are paths up to the picture only.
            for path, page in zip(self._paths(ids, mix, len(pages)), pages, strict=False):
                self._put(path, page, timeout=max(0.0, until - time.monotonic()))
        self._queue.put(None)
        self._writer.join()

    def _paths(self, ids: Sequence[int], mix: Mix, count: int) -> Iterator[Path]:
        """Where the first `count` pages of a text belong, up to the first that holds a row of a picture."""
        if mix not in self._roots:
            found = identity_of(self._model, self._model_id, self._pool, mix)
            self._roots[mix] = digest(repr(sorted(found.items())).encode())
        name, vocab = self._roots[mix], self._model.config.vocab_size
        for at in range(0, count * PAGE, PAGE):
            part = np.asarray(ids[at : at + PAGE], np.int64)
            if part.max() >= vocab:
                return
            name = digest(name.encode(), part.tobytes())
            yield self._folder / name[:2] / f"{name}.page"

    def _put(self, path: Path, page: int, timeout: float = 0.0) -> None:
        if path.exists():
            return
        try:
            self._queue.put((path, self._pool.native.page(page).copy()), block=timeout > 0, timeout=timeout or None)
        except queue.Full:
            self._seen.pop(path.name, None)  # another time

    def _read(self, path: Path) -> Bytes | None:
        """The page of that name, or None where there is none that can be used."""
        try:
            data = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error.strerror)
            return None
        head = len(MAGIC) + 32
        page = np.frombuffer(data, np.uint8)[head:]
        right = data.startswith(MAGIC) and len(page) == self._pool.nbytes_of_page
        if right and hashlib.sha256(page.data).digest() == data[len(MAGIC) : head]:
            return page
        log.warning("%s is damaged: it is deleted, and computed again", path)
        path.unlink(missing_ok=True)
        return None

    # --- the writer's thread

    def _write_all(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                self._write(*job)
            except OSError as error:
                log.warning("%s: a prefix could not be kept: %s", self._folder, error.strerror)

    def _write(self, path: Path, page: Bytes) -> None:
        data = MAGIC + hashlib.sha256(page.data).digest() + page.tobytes()
        self._make_room(len(data))
        path.parent.mkdir(exist_ok=True)
        # No fsync: a page that a crash cut short is found out by its checksum, and costs nothing but its computing.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._used += len(data)
        self.written_pages += 1

    def _make_room(self, size: int) -> None:
        if self._used + size <= self._budget:
            return
        files = sorted(self._files())
        self._used = sum(one for _, one, _ in files)
        for _, one, path in files:  # the longest unused first, and a little more than is needed, so that this is rare
            if self._used + size <= self._budget * 15 // 16:
                return
            path.unlink(missing_ok=True)
            self._used -= one

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was used last, its bytes, and where it is."""
        for path in self._folder.glob("??/*.page"):
            try:
                found = path.stat()
            except FileNotFoundError:  # another process has the folder, too
                continue
            yield found.st_mtime, found.st_size, path
