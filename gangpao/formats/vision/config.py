"""config.json of a model that sees <-> a row of VISION with the checkpoint's own numbers, and the language model's configuration.

    read(data, processor)    a config.json -> Sees; None where the model does not see
    read_encoder(data)       that of an encoder alone (SigLIP, SigLIP 2, CLIP)
    write(vision, text)      -> a config.json that whoever publishes the family reads
    processor(vision)        -> its preprocessor_config.json

What a family's configuration cannot say of a row is written beside it, whole, under "gangpao_vision".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gangpao.formats.vision import VISION, Activation, Encoder, Pixels, VisionModel, joined

Json = Mapping[str, Any]
OURS = "gangpao_vision"
_CLIP_PIXELS = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True, slots=True)
class Sees:
    """What a config.json says. text: the configuration of the language model alone; prefix: of its tensors."""

    vision: VisionModel
    text: dict[str, Any]
    prefix: str


_VERSIONS = {2.6: "minicpm-v-2.6", 4.0: "minicpm-v-4", 4.5: "minicpm-v-4.5"}
# Keys of the flat configurations (MiniCPM-V until 4.5, OmniLMM) that are about pictures.
PICTURES = {
    "batch_3d_resampler", "batch_vision_input", "drop_vision_last_layer", "im_end_token", "im_patch_token", "im_start_token",
    "image_size", "max_slice_nums", "mm_hidden_size", "mm_use_im_start_end", "mm_vision_tower", "num_query", "patch_size",
    "query_num", "scale_resolution", "sft_type", "slice_config", "slice_mode", "tune_clip", "use_image_id", "use_mm_proj",
    "version", "vision_batch_size", "vision_config", "vision_encoder", OURS,
}  # fmt: skip
_TIMM = {
    "vit_so400m_patch14_siglip_384.webli": 27,
    "vit_so400m_patch14_siglip_384": 27,
    "eva02_enormous_patch14_clip_224.laion2b_plus": 64,
}  # all layers; a checkpoint may leave the last one out
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
_OFFICIAL_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
# What transformers' classes take where vision_config is silent: hidden, layers, heads, intermediate, image, patch, activation, eps.
_DEFAULTS: dict[str, tuple[int, int, int, int, int, int, str, float]] = {
    "siglip_vision_model": (768, 12, 12, 3072, 224, 16, "gelu_pytorch_tanh", 1e-6),
    "siglip2_vision_model": (768, 12, 12, 3072, 256, 16, "gelu_pytorch_tanh", 1e-6),
    "clip_vision_model": (768, 12, 12, 3072, 224, 32, "quick_gelu", 1e-5),
    "minicpmv4_6_vision": (768, 12, 12, 3072, 224, 16, "gelu_pytorch_tanh", 1e-6),
}
_LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def read(data: Json, processor: Json | None = None) -> Sees | None:
    """What a config.json, and preprocessor_config.json beside it, say of a model that sees; None where it does not see.

    Raises ValueError for a model that sees and that we would compute wrongly.
    """
    name = _row_of(data)
    if name is None:
        return None
    if name in ("minicpm-v-4.6", "minicpm-v-4.7"):
        found = _nested(data, VISION[name])
    elif name == "llava":
        found = _llava(data)
    else:
        found = _flat(data, VISION[name])
    vision = _own(data, _processed(found.vision, {**data, **(processor or {})}))
    return replace(found, vision=vision)


def _row_of(data: Json) -> str | None:
    kind, classes = data.get("model_type"), data.get("architectures") or []
    said = {str(kind), *map(str, classes)} if isinstance(classes, list) else {str(kind)}
    if said & {"minicpmv4_6", "MiniCPMV4_6ForConditionalGeneration"}:
        return "minicpm-v-4.6"
    if said & {"minicpmv4_7", "MiniCPMV4_7ForConditionalGeneration"}:
        return "minicpm-v-4.7"
    if said & {"omnilmm", "OmniLMMForCausalLM"}:
        return "omnilmm-12b"
    if said & {"llava", "LlavaForConditionalGeneration"}:
        return "llava"
    if not said & {"minicpmv", "MiniCPMV"}:
        return None
    version = data.get("version")
    if version is None and all(data.get(key) is not None for key in ("scale_emb", "scale_depth", "dim_model_base")):
        return "minicpm-v-2" if data.get("slice_mode") else "minicpm-v-1"
    try:
        return _VERSIONS[float(version)]  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        known = ", ".join(map(str, _VERSIONS))
        raise ValueError(
            f"model_type 'minicpmv' of version {version!r:.20} is not supported; 1.0, 2.0 (no version) and {known} are"
        ) from None


def _flat(data: Json, row: VisionModel) -> Sees:
    """MiniCPM-V 1.0 to 4.5 and OmniLMM: the language model's keys and those of pictures side by side."""
    inner = data.get("vision_config")
    tower = data.get("vision_encoder") or data.get("mm_vision_tower")
    if isinstance(inner, Mapping):
        encoder = _numbers(inner, row.encoder)
        layers = encoder.layers - bool(data.get("drop_vision_last_layer"))
    elif tower is not None:
        if tower not in _TIMM:
            raise ValueError(f"an encoder {tower!r:.80} is not supported; {', '.join(sorted(_TIMM))} are")
        encoder = row.encoder
        layers = _TIMM[tower] - bool(data.get("drop_vision_last_layer", row.name == "omnilmm-12b"))
    else:
        encoder, layers = row.encoder, row.encoder.layers
    queries = _whole(data, "query_num", _whole(data, "num_query", row.merger.queries))
    vision = replace(row, encoder=replace(encoder, layers=layers), merger=replace(row.merger, queries=queries))
    slicing = replace(row.slicing, multiple=encoder.patch_size)
    if row.slicing.rule == "square":
        slicing = replace(slicing, resolution=_whole(data, "image_size", 448))
    vision = replace(vision, slicing=slicing)
    text = {key: value for key, value in data.items() if key not in PICTURES | {"auto_map", "architectures"}}
    return Sees(vision, text | {"model_type": _text_type(row)}, "" if row.name == "omnilmm-12b" else "llm.")


