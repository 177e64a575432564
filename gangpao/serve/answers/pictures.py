"""Pictures of a chat: fetched, looked at, put in their places, and encoded before its answers are submitted.

    load       a Chat's images -> Shown: a character in each place of a content, and the picture that it stands for
    encode     Shown -> a Hold of their rows; in one thread for all requests, ended between two pieces when the client leaves

A picture is never in the log, and an error names the message that it came in. Rows that are remembered wait for nobody.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from gangpao.engine.generate import Engine
from gangpao.engine.pictures.prompts import with_characters
from gangpao.engine.pictures.rows import Hold, RowsFull
from gangpao.engine.pictures.seeing import Check, PictureError
from gangpao.images import clips
from gangpao.images.look import Picture
from gangpao.serve.answers import answers, image_fetch
from gangpao.serve.http.errors import ApiError, busy
from gangpao.serve.models import LoadedModel
from gangpao.text.templates.pictures import free_characters

log = logging.getLogger("gangpao.serve")

MAX_PICTURES = 128  # of one request: two minutes of a video at a frame a second
# The kernels' threads are one set a process, so two encoders at work would only slow each other down.
_encoder = ThreadPoolExecutor(1, "sight")


class Image(NamedTuple):
    """An image as it came: an address (data:, https:), or its bytes in base64. at: its place in the text of its message; whole: it
    is not to be cut into slices; clip: it is a video."""

    url: str = ""
    base64: str = ""
    at: int = 0
    whole: bool = False
    clip: bool = False


@dataclass(slots=True)
class Shown:
    """Pictures by the characters that stand for them, in their order, and where each came from, for errors."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)


class _ClientLeft(Exception):
    pass


async def load(engine: Engine, images: Sequence[tuple[str, Image]], hosts: Sequence[str], said: Any) -> Shown:
    """The pictures of (place for errors, image), each with a character that is in none of the texts that are `said`.

    Raises ApiError (400).
    """
    assert engine.seeing is not None
    shown, count = Shown(), len(images)
    _check_count(count)
    for character, (place, image) in zip(free_characters(len(images), said), images, strict=True):
        shown.pictures[character] = found = await asyncio.to_thread(look_at, image, hosts, place, engine)
        shown.places.append(place)
        count += max(0, len(found.clip) - 1)
        _check_count(count)
    return shown


def _check_count(count: int) -> None:
    if count > MAX_PICTURES:
        raise ApiError(
            400, f"{count} images, each frame of a video counted: at most {MAX_PICTURES} are taken in one request",
            param="messages", code="bad_image",
        )  # fmt: skip


def look_at(image: Image, hosts: Sequence[str], place: str, engine: Engine | None = None) -> Picture:
    """The picture, which the engine could cut. Raises ApiError: 400 with its place, 429 where others decode videos."""
    try:
        found = replace(image_fetch.load(image.url, hosts, image.base64, clip=image.clip), whole=image.whole)
        if engine is not None and engine.seeing is not None:
            engine.seeing.look(found)
    except ValueError as error:
        raise _bad(place, error) from None
    except clips.Busy:
        raise busy(clips.SECONDS / clips.AT_ONCE) from None
    return found


def _bad(place: str, error: ValueError) -> ApiError:
    return ApiError(400, f"{place}: {error}"[:300], param="messages", code="bad_image")


def put_in(content: str, images: Sequence[Image], characters: Sequence[str]) -> str:
    """The content with the characters of its images in their places."""
    return with_characters(content, [(image.at, c) for image, c in zip(images, characters, strict=True)])


def _see(engine: Engine, pictures: Sequence[Picture], check: Check) -> Hold:
    """Encode, and say in the log what that took."""
    assert engine.seeing is not None
    counters, start = engine.seeing.counters, time.perf_counter()
    before = counters.pieces
    hold = engine.see(pictures, check)
    seconds = time.perf_counter() - start
    log.info(
        "%s: %d pictures, %d pieces encoded in %.2f s", engine.name, len(pictures), counters.pieces - before, seconds
    )
    return hold


async def encode(loaded: LoadedModel, shown: Shown) -> Hold | None:
    """What keeps the rows of the pictures, which are there then; None where there are no pictures.

    Raises ApiError: 400 for a picture that cannot be decoded, 429 where others use all memory for rows.
    """
    if not shown.pictures:
        return None
    engine, left = loaded.engine, threading.Event()
    assert engine.seeing is not None
    pictures = list(shown.pictures.values())

    def check() -> None:
        if left.is_set():
            raise _ClientLeft

    with answers.place(loaded):
        try:
            found = engine.seeing.remembered(pictures)
            if found is not None:
                return found
            return await asyncio.get_running_loop().run_in_executor(_encoder, _see, engine, pictures, check)
        except PictureError as error:
            raise _bad(shown.places[error.index], error) from None
        except ValueError as error:
            raise ApiError(400, str(error)[:300], param="messages", code="bad_image") from None
        except RowsFull:
            raise busy(loaded.scheduler.retry_after()) from None
        finally:
            left.set()
