"""From a configuration to token shards: `build` runs what is missing, `open_built` opens the result.

    prepare      source by source: read, clean, decontaminate                prepare.py
    duplicates   all sources together                                        duplicates.py
    tokenizer    train on what is left, or copy a given folder               bpe.py
    shards       source by source: held out or training, to ids              encode.py, shards.py

The idea: every step writes a folder whose name ends in a hash of all that the step depends on (its settings, the contents of
its input files, the steps before it). A folder that is there is finished, because folders appear whole, and need not be
made again; after a kill the next build goes on with the step it was in. `built.json` is replaced last and names the
folders that belong together: until then the old build stays usable.

What it gives up: two builds in one folder at the same time, and the text's second copy in work/ (delete it if you like; it
saves time when settings change).
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gangpao import machine
from gangpao.atomic import locked, new_folder, read_json, write_json
from gangpao.config import Frozen
from gangpao.data.cleaning import dedup_pass
from gangpao.data.cleaning.decontaminate import Index
from gangpao.data.cleaning.prepare import Job, Prepared, prepare
from gangpao.data.cleaning.select import Chosen, encode
from gangpao.data.config import DataConfig, Source, load_data_config
from gangpao.data.sources import public
from gangpao.data.sources.files import format_of, read_rows
from gangpao.data.sources.source import Resolved, matching, resolve
from gangpao.data.tokens import bpe
from gangpao.data.tokens.encode import Encoder
from gangpao.data.tokens.pack import Part
from gangpao.data.tokens.shards import Shards
from gangpao.progress import Progress, Silent
from gangpao.text.hf_folder import TOKENIZER_FILES
from gangpao.text.tokenizer import Tokenizer

__all__ = ["Built", "DataConfig", "build", "load_data_config", "open_built"]

VERSION = 2  # of what the steps compute: a change of their results makes old folders stale
_STEP = re.compile(r".+-[0-9a-f]{16}")
_ROOTLESS = ("generated", "huggingface", "public")
_POOL_BYTES = 8 << 20  # of input; below it starting processes takes longer than the work


class _BuiltFile(Frozen):
    version: int
    key: str
    fingerprint: str
    tokenizer: str
    shards: dict[str, str]
    stages: dict[str, dict[str, float]]
    config: dict[str, Any]
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished corpus. heldout has the sources of which something was held out; train has all.

    report: what was read, dropped and kept, by source. fingerprint: of the tokenizer and all documents.
    """

    path: Path
    tokenizer_dir: Path
    vocab_size: int
    train: dict[str, Shards]
    heldout: dict[str, Shards]
    fingerprint: str
    stages: dict[str, dict[str, float]]
    report: dict[str, Any]

    def parts(self, stage: str = "stable") -> list[Part]:
        """The mixture of a stage for a Loader. Raises ValueError naming the stages there are."""
        if stage not in self.stages:
            raise ValueError(f"no stage {stage!r:.80} in {self.path}; it has {', '.join(self.stages)}")
        return [Part(name, self.train[name], weight) for name, weight in self.stages[stage].items()]


def build(config: DataConfig, out: Path | str, *, progress: Progress | None = None) -> Built:
    """Make `out` what the configuration says; does nothing when it is that already.

    Raises ValueError for a source that cannot be read, or when another process is building there.
    """
    progress = progress or Silent()
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"{out}: is a file; name a folder for the data")
    with locked(Path(out)):
        try:
            return _Build(config, Path(out), progress).run()
        except KeyboardInterrupt:
            progress.close()
            progress.note(f"stopped; the finished steps are kept in {out}, and the same command goes on from there")
            raise