def _text_type(row: VisionModel) -> str:
    return "llama" if row.text == "mistral" else row.text  # the same graph; its window is as long as its context here


def _nested(data: Json, row: VisionModel) -> Sees:
    """MiniCPM-V 4.6 and 4.7."""
    inner, text = _part(data, "vision_config"), _part(data, "text_config")
    if tuple(data.get("merge_kernel_size") or (2, 2)) != (2, 2) or tuple(inner.get("window_kernel_size") or (2, 2)) != (
        2,
        2,
    ):
        raise ValueError("merge_kernel_size and window_kernel_size other than 2 x 2 are not supported")
    mode = data.get("downsample_mode", "16x")
    if mode not in ("16x", "4x"):
        raise ValueError(f"downsample_mode {mode!r:.20} is not supported; '16x' and '4x' are")
    encoder = _numbers(inner, row.encoder, "minicpmv4_6_vision")
    last = _whole(data, "insert_layer_id", 6, least=0)
    if not 0 <= last < encoder.layers:
        raise ValueError(f"insert_layer_id {last} is none of the encoder's {encoder.layers} layers")
    encoder = replace(encoder, merge_after=last + 1, merge_skipped=mode == "4x")
    merger = replace(row.merger, times=_whole(data, "merger_times", 1))
    slicing = replace(row.slicing, multiple=encoder.patch_size * joined(encoder, merger))
    vision = replace(row, encoder=encoder, merger=merger, slicing=slicing)
    return Sees(vision, _with_tie(text, data), "model.language_model.")


def _llava(data: Json) -> Sees:
    row = VISION["llava"]
    inner, text = _part(data, "vision_config"), dict(_part(data, "text_config"))
    kind = str(inner.get("model_type", "clip_vision_model"))
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise ValueError(f"an encoder of model_type {kind!r:.60} is not supported; CLIP's and SigLIP's are")
    encoder = read_encoder({**inner, "model_type": kind})
    at = data.get("vision_feature_layer", -2)
    if isinstance(at, bool) or not isinstance(at, int) or not -encoder.layers <= at <= encoder.layers:
        raise ValueError(f"vision_feature_layer {at!r:.40} is not supported: one of the encoder's layers is")
    layers = at if at >= 0 else encoder.layers + 1 + at
    strategy = data.get("vision_feature_select_strategy", "default")
    if (strategy == "default") != (encoder.prefix_tokens == 1):
        raise ValueError(
            f"vision_feature_select_strategy {strategy!r:.20} with this encoder is not supported: 'default' leaves out the class "
            "token of CLIP (of SigLIP it would leave out a patch), 'full' is for encoders without one"
        )
    if not data.get("multimodal_projector_bias", True):
        raise ValueError("multimodal_projector_bias is off, which is not supported")
    vision = replace(
        row,
        encoder=replace(encoder, layers=layers, final_norm=False),
        merger=replace(row.merger, activation=_activation(data.get("projector_hidden_act", "gelu"))),
        slicing=replace(row.slicing, resolution=encoder.table[0] * encoder.patch_size, multiple=encoder.patch_size),
        pixels=_CLIP_PIXELS if encoder.prefix_tokens else row.pixels,
    )
    if text.get("model_type", "llama") == "llama":
        text = {**_LLAMA_7B, **text, "model_type": "llama"}
    return Sees(vision, _with_tie(text, data), "language_model.")


