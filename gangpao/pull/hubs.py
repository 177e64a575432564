"""Hugging Face and ModelScope: what a repository holds, the hash it announces, and the address of a file.

For a file whose size and sha256 the catalog knows, nothing is asked but the file. For the others the hub's own word is
taken: the LFS hash that Hugging Face sends with the file or lists in its tree, the Sha256 of ModelScope's file list.

What it gives up: repositories are read at their top level only, and of a checkpoint only data is taken: weights as
safetensors, JSON, templates and tokenizer models, never code or pickled weights.
"""

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gangpao import catalog
from gangpao.pull.fetch import Remote, Web
from gangpao.pull.staging import SourceError

DATA_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")


def find(web: Web, source: catalog.HuggingFace | catalog.ModelScope, model: catalog.Entry) -> list[Remote]:
    """The files to fetch from a hub, with all that the catalog or the hub knows of them. Raises SourceError."""
    if isinstance(source, catalog.HuggingFace):
        return _huggingface(web, source, model)
    return _modelscope(web, source, model)


def host_of(source: catalog.HuggingFace | catalog.ModelScope) -> str:
    """The hub's address, after the environment variables HF_ENDPOINT and MODELSCOPE_ENDPOINT."""
    if isinstance(source, catalog.HuggingFace):
        return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return (os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn").rstrip("/")


def _huggingface(web: Web, source: catalog.HuggingFace, model: catalog.Entry) -> list[Remote]:
    host, token = host_of(source), os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
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


def _tree(web: Web, source: catalog.HuggingFace, headers: Mapping[str, str]) -> list[dict[str, Any]]:
    url = f"{host_of(source)}/api/models/{source.repo}/tree/{quote(source.revision, safe='')}"
    return _rows(web.ask("GET", url, headers)[1], url)


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


def _modelscope(web: Web, source: catalog.ModelScope, model: catalog.Entry) -> list[Remote]:
    host = host_of(source)
    base = f"{host}/models/{source.repo}/resolve/{source.revision}"
    if source.file is not None and model.sha256:
        return [Remote(f"{base}/{quote(source.file)}", model.file, model.bytes, model.sha256)]
    url = f"{host}/api/v1/models/{source.repo}/repo/files?Revision={quote(source.revision, safe='')}&Recursive=false"
    rows = _rows(web.ask("GET", url, {})[1], url, "Data", "Files")
    files = []
    for item in rows:
        path, size, digest = str(item.get("Path", "")), item.get("Size"), str(item.get("Sha256", "")).lower()
        if item.get("Type") == "tree" or not (path == source.file if source.file is not None else _wanted(path)):
            continue
        known = size if isinstance(size, int) and size >= 0 else 0
        name = model.file or path
        files.append(Remote(f"{base}/{quote(path)}", name, known, digest if _is_digest(digest) else ""))
    if source.file is None:
        return _complete(files, f"{host}/models/{source.repo}")
    if not files:
        raise SourceError(f"{host}/models/{source.repo}: holds no {source.file}")
    return files


def _rows(body: bytes, url: str, *keys: str) -> list[dict[str, Any]]:
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