def open_built(out: Path | str) -> Built:
    """What `build` made. Raises ValueError when it is missing, unfinished or damaged."""
    out = Path(out)
    path = out / "built.json"
    if not path.is_file():
        raise ValueError(f"{out}: no finished data here; make it with: gangpao data build CONFIG --out {out}")
    try:
        found = _BuiltFile.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(f"{path}: damaged ({error.errors()[0]['msg']}); build the data again") from error
    if found.version != VERSION:
        raise ValueError(f"{path}: version {found.version}, this gangpao reads {VERSION}; build the data again")
    for name in (found.tokenizer, *found.shards.values()):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"{path}: {name!r:.80} is no name of a folder in it; build the data again")
    folders = {name: out / "shards" / folder for name, folder in found.shards.items()}
    train = {name: Shards.open(folder / "train") for name, folder in folders.items()}
    heldout = {name: Shards.open(folder / "heldout") for name, folder in folders.items()}
    tokenizer = out / found.tokenizer
    if not tokenizer.is_dir():
        raise ValueError(f"{tokenizer} is missing; build the data again")
    sizes = {shards.vocab_size for shards in train.values()}
    if len(sizes) != 1:
        raise ValueError(f"{path}: its shards have different vocabularies; build the data again")
    return Built(
        out, tokenizer, sizes.pop(), train, {name: s for name, s in heldout.items() if s.num_documents},
        found.fingerprint, found.stages, found.report,
    )  # fmt: skip


