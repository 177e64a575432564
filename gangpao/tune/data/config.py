"""What a tuning run is told about its data: files, how long a row may be, what is learned, what is held out."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gangpao.config import Frozen, PathText

Kind = Literal["texts", "answers", "pairs", "labelled"]
Form = Literal["auto", "text", "messages", "sharegpt", "alpaca", "prompt", "pairs", "labelled"]


class TuneFile(Frozen):
    """One file, or several by a pattern. path: relative to `root`; dataset_info.json#NAME is a data set of LLaMA-Factory's."""

    path: str = Field(min_length=1, description="JSON lines, a JSON array, parquet or text; * and ** match several.")
    form: Form = Field(default="auto", description="What a row holds; auto looks at the first rows.")
    weight: float = Field(
        default=1.0, gt=0, lt=1e6, description="How often its rows are seen, next to those of weight 1."
    )
    text: str = Field(default="text", description="Key of a row's text.")
    messages: str = Field(default="", description="Key of a row's conversation.")
    encoding: str = Field(default="utf-8", description="Of text and JSON files: gb18030, big5, utf-16 ...")


class TuneData(Frozen):
    """The data of a tuning run. A file may be written as its path alone."""

    files: tuple[TuneFile, ...] = Field(default=(), description="Where the rows are.")
    root: PathText = Field(
        default="", description="Where paths start; empty: the folder of this file, or the current one."
    )
    kind: Literal["auto", "texts", "answers", "pairs", "labelled"] = Field(
        default="auto", description="What the objective needs; auto: what the first file holds."
    )
    heldout: int | float = Field(
        default=0.02, ge=0, description="Kept out of training: a share, or a count of prompts."
    )
    heldout_files: tuple[TuneFile, ...] = Field(default=(), description="Files that are held out, in place of a share.")
    max_length: int = Field(default=0, ge=0, description="Tokens of a row; 0: as many as the model is tuned with.")
    too_long: Literal["drop", "cut"] = Field(
        default="drop", description="cut: the oldest turns first, then the end of the last answer."
    )
    duplicates: Literal["drop", "keep"] = Field(default="drop", description="Rows that say the same to the last token.")
    train_on: Literal["assistant", "last", "all"] = Field(
        default="assistant", description="Every answer, the last one, or every token."
    )
    system: str = Field(default="", description="Said in front of conversations that have no system turn.")
    strict: bool = Field(default=False, description="Stop at the first row that is dropped or cut.")
    seed: int = Field(default=0, ge=0, description="Of the order of rows.")

    @field_validator("files", "heldout_files", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        value = [value] if isinstance(value, str | dict) else value
        return [{"path": v} if isinstance(v, str) else v for v in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _fits(self) -> "TuneData":
        if isinstance(self.heldout, float) and self.heldout >= 1:
            raise ValueError(
                f"heldout = {self.heldout} is a share and must be below 1; write a whole number for a count"
            )
        paths = [file.path for file in (*self.files, *self.heldout_files)]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"files: {twice} is named twice; weight = 2 shows its rows twice as often")
        return self

    def below(self, folder: Path | str) -> "TuneData":
        """The same with the folder that paths start at, where the file does not say one itself."""
        return self.model_copy(update={"root": self.root or os.path.abspath(folder)})