def read_encoder(data: Json) -> Encoder:
    """The ViT that a configuration of transformers describes: SigLIP's, SigLIP 2's or CLIP's vision model, or the whole pair of
    a vision and a text model. ValueError for another."""
    kind = str(data.get("model_type"))
    if kind in ("siglip", "siglip2", "clip"):
        return read_encoder({"model_type": f"{kind}_vision_model", **_part(data, "vision_config")})
    if kind not in _DEFAULTS:
        raise ValueError(f"an encoder of model_type {kind!r:.60} is not supported; {', '.join(_DEFAULTS)} are")
    clip = kind == "clip_vision_model"
    shape = Encoder(
        stretch="bilinear_antialias" if kind == "siglip2_vision_model" else "bicubic",
        prefix_tokens=int(clip),
        first_norm=clip,
        patch_bias=not clip,
        final_norm=not clip,
    )
    return _numbers(data, shape, kind)


def _numbers(data: Json, shape: Encoder, kind: str = "siglip_vision_model") -> Encoder:
    """An encoder with the numbers of a vision_config."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    found: dict[str, Any] = dict(zip((*names, "hidden_act", "layer_norm_eps"), _DEFAULTS[kind], strict=True))
    found |= data
    if found.get("num_channels", 3) != 3:
        raise ValueError(f"pictures of {found['num_channels']!r:.20} channels are not supported; 3 are")
    hidden, layers, heads, inner, image, patch = (_whole(found, name, 1) for name in names)
    side = round(_whole(found, "num_patches", (image // patch) ** 2) ** 0.5)  # SigLIP 2 says the patches of its table
    return replace(
        shape,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        intermediate_size=inner,
        patch_size=patch,
        table=(side, side),
        activation=_activation(found["hidden_act"]),
        eps=_real(found["layer_norm_eps"], "layer_norm_eps"),
    )


def _activation(name: Any) -> Activation:
    if name not in _ACTIVATIONS:
        raise ValueError(f"an activation {name!r:.40} is not supported; {', '.join(_ACTIVATIONS)} are")
    return _ACTIVATIONS[name]


def _whole(data: Json, key: str, silent: int, *, least: int = 1) -> int:
    """A whole number of a configuration, and what it means where it is silent."""
    value = data.get(key)
    if value is None:
        return silent
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
        raise ValueError(f"{key} is {value!r:.40}, and a whole number from {least} to 1,000,000 is needed")
    return value


def _real(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r:.40}, and a number is needed")
    return float(value)


def _part(data: Json, key: str) -> Json:
    part = data.get(key)
    if not isinstance(part, Mapping):
        raise ValueError(f"{key} is missing, in which a part's numbers stand")
    return part


def _with_tie(text: Json, data: Json) -> dict[str, Any]:
    """The text's configuration; whether embedding and head are one is said outside."""
    out = {key: value for key, value in text.items() if key != "architectures"}
    tied = data.get("tie_word_embeddings")
    return out | ({} if tied is None else {"tie_word_embeddings": tied})


def _processed(vision: VisionModel, said: Json) -> VisionModel:
    """A row with what the processor's configuration says of pixels and slices."""
    slices = {**said, **(said["slice_config"] if isinstance(said.get("slice_config"), Mapping) else {})}
    slicing, pixels = vision.slicing, vision.pixels
    if slicing.rule == "area":
        slicing = replace(
            slicing,
            max_slices=_whole(slices, "max_slice_nums", slicing.max_slices),
            resolution=_whole(slices, "scale_resolution", slicing.resolution),
        )
    mean, std = (said.get(f"image_{what}") or said.get(f"norm_{what}") for what in ("mean", "std"))
    if mean and std:
        pixels = replace(pixels, mean=_three(mean), std=_three(std))
    return replace(vision, slicing=slicing, pixels=pixels)


def _three(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"a mean or std of pixels is {values!r:.60}, and three numbers are needed")
    red, green, blue = (_real(value, "a mean or std of pixels") for value in values)
    return red, green, blue


def _own(data: Json, vision: VisionModel) -> VisionModel:
    """The row that stands whole in the file, where one does."""
    if data.get(OURS) is None:
        return vision
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(VisionModel).validate_python(data[OURS])
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{OURS}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


# --- out


