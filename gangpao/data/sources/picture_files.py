"""A reference of a row (path, data: URL, bytes) -> its picture, looked at. Nothing is decoded, and nothing comes from the web."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from gangpao.data.sources.pictures import Reference
from gangpao.images.look import MAX_BYTES, Picture, from_data_url, look


def name_of(reference: Reference) -> str:
    """What a person knows it by."""
    if isinstance(reference, bytes):
        return "picture"
    return "data: URL" if reference[:5].lower() == "data:" else f"{reference:.200}"


def read(reference: Reference, folder: Path) -> tuple[Picture, Path | bytes]:
    """A picture that was looked at, and where its bytes are from now on. folder: where relative paths begin. Raises ValueError
    naming it."""
    name = name_of(reference)
    try:
        if isinstance(reference, bytes):
            return look(reference), reference
        if reference[:5].lower() == "data:":
            picture = from_data_url(reference)
            return picture, picture.data
        if reference[:7].lower() == "file://":
            reference = unquote(urlsplit(reference).path)
        elif "://" in reference[:12]:
            raise ValueError("pictures of the web are not fetched: bring them here and name their files")
        path = folder / Path(reference).expanduser()
        return look(bytes_of(path)), path
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def bytes_of(path: Path) -> bytes:
    """Of a file. Raises ValueError for one that is missing or too large."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"the image is larger than the {MAX_BYTES:,} bytes that are allowed")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "larger" in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"there is no such picture that can be read ({reason}); paths start at {path.parent}"
        ) from error
