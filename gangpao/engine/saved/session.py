"""A conversation's cache in one file, so that the next process goes on where this one ended.

    MAGIC | bytes of the header | sha256 of the header | the header, JSON | pages | recurrent state

The header has the identity of what computed it (identity.py), the token ids, and a checksum of every page. A file is believed
only after all of it was looked at: one that is cut off, damaged or of another model is refused by a message that says which, and
stays as it is. It is written under another name and takes its own when it is whole on the disk. The pages hold the bits that were
computed, so an answer behind a restored cache is the one behind the cache that was saved.

A text with pictures is kept up to the first of them: what stands for a picture is a number in this process only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gangpao import atomic, kernels
from gangpao.engine.generate import Engine, Session
from gangpao.engine.layers.states import TextState
from gangpao.engine.sessions.identity import Identity, difference, identity_of

MAGIC = b"GANGPAO KV CACHE 1\n"
MAX_HEADER = 1 << 26
_PAGE = kernels.PAGE


class SessionFileError(ValueError):
    """A file that cannot be used; the message says why and what to do. The file was not changed."""


def identity(session: Session) -> Identity:
    """What this session's cache is computed with. Raises ValueError for an engine without a file."""
    engine: Engine = session.engine
    return identity_of(engine.model, engine.model_id(), session.cache.pool, session.cache.adapters)


def save(path: Path, session: Session) -> int:
    """Write the session's cache, in place of what the file held. Returns how many positions are in it. Raises OSError."""
    cache, vocab = session.cache, session.engine.model.config.vocab_size
    length = sum(1 for _ in itertools.takewhile(lambda i: i < vocab, session.ids[: cache.length]))
    states = _states(cache.state, length)
    if cache.state is not None:  # known at a few positions only
        length = max(states, default=0)
    pages = [cache.pool.native.page(page) for page in cache.pages[: -(-length // _PAGE)]]
    header = {
        "identity": identity(session),
        "ids": session.ids[:length],
        "page_bytes": len(pages[0]) if pages else 0,
        "pages": [_sum(page) for page in pages],
        "state_bytes": max(map(len, states.values()), default=0),
        "states": [[position, _sum(data)] for position, data in states.items()],
    }
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.new_file(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text)
        for part in [*pages, *states.values()]:
            file.write(part.data)
    return length


def restore(path: Path, session: Session) -> int:
    """Fill an empty session from a file; how many positions came. What does not fit the context stays in the file.

    Raises SessionFileError for a file that is damaged, or of something else than this engine; OSError where it cannot be read.
    """
    assert not session.ids
    assert session.cache.length == 0
    with path.open("rb") as file:
        header = _header(path, file)
        wrong = difference(header["identity"], identity(session))
        if wrong:
            raise SessionFileError(
                f"{path}: this cache belongs to {wrong}; give another file, or delete this one to begin anew"
            )
        if not _possible(header, session):
            raise _damaged(path, "its header tells what cannot be")
        return _fill(path, file, header, session)


def _header(path: Path, file: BinaryIO) -> dict[str, Any]:
    start = file.read(len(MAGIC) + 40)
    if not start.startswith(MAGIC):
        raise SessionFileError(f"{path}: this is no cache of a conversation (or of another version); give another file")
    size, wanted = int.from_bytes(start[len(MAGIC) : len(MAGIC) + 8], "little"), start[len(MAGIC) + 8 :]
    text = file.read(size) if size <= MAX_HEADER else b""
    if len(text) != size or hashlib.sha256(text).digest() != wanted:
        raise _damaged(path, "its header is not what was written")
    try:
        header: dict[str, Any] = json.loads(text)
        body = header["page_bytes"] * len(header["pages"]) + header["state_bytes"] * len(header["states"])
        known = isinstance(header["identity"], dict) and isinstance(header["ids"], list)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(path, "its header cannot be read") from None
    have = path.stat().st_size - file.tell()
    if not known or have != body:
        raise _damaged(path, f"{body} bytes of pages are told and {have} are there")
    return header


def _possible(header: dict[str, Any], session: Session) -> bool:
    """Whether sizes and ids are those of this model; a checksum says only that they were written like that."""
    ids, pool, vocab = header["ids"], session.cache.pool, session.engine.model.config.vocab_size
    pages, states = header["pages"], header["states"]
    page = pool.nbytes_of_page if pages else 0
    state = len(pool.states.native.slot(0)) if states and pool.states else 0
    return (
        all(type(i) is int and 0 <= i < vocab for i in ids)
        and (len(pages), header["page_bytes"]) == (-(-len(ids) // _PAGE), page)
        and header["state_bytes"] == state
        and [at for at, _ in states] == sorted({at for at, _ in states})
        and all(type(at) is int and 0 < at <= len(ids) for at, _ in states)
        and (bool(states) or pool.states is None or not ids)
        and (not states or states[-1][0] == len(ids))
    )


def _fill(path: Path, file: BinaryIO, header: dict[str, Any], session: Session) -> int:
    cache, ids = session.cache, header["ids"]
    pool, length = cache.pool, len(ids)
    if length > cache.capacity:
        if header["states"]:
            return 0  # a recurrent state is of its one position
        length = cache.capacity
    count = -(-length // _PAGE)
    if not pool.extend(cache, length):
        cache.truncate(0)
        return 0
    try:
        for number, page in enumerate(cache.pages[:count]):
            _read(path, file, pool.page_for_file(page), header["pages"][number], f"page {number}")
        if header["states"]:
            _restore_states(path, file, header, session)
    except BaseException:
        cache.pool.release(cache)
        raise
    cache.length = length
    session.ids = list(ids[:length])
    return length


def _read(path: Path, file: BinaryIO, into: npt.NDArray[np.uint8], wanted: str, what: str) -> None:
    got = file.readinto(into.data)  # type: ignore[attr-defined]
    if got != len(into) or _sum(into) != wanted:
        raise _damaged(path, f"{what} is not what was written")


def _states(state: TextState | None, length: int) -> dict[int, npt.NDArray[np.uint8]]:
    """The recurrent states behind positions up to `length` that are there, in rising order."""
    if state is None:
        return {}
    known = state.snapshots | ({state.at: state.slot} if state.slot is not None else {})
    return {at: state.pool.native.slot(slot) for at, slot in sorted(known.items()) if at <= length}


def _restore_states(path: Path, file: BinaryIO, header: dict[str, Any], session: Session) -> None:
    pool = session.cache.pool.states
    assert pool is not None
    last, slot = header["states"][-1][0], pool.take()
    if slot is None:
        raise SessionFileError(f"{path}: there is no room for its recurrent state")
    session.cache.state = state = TextState(pool, last, slot)
    for position, wanted in header["states"]:
        into = slot if position == last else state.new_snapshot(position)
        if into is None:  # fewer are kept here than there
            file.seek(header["state_bytes"], 1)
        else:
            _read(path, file, pool.native.slot(into), wanted, f"the recurrent state behind position {position}")


def _sum(data: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(data.data).hexdigest()[:32]


def _damaged(path: Path, why: str) -> SessionFileError:
    return SessionFileError(f"{path}: damaged: {why}; delete it to begin anew, nothing else is lost")
