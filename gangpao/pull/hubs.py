"""Hugging Face and ModelScope: what a repository holds, the hash it announces, and the address of a file.

For a file whose size and sha256 the catalog knows, nothing is asked but the file. For the others the hub's own word is
taken: the LFS hash that Hugging Face sends with the file or lists in its tree, the Sha256 of ModelScope's file list.

What it gives up: checkpoints are read at the top level of a repository only, and only data is taken of them: weights as
safetensors, JSON, templates and tokenizer models, never code or pickled weights.
"""

import dataclasses
import json
import os
import re
import struct
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote, urljoin, urlsplit

from gangpao import catalog
from gangpao.formats.split_names import parts_of
from gangpao.pull.fetch import Remote, Web
from gangpao.pull.staging import SourceError

MAX_PAGES = 20  # of a list of files, a thousand each
HEAD_BYTES = 1 << 16  # of a GGUF file: its architecture is the first thing it says
DATA_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")


def find(web: Web, source: catalog.HuggingFace | catalog.ModelScope, model: catalog.Entry) -> list[Remote]:
    """The files to fetch from a hub, with all that the catalog or the hub knows of them. Raises SourceError."""
    if source.file is not None and len(parts_of(source.file)) > 1:
        return _parts(web, source, model)
    if isinstance(source, catalog.HuggingFace):
        return _huggingface(web, source, model)
    return _modelscope(web, source, model)