def write(vision: VisionModel, text: Json, *, ids: Json | None = None) -> dict[str, Any]:
    """A config.json of the family. text: configuration of the language model; ids: further keys (image_token_id ...).

    What the family's keys do not say of the row stands beside them, so that `read` gives it back whole.
    """
    official = {"minicpm-v-4.6": _v46, "minicpm-v-4.7": _v46, "llava": _as_llava}.get(vision.name, _as_flat)
    data = official(vision, dict(text)) | dict(ids or {})
    data["tie_word_embeddings"] = bool(text.get("tie_word_embeddings", False))
    try:
        said = read(data)
    except ValueError:
        said = None
    if said is None or said.vision != vision:
        data[OURS] = asdict(vision)
    return data


def processor(vision: VisionModel) -> dict[str, Any]:
    """A preprocessor_config.json of the family, by which others cut and normalise pictures as the row says."""
    s, mean, std = vision.slicing, list(vision.pixels.mean), list(vision.pixels.std)
    shared = {"patch_size": vision.encoder.patch_size, "image_mean": mean, "image_std": std}
    if s.rule == "square":
        clip = vision.encoder.prefix_tokens == 1
        size = {"height": s.resolution, "width": s.resolution}
        return {
            "image_processor_type": "CLIPImageProcessor" if clip else "SiglipImageProcessor",
            "size": size, "do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True,
            "do_convert_rgb": True, "rescale_factor": 1 / 255, "resample": _RESAMPLE[vision.pixels.resample],
            "image_mean": mean, "image_std": std,
        }  # fmt: skip
    cut = {"max_slice_nums": s.max_slices, "scale_resolution": s.resolution, "slice_mode": True}
    if vision.encoder.merge_after is not None:
        mode = "4x" if vision.encoder.merge_skipped else "16x"
        return shared | cut | {"image_processor_type": "MiniCPMV4_6ImageProcessor", "downsample_mode": mode}
    kind = {"image_processor_type": "MiniCPMVImageProcessor", "image_feature_size": vision.merger.queries}
    return shared | cut | kind | {"norm_mean": mean, "norm_std": std}


def _vision_numbers(e: Encoder, layers: int, kind: str) -> dict[str, Any]:
    return {
        "model_type": kind, "hidden_size": e.hidden_size, "num_hidden_layers": layers, "num_attention_heads": e.heads,
        "intermediate_size": e.intermediate_size, "image_size": e.table[0] * e.patch_size, "patch_size": e.patch_size,
        "num_channels": 3, "hidden_act": _OFFICIAL_ACTIVATIONS[e.activation], "layer_norm_eps": e.eps, "attention_dropout": 0.0,
    }  # fmt: skip


def _v46(vision: VisionModel, text: dict[str, Any]) -> dict[str, Any]:
    e, kind = vision.encoder, vision.model_types[0]
    number = kind.removeprefix("minicpmv")
    last = (e.merge_after or 1) - 1
    return {
        "model_type": kind,
        "architectures": [f"MiniCPMV{number}ForConditionalGeneration"],
        "vision_config": _vision_numbers(e, e.layers, f"{kind}_vision") | {"insert_layer_id": last},
        "text_config": _bare(text) | {"model_type": "qwen3_5_text"},
        "insert_layer_id": last,
        "merger_times": vision.merger.times,
        "downsample_mode": "4x" if e.merge_skipped else "16x",
        "image_size": vision.slicing.resolution,
    }


def _as_llava(vision: VisionModel, text: dict[str, Any]) -> dict[str, Any]:
    e = vision.encoder
    clip = e.prefix_tokens == 1
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": _vision_numbers(e, e.layers, "clip_vision_model" if clip else "siglip_vision_model")
        | ({} if clip else {"vision_use_head": False}),
        "text_config": _bare(text),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default" if clip else "full",
        "projector_hidden_act": _OFFICIAL_ACTIVATIONS[vision.merger.activation],
        "multimodal_projector_bias": True,
        "image_seq_length": (vision.slicing.resolution // e.patch_size) ** 2,
    }


def _as_flat(vision: VisionModel, text: dict[str, Any]) -> dict[str, Any]:
    e = vision.encoder
    data = _bare(text) | {"model_type": vision.model_types[0], "query_num": vision.merger.queries}
    data |= {"image_size": vision.slicing.resolution, "patch_size": e.patch_size, "drop_vision_last_layer": False}
    data["vision_config"] = _vision_numbers(e, e.layers, "siglip_vision_model")
    data["architectures"] = ["OmniLMMForCausalLM" if vision.name == "omnilmm-12b" else "MiniCPMV"]
    if vision.slicing.rule == "area":
        data |= {"slice_mode": True, "max_slice_nums": vision.slicing.max_slices}
        data["scale_resolution"] = vision.slicing.resolution
    version = next((number for number, name in _VERSIONS.items() if name == vision.name), None)
    return data if version is None else data | {"version": version}


def _bare(text: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in text.items() if key not in ("architectures", "auto_map")}
