"""The vision models that we run, train and export: one row each. What makes one differ from another is data, never a subclass.

    VISION       rows by name; `by_model_type` finds the row of a config.json, `by_projector` that of an mmproj file
    VisionModel  pixels -> slices -> encoder (a ViT) -> merger -> rows that stand in the place of token embeddings, and the marks
                 around them

The numbers of a checkpoint (layers, widths) are read from its own configuration and replace those of the row
(`dataclasses.replace`); what no configuration says (which filter stretches a position table, how a picture is cut) stands here.
Sizes of pictures are (width, height) in pixels, grids of patches (rows, columns).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]  # gelu: by erf
Stretch = Literal["bicubic_antialias", "bicubic", "bilinear_antialias", "nearest"]


@dataclass(frozen=True, slots=True)
class Pixels:
    """uint8 RGB -> float32: value / 255, minus mean, divided by std, each channel its own. resample: the filter of Pillow."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"


@dataclass(frozen=True, slots=True)
class Slicing:
    """How a picture becomes an overview and slices. rule "area": MiniCPM-V's (by area, every size a multiple of `multiple`);
    "square": one picture of resolution x resolution, its aspect lost.

    ties: which of two grids that fit equally well is taken.
    """

    rule: Literal["area", "square"] = "area"
    resolution: int = 448
    max_slices: int = 9
    multiple: int = 14
    ties: Literal["fewer_columns", "more_rows"] = "fewer_columns"


@dataclass(frozen=True, slots=True)
class Encoder:
    """A ViT. layers: those that are computed (a checkpoint may hold one more). table: (rows, columns) of the position table, and
    stretch, how it is brought to the grid of a picture ("nearest": position floor(i * table / grid), no interpolation).

    prefix_tokens: learned ones in front of the patches (a class token), dropped behind the encoder. post_norm: norms behind the
    branches (EVA-02 enormous), else in front of them. first_norm, final_norm: a layer norm in front of the first layer (CLIP), one
    behind the last. merge_after: how many layers run before the window merger joins 2 x 2 patches (MiniCPM-V 4.6), None: there is
    none. merge_skipped: its weights are there and unused, so that four times as many rows remain ("4x"). patch_bias, key_bias:
    False where the patches' product, or k, has none.
    """

    patch_size: int = 14
    layers: int = 27
    hidden_size: int = 1152
    heads: int = 16
    intermediate_size: int = 4304
    activation: Activation = "gelu_tanh"
    eps: float = 1e-6
    table: tuple[int, int] = (70, 70)
    stretch: Stretch = "nearest"
    prefix_tokens: int = 0
    post_norm: bool = False
    first_norm: bool = False
    final_norm: bool = True
    merge_after: int | None = None
    merge_skipped: bool = False
    patch_bias: bool = True
    key_bias: bool = True