def host_of(source: catalog.HuggingFace | catalog.ModelScope) -> str:
    """The hub's address, after the environment variables HF_ENDPOINT and MODELSCOPE_ENDPOINT."""
    if isinstance(source, catalog.HuggingFace):
        return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return (os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn").rstrip("/")


def listing(
    web: Web, source: catalog.HuggingFace | catalog.ModelScope, kind: Literal["models", "datasets"] = "models"
) -> dict[str, Remote]:
    """Every file of a repository, also those in folders, by its path there: address, size and announced hash.

    Raises SourceError.
    """
    if isinstance(source, catalog.ModelScope):
        return _modelscope_files(web, source)
    where = "" if kind == "models" else f"/{kind}"
    base = f"{host_of(source)}{where}/{source.repo}/resolve/{source.revision}"
    headers = _headers()
    rows = [row for row in _tree(web, source, headers, recursive=True, kind=kind) if row.get("type") == "file"]
    return {
        path: Remote(f"{base}/{quote(path)}", path, *_hashes(row), headers=headers)
        for row in rows
        if (path := str(row.get("path", "")))
    }


def head_of(web: Web, remote: Remote) -> bytes:
    """The first bytes of a file on a hub."""
    asked = {**remote.headers, "Range": f"bytes=0-{HEAD_BYTES - 1}"}
    head = bytearray()
    with web.open("GET", remote.url, asked) as answer:
        for chunk in answer.iter_raw():
            head += chunk
            if len(head) >= HEAD_BYTES:  # a server without ranges would send it all
                break
    return bytes(head[:HEAD_BYTES])


def text_in(head: bytes, name: str) -> str:
    """A word of the metadata among the first bytes of a GGUF file, such as general.architecture ("llama", "gemma3"); "" where
    it does not stand there. The engine's reader checks everything later."""
    key = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", 8)  # of type string
    at = head.find(key) + len(key)
    if not head.startswith(b"GGUF") or at < len(key) or at + 8 > len(head):
        return ""
    (size,) = struct.unpack_from("<Q", head, at)
    found = re.fullmatch(rb"[a-z0-9_.-]{1,64}", head[at + 8 : at + 8 + size]) if size <= 64 else None
    return found[0].decode() if found else ""


def _headers() -> dict[str, str]:
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _parts(web: Web, source: catalog.HuggingFace | catalog.ModelScope, model: catalog.Entry) -> list[Remote]:
    """The files of a split model, each with what the hub announces of it, under the names they get here."""
    there = listing(web, source)
    out = []
    for path, file in zip(parts_of(source.file or ""), parts_of(model.file), strict=True):
        if path not in there:
            raise SourceError(f"{host_of(source)}/{source.repo}: holds no {path}")
        out.append(dataclasses.replace(there[path], file=file))
    return out


def _huggingface(web: Web, source: catalog.HuggingFace, model: catalog.Entry) -> list[Remote]:
    host, headers = host_of(source), _headers()
    if source.file is not None and model.sha256:
        url = f"{host}/{source.repo}/resolve/{source.revision}/{quote(source.file)}"
        return [Remote(url, model.file, model.bytes, model.sha256, headers=headers)]
    if source.file is not None:
        return [_announced(web, source, source.file, model, headers)]
    files = []
    for item in _tree(web, source, headers):
        name = str(item.get("path", ""))
        if item.get("type") == "file" and _wanted(name):
            url = f"{host}/{source.repo}/resolve/{source.revision}/{quote(name)}"
            files.append(Remote(url, name, *_hashes(item), headers=headers))
    return _complete(files, f"{host}/{source.repo}")


def _announced(
    web: Web, source: catalog.HuggingFace, file: str, model: catalog.Entry, headers: Mapping[str, str]
) -> Remote:
    """A file with the hash that its headers announce, or the tree where they do not."""
    host = host_of(source)
    url = f"{host}/{source.repo}/resolve/{source.revision}/{quote(file)}"
    answer, _ = web.ask("HEAD", url, headers)
    lower = {key.lower(): value for key, value in answer.items()}
    digest = lower.get("x-linked-etag", "").removeprefix("W/").strip('"')
    size = lower.get("x-linked-size", "")
    commit = lower.get("x-repo-commit", "")
    if commit.isalnum():  # so that all ranges come from one version
        url = f"{host}/{source.repo}/resolve/{commit}/{quote(file)}"
    if _is_digest(digest):
        return Remote(url, model.file, int(size) if size.isdigit() else 0, digest, headers=headers)
    for item in _tree(web, source, headers):
        if item.get("path") == file:
            return Remote(url, model.file, *_hashes(item), headers=headers)
    return Remote(url, model.file, headers=headers)


def _tree(
    web: Web, source: catalog.HuggingFace, headers: Mapping[str, str], *, recursive: bool = False, kind: str = "models"
) -> list[dict[str, Any]]:
    url = f"{host_of(source)}/api/{kind}/{source.repo}/tree/{quote(source.revision, safe='')}"
    url += "?recursive=true" if recursive else ""
    out: list[dict[str, Any]] = []
    for _ in range(MAX_PAGES):
        answer, body = web.ask("GET", url, headers)
        out += rows_of(body, url)
        more = re.search(r'<([^>]+)>;\s*rel="next"', {k.lower(): v for k, v in answer.items()}.get("link", ""))
        if not more:
            return out
        following = urljoin(url, more[1])
        if urlsplit(following).netloc != urlsplit(url).netloc:  # the token is for this host
            raise SourceError(f"{url}: goes on at another host")
        url = following
    raise SourceError(f"{url}: a list of more than {MAX_PAGES} pages")


def _hashes(item: Mapping[str, Any]) -> tuple[int, str, str]:
    """Size, sha256 and git hash of a row of the tree; 0 and "" for what it lacks or what is not one."""
    lfs = item.get("lfs")
    size, digest = item.get("size"), ""
    if isinstance(lfs, dict):
        digest, size = str(lfs.get("oid", "")).removeprefix("sha256:"), lfs.get("size", size)
    oid = str(item.get("oid", "")) if not digest else ""
    return (
        size if isinstance(size, int) and size >= 0 else 0,
        digest if _is_digest(digest) else "",
        oid if len(oid) == 40 and oid.isalnum() else "",
    )


def _modelscope_files(web: Web, source: catalog.ModelScope, *, recursive: bool = True) -> dict[str, Remote]:
    host = host_of(source)
    base = f"{host}/models/{source.repo}/resolve/{source.revision}"
    ask = f"Revision={quote(source.revision, safe='')}&Recursive={'true' if recursive else 'false'}"
    url = f"{host}/api/v1/models/{source.repo}/repo/files?{ask}"
    files = {}
    for item in rows_of(web.ask("GET", url, {})[1], url, "Data", "Files"):
        if (remote := modelscope_file(item, base)) is not None:
            files[remote.file] = remote
    return files


def modelscope_file(item: Mapping[str, Any], base: str) -> Remote | None:
    """A row of ModelScope's list; None for a folder."""
    path, size, digest = str(item.get("Path", "")), item.get("Size"), str(item.get("Sha256", "")).lower()
    if item.get("Type") == "tree" or not path:
        return None
    known = size if isinstance(size, int) and size >= 0 else 0
    return Remote(f"{base}/{quote(path)}", path, known, digest if _is_digest(digest) else "")


def _modelscope(web: Web, source: catalog.ModelScope, model: catalog.Entry) -> list[Remote]:
    where = f"{host_of(source)}/models/{source.repo}"
    if source.file is not None and model.sha256:
        url = f"{where}/resolve/{source.revision}/{quote(source.file)}"
        return [Remote(url, model.file, model.bytes, model.sha256)]
    there = _modelscope_files(web, source, recursive=source.file is not None and "/" in source.file)
    if source.file is None:
        return _complete([remote for path, remote in there.items() if _wanted(path)], where)
    if source.file not in there:
        raise SourceError(f"{where}: holds no {source.file}")
    return [dataclasses.replace(there[source.file], file=model.file)]


def rows_of(body: bytes, url: str, *keys: str) -> list[dict[str, Any]]:
    """The rows of a JSON answer, under these keys. Raises SourceError."""
    try:
        found: Any = json.loads(body)
        for key in keys:
            found = found[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{url}: not the list of files that was expected") from error
    if not isinstance(found, list):
        raise SourceError(f"{url}: not the list of files that was expected")
    return [row for row in found if isinstance(row, dict)]


def _wanted(name: str) -> bool:
    """Whether a file of a repository is data of a checkpoint, under a name that the store takes."""
    try:
        return catalog.check_name(name).endswith(DATA_SUFFIXES)
    except ValueError:  # README.md, folders, and whatever else: not for us
        return False


def _complete(files: list[Remote], where: str) -> list[Remote]:
    names = {remote.file for remote in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise SourceError(
            f"{where}: holds no safetensors with a config.json; other weights (pickled ones) are never taken"
        )
    return files


def _is_digest(text: str) -> bool:
    try:
        catalog.check_digest(text)
    except ValueError:  # a hub that announces something else announces nothing
        return False
    return True
