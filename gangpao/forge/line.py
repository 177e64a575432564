"""One stage after the other in one folder: skipped where nothing changed, resumed where a call was killed. Start reading here.

    RUN/forge.json            the line as it was told last
    RUN/state/NAME.json       of each stage: its key, its commands, what came out, how long it took
    RUN/NAME/                 what the stage's commands wrote
    RUN/log/NAME.log          what they said
    RUN/old/NAME-KEY/         a stage as it was before something it depends on changed; taken back when that is taken back

A stage's key is a hash of all that it depends on: its table and configurations as values, the content of files that they name, the
products of the stages before it by content. A stage with a key that is done is skipped; one that is begun goes on, because each
command resumes exactly; one with another key is put aside and done anew.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, TextIO

import gangpao
from gangpao import cost, machine
from gangpao.atomic import locked, write_json
from gangpao.forge import child
from gangpao.forge.config import ForgeConfig
from gangpao.forge.content import Hashes, key_of
from gangpao.forge.record import LINE, LOG, STATE, Record, record_path
from gangpao.forge.stages.stage import Command, Context, Made, Product
from gangpao.forge.stages.table import stage_of
from gangpao.units import show_seconds, utc_now

OLD = "old"
VERSION = 1  # of what stages do; a change makes every stage another one
BUSY = "another `gangpao forge` works here; wait for it, or choose another --out"


def forge(
    config: ForgeConfig,
    model: Path | None,
    out: Path,
    *,
    until: str | None = None,
    again_from: str | None = None,
    stream: TextIO | None = None,
) -> list[Record]:
    """Do what is not done of a line, and return all its stages up to `until`. model: the file or folder that config.model means.
    again_from: this stage and those behind it are done anew.

    Raises ValueError where a stage fails, naming its command and its last words, and Stopped after a signal; the same call goes on.
    """
    names = config.stages()
    for option, name in (("--until", until), ("--from", again_from)):
        if name is not None and name not in names:
            raise ValueError(f"{option} {name!r:.40}: no stage of this line; it has {', '.join(names)}")
    cost.get_profile(config.cost_profile)  # a wrong name is said before anything is done
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: a file is in the way; give a folder, which may not exist yet")
    out = out.absolute()
    with locked(out, BUSY):
        child.wait_for_earlier(out / STATE, stream)
        told = {
            "config": config.model_dump(mode="json"),
            "gangpao": gangpao.__version__,
            "commit": machine.git_commit(),
        }
        write_json(out / LINE, {**told, "machine": machine.cpu_name(), "cores": machine.physical_cores()})
        line = _Line(config, model, out, stream)
        done = []
        for name in names:
            anew = again_from is not None and names.index(name) >= names.index(again_from)
            done.append(line.stage(name, anew=anew))
            if name == until:
                break
        return done


class _Line:
    """A call of `forge`: what has come out so far, by kind."""

    def __init__(self, config: ForgeConfig, model: Path | None, out: Path, stream: TextIO | None) -> None:
        self.config, self.out, self._stream = config, out, stream
        self._hashes = Hashes(out / STATE / "hashes.json")
        self._made: dict[str, Product] = {}
        self._names = config.stages()
        if model is not None:
            self._made["model"] = Product(str(model), self._hashes.of(model))

    def stage(self, name: str, *, anew: bool) -> Record:
        """A stage, done or found done."""
        stage, table = stage_of(name), self.config.stage(name)
        context = Context(self.config, name, self.out, self._hashes, dict(self._made))
        key = key_of(VERSION, name, stage.depends(context, table))
        record = self._known(name, key, shared=stage.shared, anew=anew)
        place = f"[{self._names.index(name) + 1}/{len(self._names)}] {name}"
        if record.done and not stage.always and self._there(record):
            self._say(f"{place}: nothing changed since {record.ended}")
        else:
            self._say(place)
            self._run(record, context, table)
            self._say(f"{place}: done in {show_seconds(record.seconds)}, {self._yuan(record.seconds)}")
        self._made.update(record.products)
        return record

    def _known(self, name: str, key: str, *, shared: bool, anew: bool) -> Record:
        """The record of a stage to go on with; one of another key is put aside first, and one put aside of this key taken back."""
        path = record_path(self.out, name)
        record = Record.read(path)
        if record is not None and record.key == key and not anew:
            return record
        if shared:
            return Record(name, key)
        if record is not None:
            self._put_aside(record)
        kept = self.out / OLD / f"{name}-{key}"
        if not anew and (kept / "state.json").is_file():
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (kept / name).rename(self.out / name)
            (kept / "state.json").rename(path)
            kept.rmdir()
            found = Record.read(path)
            assert found is not None
            return found
        return Record(name, key)

    def _put_aside(self, record: Record) -> None:
        kept = self.out / OLD / f"{record.name}-{record.key}"
        if kept.exists():
            shutil.rmtree(kept)
        folder, path = self.out / record.name, record_path(self.out, record.name)
        kept.mkdir(parents=True)
        if folder.exists():
            folder.rename(kept / record.name)
        else:
            (kept / record.name).mkdir()
        path.rename(kept / "state.json")
        self._say(f"{record.name}: what it depends on has changed; what was there is in {kept}")

    def _there(self, record: Record) -> bool:
        """Whether what came out is there still, as it came out."""
        for kind, product in record.products.items():
            path = Path(product.path)
            if not path.exists():
                return False
            if kind in ("model", "file") and self._hashes.of(path) != product.digest:
                self._say(f"{record.name}: {path} is no longer what came out; done again")
                return False
        return True

    def _run(self, record: Record, context: Context, table: Any) -> None:
        path, before = record_path(self.out, record.name), record.seconds
        was = record.products if record.done else None
        clock = time.monotonic()
        record.done, record.commands = False, []
        record.begun = record.begun or utc_now()
        record.write(path)
        try:
            made = self._steps(record, context, table)
        finally:
            record.seconds = before + time.monotonic() - clock
            record.write(path)
        if was == made.products:  # asked only whether there is anything to do
            record.seconds = before
        record.products, record.facts = dict(made.products), made.facts
        record.commands += made.also
        record.done, record.ended = True, utc_now()
        record.write(path)

    def _steps(self, record: Record, context: Context, table: Any) -> Made:
        run = stage_of(record.name).run(context, table)
        said: str | None = None
        while True:
            try:
                command: Command = run.send(said) if said is not None else next(run)
            except StopIteration as end:
                made: Made = end.value
                return made
            record.commands.append(child.shown(command))
            self._say(f"  $ {child.shown(command)}")
            said = child.run(command, self.out / STATE, self.out / LOG / f"{record.name}.log", self._stream)

    def _yuan(self, seconds: float) -> str:
        return cost.show_yuan(cost.Meter(self.config.cost_profile).yuan(seconds))

    def _say(self, text: str) -> None:
        if self._stream is not None:
            print(text, file=self._stream, flush=True)
