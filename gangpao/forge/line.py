"""One stage after the other in one folder: skipped where nothing changed, resumed where a call was killed. Start reading here.

    RUN/forge.json            the line as it was told last
    RUN/state/NAME.json       of each stage: its key, its commands, what came out, how long it took
    RUN/NAME/                 what the stage's commands wrote
    RUN/log/NAME.log          what they said
    RUN/old/NAME-KEY/         a stage as it was before something it depends on changed, until that is taken back (aside.py)
    RUN/state/from.json       what a call with --from has still to begin anew

A stage's key is a hash of all that it depends on: its table and configurations as values, the content of files that they name, the
products of the stages before it by content. A stage with a key that is done is skipped; one that is begun goes on, because each
command resumes exactly; one with another key is put aside and done anew.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, TextIO

from gangpao import cost
from gangpao.atomic import locked, read_json, write_json
from gangpao.forge import aside, child
from gangpao.forge.config import ForgeConfig
from gangpao.forge.content import Hashes, key_of
from gangpao.forge.record import LINE, STATE, Record, follow, log_path, made_by, record_path
from gangpao.forge.stages.stage import Command, Context, Made, Product
from gangpao.forge.stages.table import stage_of
from gangpao.units import show_seconds, utc_now

VERSION = 1  # of what stages do; a change makes every stage another one
LOOKS = 0.5  # seconds: `forge status` has the folder for a moment to see whether a call has it
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
    again_from: this stage and those behind it are done anew; a call that was stopped in this goes on when it is given again.

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
    with locked(out, BUSY, patience=LOOKS):
        child.wait_for_earlier(out / STATE, stream)
        follow(out)
        write_json(out / LINE, {"config": config.model_dump(mode="json"), "out": str(out)} | made_by())
        line = _Line(config, model, out, stream)
        wanted = names[: names.index(until) + 1] if until else names
        line.check(wanted)
        again = _Again(out / STATE / "from.json", again_from, wanted)
        done = []
        for name in wanted:
            done.append(line.stage(name, again))
        again.finished()
        return done


class _Again:
    """Stages that a call with --from has still to begin anew, in a file: what was begun is not begun again when the same call is
    repeated because it was stopped."""

    def __init__(self, file: Path, again_from: str | None, wanted: list[str]) -> None:
        self._file, self._from, self._left = file, again_from, list[str]()
        if again_from is None:
            file.unlink(missing_ok=True)
        elif again_from in wanted:
            told: Any = read_json(file) if file.is_file() else {"from": None}
            asked = wanted[wanted.index(again_from) :]
            self._left = [name for name in asked if name in told["left"]] if told["from"] == again_from else asked
            self._write()

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def begun(self, name: str) -> None:
        """A stage has been begun anew."""
        if name in self._left:
            self._left.remove(name)
            self._write()

    def finished(self) -> None:
        """All that was asked for is done."""
        self._file.unlink(missing_ok=True)

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"from": self._from, "left": self._left})


class _Line:
    """A call of `forge`: what has come out so far, by kind."""

    def __init__(self, config: ForgeConfig, model: Path | None, out: Path, stream: TextIO | None) -> None:
        self.config, self.out, self._stream = config, out, stream
        self._hashes = Hashes(out / STATE / "hashes.json")
        self._made: dict[str, Product] = {}
        self._names = config.stages()
        if model is not None:
            self._made["model"] = Product(str(model), self._hashes.of(model))

    def check(self, names: list[str]) -> None:
        """Raises ValueError, before anything is done, for a stage that its command would refuse."""
        for name in names:
            try:
                stage_of(name).check(self._context(name), self.config.stage(name))
            except ValueError as error:
                raise ValueError(f"[{name.replace('-', '.', 1)}] {error}") from error

    def stage(self, name: str, again: _Again) -> Record:
        """A stage, done or found done."""
        stage, table, context = stage_of(name), self.config.stage(name), self._context(name)
        key = key_of(VERSION, name, stage.depends(context, table))
        record = self._known(name, key, shared=stage.shared, anew=name in again)
        place = f"[{self._names.index(name) + 1}/{len(self._names)}] {name}"
        if record.done and not stage.always and self._there(record):
            self._say(f"{place}: nothing changed since {record.ended}")
        else:
            self._say(place)
            self._run(record, context, table, again)
            self._say(f"{place}: done in {show_seconds(record.seconds)}, {self._yuan(record.seconds)}")
        self._made.update(record.products)
        return record

    def _context(self, name: str) -> Context:
        return Context(self.config, name, self.out, self._hashes, dict(self._made))

    def _known(self, name: str, key: str, *, shared: bool, anew: bool) -> Record:
        """The record of a stage to go on with; one of another key is put aside first, and one put aside of this key taken back."""
        aside.recover(self.out, name)
        record = Record.read(record_path(self.out, name))
        if record is not None and record.key == key and not anew:
            return record
        if shared and not anew:  # what it cost to make what is used again counts
            return Record(name, key, seconds=0.0 if record is None else record.spent(self.out))
        if record is not None:
            why = "it is done anew" if anew else "what it depends on has changed"
            self._say(f"{name}: {why}; what was there is in {aside.put_aside(self.out, record)}")
        return (None if anew else aside.take_back(self.out, name, key)) or Record(name, key)

    def _there(self, record: Record) -> bool:
        """Whether what came out is there still, as it came out. What is not is put out of the way, or its command would take it."""
        for kind, product in record.products.items():
            path = Path(product.path)
            if not path.exists():
                return False
            if kind in ("model", "file") and self._hashes.of(path) != product.digest:
                changed = path.with_name(f"{path.name}.changed")
                if changed.exists():
                    shutil.rmtree(changed) if changed.is_dir() else changed.unlink()
                path.rename(changed)
                self._say(f"{record.name}: {path} is no longer what came out, and is {changed.name} now; done again")
                return False
        return True

    def _run(self, record: Record, context: Context, table: Any, again: _Again) -> None:
        path, was = record_path(self.out, record.name), record.products if record.done else None
        record.seconds, before = record.spent(self.out), record.seconds
        clock = time.monotonic()
        record.done, record.commands, record.since = False, [], utc_now()
        record.begun = record.begun or record.since
        record.write(path)
        again.begun(record.name)
        try:
            made = self._steps(record, context, table)
        except BaseException:
            record.seconds, record.since = record.seconds + time.monotonic() - clock, ""
            try:
                record.write(path)
            except OSError as error:  # what ended the stage is what has to be said
                self._say(f"{record.name}: how long it ran is not written down: {error}")
            raise
        record.seconds, record.since = record.seconds + time.monotonic() - clock, ""
        if was == made.products:  # asked only whether there is anything to do
            record.seconds = before
        else:
            record.made_by = made_by()
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
                for text in made.also:
                    self._say(f"  $ {text}")
                return made
            record.commands.append(child.shown(command))
            self._say(f"  $ {child.shown(command)}")
            if command.makes is not None and command.makes.exists():  # it appears whole
                self._say(f"  {command.makes} is there")
                said = ""
            else:
                said = child.run(command, self.out / STATE, log_path(self.out, record.name), self._stream)

    def _yuan(self, seconds: float) -> str:
        return cost.show_yuan(cost.Meter(self.config.cost_profile).yuan(seconds))

    def _say(self, text: str) -> None:
        if self._stream is not None:
            print(text, file=self._stream, flush=True)