def step_key(*parts: Any) -> str:
    """16 hexadecimal digits from anything that JSON can hold."""
    text = json.dumps([VERSION, *parts], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class _Build:
    """One run of `build`."""

    def __init__(self, config: DataConfig, out: Path, progress: Progress) -> None:
        self.config, self.out, self.progress = config, out, progress
        self.work = out / "work"

    @functools.cached_property
    def root(self) -> Path:
        return self.config.root_dir()

    def run(self) -> Built:
        config = self.config
        public.require([source.path for source in config.sources.values() if source.format == "public"])
        found = {name: self._resolved(name, source) for name, source in config.sources.items()}
        sources = {name: one.source for name, one in found.items()}
        files = {name: one.files for name, one in found.items()}
        tested = [path for pattern in config.decontaminate.files for path in matching(self.root, pattern)]
        hashes = self._hashes([*(path for paths in files.values() for path in paths), *tested])
        given = _tokenizer_files(config.tokenizer.dir)
        given_hash = step_key({path.name: _sha256(path) for path in given}) if given else ""
        contents = {name: [hashes[path] for path in paths] for name, paths in files.items()}
        settings = config.model_copy(update={"sources": sources}).model_dump(mode="json", exclude={"root"})
        settings["tokenizer"].pop("dir")
        key = step_key(settings, contents, [hashes[path] for path in tested], given_hash)
        if (ready := self._ready(key)) is not None:
            self.progress.note(f"{self.out}: nothing to do, it is what the configuration says")
            return ready
        index = self._index(tested, [hashes[path] for path in tested])
        prepared = self._prepare(sources, files, contents, index)
        copies = self._duplicates(prepared)
        chosen = [Chosen(p, dedup_pass.load(copies, p.name)) for p in prepared]
        _refuse_empty(chosen)
        tokenizer = self._copy_tokenizer(given, given_hash) if given else self._train_tokenizer(chosen, copies.name)
        shards = self._shards(chosen, tokenizer)
        self._finish(key, tokenizer, shards, prepared, copies, index)
        self._prune({tokenizer, copies, *([index] if index else ()), *(p.path for p in prepared), *shards.values()})
        return open_built(self.out)

    def _resolved(self, name: str, source: Source) -> Resolved:
        try:
            found = resolve(source, Path() if source.format in _ROOTLESS else self.root)
        except ValueError as error:
            raise ValueError(f"source {name}: {error}") from error
        if found.note:
            self.progress.note(f"source {name}: {found.note}")
        return found

    def _ready(self, key: str) -> Built | None:
        try:
            found = read_json(self.out / "built.json")
            return open_built(self.out) if isinstance(found, dict) and found.get("key") == key else None
        except ValueError:  # not there, or damaged: then it is built
            return None

    def _hashes(self, paths: Iterable[Path]) -> dict[Path, str]:
        """sha256 of the input files, remembered by name, size and time of change."""
        known_path = self.out / "inputs.json"
        try:
            known = read_json(known_path)
        except ValueError:  # the first build here, or the memory is damaged: hash everything
            known = {}
        out: dict[Path, str] = {}
        listed: dict[str, list[Any]] = {}
        for path in paths:
            stat = path.stat()
            old = known.get(str(path)) if isinstance(known, dict) else None
            if not (isinstance(old, list) and len(old) == 3 and old[:2] == [stat.st_size, stat.st_mtime_ns]):
                old = [stat.st_size, stat.st_mtime_ns, _sha256(path)]
            out[path], listed[str(path)] = str(old[2]), old
        if listed != known:
            write_json(known_path, listed)
        return out

    # --- steps

    def _index(self, files: Sequence[Path], hashes: Sequence[str]) -> Path | None:
        if not files:
            return None
        options = self.config.decontaminate
        target = self.work / f"evaluation-{step_key(options.model_dump(), hashes)}"
        if not target.is_dir():
            self.progress.note(f"reading {len(files)} evaluation files")
            read = ((path.name, (row.value for row in read_rows(path, format_of(path)))) for path in files)
            index = Index.build(
                read, ngram=options.ngram, share=options.share, enough=options.enough, max_items=options.max_items
            )
            with new_folder(target) as folder:
                index.save(folder)
        return target

    def _prepare(
        self, sources: dict[str, Source], files: dict[str, tuple[Path, ...]], contents: dict[str, list[str]],
        index: Path | None,
    ) -> list[Prepared]:  # fmt: skip
        jobs = []
        for name, source in sources.items():
            settings = source.model_dump(mode="json", exclude={"heldout", "licence", "path"})
            key = step_key(settings, contents[name], self.config.dedup.model_dump(), index.name if index else "")
            target = self.work / f"{name}-{key}"
            jobs.append(Job(name, source, files[name], self.config.dedup, index, target))
        missing = [job for job in jobs if not job.target.is_dir()]
        sizes = {job.name: sum(path.stat().st_size for path in job.files) for job in missing}
        workers = min(len(missing), machine.logical_cores())
        if workers > 1 and sum(sizes.values()) >= _POOL_BYTES:
            self._prepare_in_processes(missing, sizes, workers)
        else:
            for job in missing:
                self.progress.start(f"cleaning {job.name}", 0)
                prepare(job, self.progress.update)
        for job in missing:
            for line in self._lost(job):
                self.progress.note(line)
        return [Prepared(job.name, job.source, job.target) for job in jobs]

    def _prepare_in_processes(self, jobs: Sequence[Job], sizes: dict[str, int], workers: int) -> None:
        self.progress.start(f"cleaning {len(jobs)} sources", sum(sizes.values()))
        done = 0
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of the libraries in use
        others = multiprocessing.active_children()
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_quietly) as pool:
            # The largest first, so that no process works alone at the end.
            order = sorted(jobs, key=lambda job: -sizes[job.name])
            with _no_main():
                waiting = {pool.submit(prepare, job): job for job in order}
            try:
                for future in as_completed(waiting):
                    future.result()
                    done += sizes[waiting[future].name]
                    self.progress.update(done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    if child not in others:
                        child.terminate()
                raise

    @staticmethod
    def _lost(job: Job) -> Iterator[str]:
        """What somebody should know about a source that has just been read."""
        report = read_json(job.target / "report.json")
        bad = report["malformed"]
        if bad:
            count, first = report["dropped"]["malformed"], bad[0]
            yield f"source {job.name}: {count} of {report['read']} rows are no documents; {first['where']}: {first['why']}"
        if report["read"] and not report["kept"]:
            why = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items())
            yield f"source {job.name}: none of its {report['read']} documents is left ({why})"

    def _duplicates(self, prepared: Sequence[Prepared]) -> Path:
        modes = [(p.path.name, p.source.dedup_mode) for p in prepared]
        target = self.work / f"duplicates-{step_key(self.config.dedup.model_dump(), modes)}"
        if not target.is_dir():
            self.progress.note("looking for duplicates")
            dedup_pass.mark(prepared, self.config.dedup, target)
        return target

    def _copy_tokenizer(self, files: Sequence[Path], content: str) -> Path:
        target = self.out / f"tokenizer-{content}"
        if not target.is_dir():
            with new_folder(target) as folder:
                for path in files:
                    shutil.copyfile(path, folder / path.name)
                Tokenizer.from_dir(folder)  # its complaints should come before hours of work, not after
        return target

    def _train_tokenizer(self, chosen: "Sequence[Chosen]", copies: str) -> Path:
        options = self.config.tokenizer.train
        assert options is not None
        held = {c.prepared.name: c.prepared.source.heldout for c in chosen}
        target = self.out / f"tokenizer-{step_key(options.model_dump(), copies, held)}"
        if not target.is_dir():
            total = sum(c.prepared.report()["kept_bytes"] for c in chosen)
            share = min(1.0, options.sample_bytes / max(1, total))
            self.progress.note(f"training a vocabulary of {options.vocab_size} pieces")
            bpe.train((d.contents() for c in chosen for d in c.sample(share)), options, target)
        return target

    def _shards(self, chosen: "Sequence[Chosen]", tokenizer: Path) -> dict[str, Path]:
        encoder: Encoder | None = None
        out = {}
        for c in chosen:
            p = c.prepared
            flags = hashlib.sha256(c.flags.tobytes()).hexdigest()
            key = step_key(p.path.name, flags, tokenizer.name, p.source.heldout)
            out[p.name] = target = self.out / "shards" / f"{p.name}-{key}"
            if target.is_dir():
                continue
            encoder = encoder or Encoder(tokenizer)
            self.progress.start(f"tokens of {p.name}", p.report()["kept_bytes"])
            with new_folder(target) as folder:
                write_json(folder / "report.json", encode(c, encoder, folder, self.progress))
            for line in c.advice():
                self.progress.note(f"source {p.name}: {line}")
        return out

    # --- the end

    def _finish(
        self, key: str, tokenizer: Path, shards: dict[str, Path], prepared: Sequence[Prepared], copies: Path,
        index: Path | None,
    ) -> None:  # fmt: skip
        copied = read_json(copies / "report.json")
        report: dict[str, Any] = {"sources": {}, "duplicates": copied["examples"]}
        report["evaluation"] = Index.load(index).sizes() if index else {}
        prints = {}
        for p in prepared:
            encoded = read_json(shards[p.name] / "report.json")
            found = p.report()
            found["dropped"] = found["dropped"] | copied["sources"][p.name] | encoded.pop("dropped")
            found["dropped"] = {reason: count for reason, count in found["dropped"].items() if count}
            about = {"language": p.source.language, "supervised": p.source.supervised, "licence": p.source.licence}
            report["sources"][p.name] = about | found | encoded
            prints[p.name] = [Shards.open(shards[p.name] / part).fingerprint for part in ("train", "heldout")]
        by_size = {name: float(report["sources"][name]["train"]["tokens"]) for name in shards}
        stages = self.config.stages or {"stable": by_size}
        file = _BuiltFile(
            version=VERSION,
            key=key,
            fingerprint=hashlib.sha256(json.dumps([_folder_hash(tokenizer), prints]).encode()).hexdigest(),
            tokenizer=tokenizer.name,
            shards={name: path.name for name, path in shards.items()},
            stages=stages,
            config=self.config.model_dump(mode="json"),
            report=report,
        )
        write_json(self.out / "built.json", file.model_dump(mode="json"))

    def _prune(self, used: set[Path]) -> None:
        """Delete the folders of other settings; whoever has them open keeps them until he closes them.

        Only what has a name that we give: in a folder that holds other things, those stay.
        """
        for path in (*self.work.glob("*"), *self.out.glob("tokenizer-*"), *(self.out / "shards").glob("*")):
            if path.is_dir() and path not in used and _STEP.fullmatch(path.name):
                shutil.rmtree(path)


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """While workers are started: they need nothing of the main module, and some installers write a `gangpao` script that runs
    the command whenever it is imported, so a worker that imported it would begin the build once more."""
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        for name in hidden:
            setattr(main, name, None)
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def _die_quietly() -> None:
    """In a worker: Ctrl-C reaches it too, and the process that started it says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _refuse_empty(chosen: Sequence[Chosen]) -> None:
    if any((c.flags == dedup_pass.STAYS).any() for c in chosen):
        return
    told = []
    for c in chosen:
        found = c.prepared.report()
        why = ", ".join(f"{count} {reason}" for reason, count in found["dropped"].items())
        told.append(f"{c.prepared.name}: {found['read']} read{f', {why}' if why else ''}")
    raise ValueError(f"no document of any source is left: {'; '.join(told)}; loosen `clean`, or take other files")


def _tokenizer_files(folder: str) -> list[Path]:
    """What belongs to a tokenizer in a folder, and nothing else of it. Raises ValueError when that is nothing."""
    if not folder:
        return []
    files = [path for name in TOKENIZER_FILES if (path := Path(folder).expanduser() / name).is_file()]
    if not files:
        raise ValueError(f"tokenizer.dir: {folder} holds no tokenizer; give the folder with tokenizer.json")
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_hash(folder: Path) -> str:
    return step_key({path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()})