@dataclass(frozen=True, slots=True)
class Merger:
    """From patches to rows of the language model. "resampler": one cross attention of `queries` learned queries; "merge": `times`
    rounds of joining 2 x 2 patches by layer norm, linear, GELU, linear (MiniCPM-V 4.6); "mlp": linear, GELU, linear on every
    patch (LLaVA).

    key_table: of a resampler, "computed" for the picture's grid, or "stored" for the queries' square and stretched (a = -0.75);
    "computed_time": three-dimensional, with the time of a frame (MiniCPM-V 4.5). query_table: the queries' square of positions is
    stored and added to them (until 2.0). hidden_size: of "mlp" between its products, 0: as wide as the language model.
    """

    kind: Literal["resampler", "merge", "mlp"] = "resampler"
    queries: int = 64
    head_dim: int = 128
    key_table: Literal["computed", "stored", "computed_time"] = "computed"
    query_table: bool = False
    times: int = 1
    hidden_size: int = 0
    activation: Activation = "gelu"
    eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts around the rows of a picture. image: around the overview (and in front of slices); slices: around all slices;
    slice: around each; row: between rows of slices. number: around the number of the picture, counted from 0 in a conversation,
    None: no numbers; video_number: whether a video has one, too; video_lines: whether frames of one stand on lines of their own.
    behind: between a picture and what follows it in a message. filler: the token whose embeddings the rows replace."""

    image: tuple[str, str] = ("<image>", "</image>")
    slices: tuple[str, str] = ("", "")
    slice: tuple[str, str] = ("<slice>", "</slice>")
    row: str = "\n"
    number: tuple[str, str] | None = None
    video_number: bool = False
    video_lines: bool = True
    behind: str = ""
    filler: str = "<unk>"


@dataclass(frozen=True, slots=True)
class VisionModel:
    """A row. model_types: what config.json may say of it; projector: clip.projector_type of an mmproj file and, for resamplers,
    clip.minicpmv_version (None: llama.cpp has none for it). text: model type of the language model. canvas: positions of rows and
    marks on one canvas (M-RoPE), else one after another."""

    name: str
    model_types: tuple[str, ...]
    encoder: Encoder = field(default_factory=Encoder)
    merger: Merger = field(default_factory=Merger)
    slicing: Slicing = field(default_factory=Slicing)
    marks: Marks = field(default_factory=Marks)
    pixels: Pixels = field(default_factory=Pixels)
    projector: tuple[str, int | None] | None = None
    text: str = "minicpm"
    canvas: bool = False


_SIGLIP_2024 = Encoder(
    layers=26, activation="gelu", table=(27, 27), stretch="bicubic_antialias"
)  # timm's, as V 1.0 and 2.0 load it
_V2_MARKS = Marks(slices=("<slice>", "</slice>"), slice=("<image>", "</image>"), behind="\n")
_NUMBERED = Marks(number=("<image_id>", "</image_id>"), behind="\n")
_NUMBERED_4_7 = replace(_NUMBERED, video_lines=False)
_NUMBERED_4_6 = replace(_NUMBERED_4_7, video_number=True)  # 4.6 numbers videos, 4.7 and the older ones do not

VISION: dict[str, VisionModel] = {
    row.name: row
    for row in (
        VisionModel(
            "minicpm-v-1", ("minicpmv",), _SIGLIP_2024, Merger(key_table="stored", query_table=True),
            Slicing(rule="square"), _V2_MARKS,
        ),
        VisionModel(
            "minicpm-v-2", ("minicpmv",), _SIGLIP_2024, Merger(query_table=True), marks=_V2_MARKS, projector=("resampler", 1)
        ),
        VisionModel("minicpm-v-2.6", ("minicpmv",), marks=_NUMBERED, projector=("resampler", 3), text="qwen2"),
        VisionModel("minicpm-v-4", ("minicpmv",), marks=_NUMBERED, projector=("resampler", 5), text="llama"),
        VisionModel(
            "minicpm-v-4.5", ("minicpmv",), merger=Merger(key_table="computed_time"), marks=_NUMBERED,
            projector=("resampler", 6), text="qwen3",
        ),
        VisionModel(
            "minicpm-v-4.6", ("minicpmv4_6",), Encoder(merge_after=7), Merger(kind="merge", activation="gelu"),
            Slicing(multiple=56, ties="more_rows"), _NUMBERED_4_6, projector=("minicpmv4_6", None), text="qwen3_5",
        ),
        VisionModel(
            "minicpm-v-4.7", ("minicpmv4_7",), Encoder(merge_after=7), Merger(kind="merge", activation="gelu"),
            Slicing(multiple=56, ties="more_rows"), _NUMBERED_4_7, text="qwen3_5", canvas=True,
        ),
        VisionModel(
            "omnilmm-12b", ("omnilmm",),
            Encoder(
                layers=63, hidden_size=1792, intermediate_size=15360, activation="gelu", table=(16, 16),
                stretch="bicubic_antialias", prefix_tokens=1, post_norm=True, key_bias=False,
            ),
            Merger(key_table="stored", query_table=True), Slicing(rule="square"),
            Marks(image=("<im_start>", "<im_end>"), behind="\n", filler="<im_patch>"),
            Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)), text="mistral",
        ),
        VisionModel(
            "llava", ("llava",), Encoder(layers=12, hidden_size=768, heads=12, intermediate_size=3072, final_norm=False),
            Merger(kind="mlp"), Slicing(rule="square"), Marks(image=("", ""), filler="<image>"),
            projector=("mlp", None), text="llama",
        ),
    )
}  # fmt: skip


def joined(encoder: Encoder, merger: Merger) -> int:
    """How many patches of a side become one: 2 for each time that 2 x 2 of them are joined; 1 where none are. Sides of pieces are
    multiples of so many patches."""
    window = encoder.merge_after is not None and not encoder.merge_skipped
    return 1 << merger.times + window if merger.kind == "merge" else 1


def downsampled(row: VisionModel, mode: Literal["4x", "16x"]) -> VisionModel:
    """A row of the "merge" kind in one of MiniCPM-V 4.6's two modes: "16x" is the row itself; "4x" skips the window merger, so that
    a picture has 4 times the rows, and its sides need be multiples of 2 patches only. Raises ValueError for other rows."""
    if row.merger.kind != "merge" or row.encoder.merge_after is None:
        raise ValueError(f"{row.name} has one downsample mode only; 4x and 16x are MiniCPM-V 4.6's and later ones'")
    if mode == "16x":
        return row
    encoder = replace(row.encoder, merge_skipped=True)
    multiple = encoder.patch_size * joined(encoder, row.merger)
    return replace(row, encoder=encoder, slicing=replace(row.slicing, multiple=multiple))


def by_projector(kind: str, version: int | None) -> VisionModel | None:
    """The row of an mmproj file by its clip.projector_type and clip.minicpmv_version; None where there is none."""
    return next((row for row in VISION.values() if row.projector == (kind, version)), None)
