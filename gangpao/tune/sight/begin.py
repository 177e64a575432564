"""What a run with pictures makes at its beginning, in its own folder: pictures that it draws, and the model that it begins with.

    pictures/00-shapes/    rows.jsonl and images/, one folder for each [[pictures]]
    base/                  the model of [new]

Each is made once and found again when the run goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from gangpao.data.pictures.write import ROWS, pictures, write
from gangpao.data.sources.forms import Document
from gangpao.data.sources.pictures import Reference
from gangpao.tune.config import TuneConfig
from gangpao.tune.data.config import TuneData, TuneFile
from gangpao.tune.data.rows import open_file
from gangpao.tune.sight.calibrate import PICTURES
from gangpao.tune.sight.new import make

BASE = "base"


def draw(config: TuneConfig, out: Path, stream: TextIO | None) -> TuneData:
    """The data of a run with its own pictures. Raises ValueError as `gangpao data pictures` does."""
    files, heldout = list(config.data.files), list(config.data.heldout_files)
    root = Path(config.data.root or ".")
    for number, one in enumerate(config.pictures):
        folder = out.absolute() / "pictures" / f"{number:02d}-{one.kind}"
        if not (folder / ROWS).is_file():
            made = write(folder, pictures(
                one.kind, count=one.count, seed=one.seed, unseen=one.unseen, size=one.size,
                questions=one.questions, describe=one.describe, lengths=one.lengths,
                source=root / Path(one.source).expanduser() if one.source else None,
                fonts=[root / Path(font).expanduser() for font in one.fonts],
            ))  # fmt: skip
            if stream is not None:
                print(
                    f"{made['path']}: {made['pictures']:,} pictures, {made['questions']:,} questions",
                    file=stream,
                    flush=True,
                )
        (heldout if one.heldout else files).append(TuneFile(path=str(folder / ROWS), weight=one.weight))
    return config.data.model_copy(update={"files": tuple(files), "heldout_files": tuple(heldout)})


def new_base(config: TuneConfig, out: Path, text: Path | None) -> Path:
    """The folder of the model that a run with [new] begins with. text: where new.text lies, None: from nothing."""
    assert config.new is not None
    folder = out.absolute() / BASE
    if not folder.is_dir():
        given = text if config.new.text else None
        make(folder, config.new, given, _documents(config.data), _some_pictures(config.data), seed=config.seed)
    return folder


def _some_pictures(data: TuneData) -> Iterator[tuple[Reference, Path]]:
    """The first ones of each file for training, and the folders in which they lie."""
    for file in data.files:
        opened = open_file(file, Path(data.root))
        shown = (one for _, found in opened.examples() if isinstance(found, Document) for one in found.images)
        yield from ((one, opened.folder) for one in itertools.islice(shown, -(-PICTURES // len(data.files))))


def _documents(data: TuneData) -> Iterator[Document]:
    """Conversations of all files for training."""
    for file in data.files:
        for _, found in open_file(file, Path(data.root)).examples():
            if isinstance(found, Document):
                yield found
