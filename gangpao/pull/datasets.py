"""Files of a data set on Hugging Face or ModelScope, fetched into the cache and verified by what the hub announces.

Files are data only: a data set that is a program (a loading script) is never run. A file that is here is not asked for again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlencode

from gangpao import catalog
from gangpao.atomic import read_json, write_json
from gangpao.progress import Progress
from gangpao.pull import hubs
from gangpao.pull.fetch import Download, Remote, Web
from gangpao.pull.staging import Limits, PullError, SourceError, git_oid_of, sha256_of

Hub = Literal["huggingface", "modelscope"]
_PAGE = 100  # files of a page of ModelScope's list


def cache_dir() -> Path:
    """Beside the models."""
    return catalog.models_dir().parent / "datasets"


def fetch_dataset(
    hub: Hub, repo: str, patterns: Sequence[str], *, progress: Progress, limits: Limits | None = None
) -> list[Path]:
    """The files of a repository that match a pattern (`*` within a name, `**/` any folders), in the order of their names.

    Raises PullError naming hub, repository and cause.
    """
    folder = cache_dir() / hub / repo.replace("/", "--")
    listed = folder / "files.json"
    try:
        with Web(limits or Limits()) as web:
            if listed.is_file():  # what was fetched once is read without a network
                names: list[str] = read_json(listed)
                chosen = _matching(names, patterns)
                if chosen and all((folder / name).is_file() for name in chosen):
                    return [folder / name for name in chosen]
            there = _listing(web, hub, repo)
            chosen = _matching(list(there), patterns)
            if not chosen:
                raise SourceError(
                    f"no file like {' or '.join(patterns)}; it has {', '.join(sorted(there)[:8]) or 'none'}"
                )
            folder.mkdir(parents=True, exist_ok=True)
            for name in chosen:
                _fetch(web, there[name], folder / name, f"{repo} {name}", progress)
            write_json(listed, sorted(there))
    except SourceError as error:
        raise PullError(f"{repo} at {hub}: {error}") from error
    return [folder / name for name in chosen]


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    safe = [name for name in names if not {"", ".", ".."} & set(name.split("/")) and "\\" not in name]
    return sorted(name for name in safe if any(_matches(name, pattern) for pattern in patterns))


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(name.rpartition("/")[2], pattern[3:])
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _listing(web: Web, hub: Hub, repo: str) -> dict[str, Remote]:
    if hub == "huggingface":
        return hubs.listing(web, catalog.HuggingFace(kind="huggingface", repo=repo), "datasets")
    source = catalog.ModelScope(kind="modelscope", repo=repo)
    base = f"{hubs.host_of(source)}/api/v1/datasets/{repo}/repo"
    files: dict[str, Remote] = {}
    for page in range(1, hubs.MAX_PAGES + 1):
        asked = {"Revision": source.revision, "Root": "/", "Recursive": "True", "PageNumber": page, "PageSize": _PAGE}
        url = f"{base}/tree?{urlencode(asked)}"
        rows = hubs.rows_of(web.ask("GET", url, {})[1], url, "Data", "Files")
        for row in rows:
            if (remote := hubs.modelscope_file(row, "")) is not None:
                address = f"{base}?Source=SDK&Revision={source.revision}&FilePath={quote(remote.file, safe='')}"
                files[remote.file] = Remote(address, remote.file, remote.size, remote.sha256)
        if len(rows) < _PAGE:
            return files
    raise SourceError(f"{base}: a list of more than {hubs.MAX_PAGES} pages")


def _fetch(web: Web, remote: Remote, path: Path, label: str, progress: Progress) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part, state = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.json")
    progress.start(label, remote.size)
    Download(web, remote, part, state, progress.update).run()
    found = sha256_of(part) if remote.sha256 else git_oid_of(part) if remote.git_oid else ""
    if found != (remote.sha256 or remote.git_oid):
        part.unlink()
        raise SourceError(f"{remote.file}: what came is not what the hub announces; nothing was kept")
    part.replace(path)
    state.unlink(missing_ok=True)
