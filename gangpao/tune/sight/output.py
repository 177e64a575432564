"""A model that sees as a folder of its family, with what was tuned in it.

Of a new model, in LLaVA's form: processor's files, a tokenizer with <image> as one token, and a chat template that writes it for a
part {"type": "image"}; transformers and vLLM load it as it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gangpao.atomic import publish
from gangpao.formats.vision import VisionModel
from gangpao.formats.vision.config import processor
from gangpao.model import weights
from gangpao.model.config import ModelConfig, to_hf
from gangpao.model.transformer import Transformer
from gangpao.model.vision.load import write_vision
from gangpao.model.vision.tower import VisionTower
from gangpao.tune.merge.adapted import Adapted
from gangpao.tune.methods.apply import Applied

IMAGE = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def preprocessing(vision: VisionModel) -> dict[str, bytes]:
    """preprocessor_config.json and processor_config.json."""
    pictures = processor(vision) | {"processor_class": "LlavaProcessor"}
    beside = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": vision.encoder.patch_size,
        "num_additional_image_tokens": 0,
        "vision_feature_select_strategy": "full",
    }
    return {
        name: (json.dumps(value, indent=1) + "\n").encode()
        for name, value in (("preprocessor_config.json", pictures), ("processor_config.json", beside))
    }


def write_folder(
    folder: Path,
    vision: VisionModel,
    language: ModelConfig,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    ids: Mapping[str, Any],
) -> Path:
    """Write a whole folder in the form of the row's family; one from before is replaced when the new one is whole.

    tensors: under our names, encoder.*, merger.* and language.*. files: tokenizer, template and what else lies beside. ids: further
    keys of config.json, such as the filler's.
    """
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    text = {key: value for key, value in to_hf(language).items() if value is not None}
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_vision(staging, vision, text, here, extra=files, about=ids)
    publish(staging, folder)
    return folder


def tuned(base: VisionTower, language: Transformer, applied: Applied) -> dict[str, Tensor]:
    """All weights of a tuned model under our names; adapters are added to what they adapt. Raises ValueError for a method whose
    changes are no weights."""
    out = {name: p.detach() for name, p in base.state_dict().items()}
    adapted = Adapted([(applied.adapter(), 1.0)] if applied.modules else [])
    for name, value in weights.state(language).items():
        if "lora_" in name or name.endswith(".magnitude"):
            continue
        plain = name.replace(".base.", ".")
        out[f"language.{plain}"] = adapted.apply(plain, value) if plain in adapted.names else value
    return out
