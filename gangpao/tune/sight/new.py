"""A folder that sees, put together: a language model, an encoder, a merger between them that knows nothing yet.

From nothing, the language model has Llama's shape and a vocabulary trained on the words of the data. One that is there keeps its
words, and <image> is added behind them. Everything follows from the configuration, the data and the seed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gangpao.data.config import TrainTokenizer
from gangpao.data.sources.forms import Document, said
from gangpao.data.sources.picture_files import read
from gangpao.data.sources.pictures import Reference, cut
from gangpao.data.tokens import bpe
from gangpao.formats.gguf import GGUF
from gangpao.formats.vision import VISION, Encoder, Merger, Pixels, VisionModel
from gangpao.images import slices
from gangpao.images.decode import decode
from gangpao.images.slices import Piece
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Transformer
from gangpao.model.vision.tower import VisionTower
from gangpao.text.hf_folder import tokenizer_files
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.tokenizer_json import hugging_face_files
from gangpao.tune.base import gguf as blocks
from gangpao.tune.pictures.config import NewConfig
from gangpao.tune.sight import encoders
from gangpao.tune.sight.calibrate import calibrate
from gangpao.tune.sight.output import CHAT_TEMPLATE, IMAGE, preprocessing, write_folder

_BUILT_STD = 0.02  # of what VisionTower.build draws
_MOST_TEXT = 8_000_000  # characters that a vocabulary is trained on


def make(
    folder: Path,
    config: NewConfig,
    text: Path | None,
    documents: Iterable[Document],
    pictures: Iterable[tuple[Reference, Path]] = (),
    *,
    seed: int,
) -> Path:
    """Write the folder. text: the language model (a folder or a .gguf file), None: from nothing. pictures: some of the data, each
    with the folder in which it lies, for the scale of the merger. Raises ValueError where one of them cannot be used."""
    if text is None:
        language, files = _from_nothing(folder, config, documents, seed)
    else:
        language, files = _there(text)
    files, image_id = _with_image(files)
    if language.config.vocab_size <= image_id:
        language = _longer(language, image_id + 1)
    vision, values = _encoder(config)
    tower = VisionTower.build(vision, language.config.hidden_size, seed=seed)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name in values:
                parameter.copy_(values[name])
            elif parameter.ndim > 1:
                parameter.mul_(_std(name, parameter) / _BUILT_STD)
    if pieces := _pieces(vision, pictures):
        calibrate(tower, pieces, language)
    tensors = dict(tower.state_dict()) | {f"language.{n}": p for n, p in weights.state(language).items()}
    ids = {"image_token_index": image_id, "bos_token_id": language.config.bos_token_id}
    return write_folder(folder, vision, language.config, tensors, files | preprocessing(vision), ids)


def _pieces(vision: VisionModel, pictures: Iterable[tuple[Reference, Path]]) -> list[Piece]:
    """Of those pictures that can be read; what is wrong with the others is said where the data is read."""
    out: list[Piece] = []
    for reference, folder in pictures:
        with contextlib.suppress(ValueError):
            out += slices.pieces(decode(read(reference, folder)[0]), vision).pieces
    return out


def _std(name: str, parameter: Tensor) -> float:
    """Of first values. With 0.02, narrow layers say next to nothing, and for hundreds of steps the language model learns that
    pictures are noise."""
    if "position_embedding" in name:
        return 0.3  # about half of what the patches themselves say
    return float(parameter.shape[1] ** -0.5)


def row(resolution: int, encoder: Encoder, pixels: Pixels) -> VisionModel:
    """A row in LLaVA's form. The merger's GELU is the one by tanh, because llama.cpp's `mlp` has no other."""
    found, side = VISION["llava"], resolution // encoder.patch_size
    shape = replace(encoder, final_norm=False, table=(side, side))
    merger, slicing = (
        Merger(kind="mlp", activation="gelu_tanh"),
        replace(found.slicing, resolution=resolution, multiple=encoder.patch_size),
    )
    return replace(found, encoder=shape, merger=merger, slicing=slicing, pixels=pixels)


def _encoder(config: NewConfig) -> tuple[VisionModel, dict[str, Tensor]]:
    """Its row, and values under the names of a tower; none: from nothing."""
    if config.encoder:
        found = encoders.read(Path(config.encoder), config.resolution, config.encoder_layers)
        return row(config.resolution, found.shape, found.pixels), found.tensors
    shape = Encoder(
        config.patch_size, config.layers, config.hidden_size, config.heads, config.intermediate_size, stretch="bicubic"
    )
    return row(config.resolution, shape, Pixels()), {}


def _from_nothing(
    folder: Path, config: NewConfig, documents: Iterable[Document], seed: int
) -> tuple[Transformer, dict[str, bytes]]:
    options = TrainTokenizer(vocab_size=config.shape.vocab_size, special=(IMAGE,))
    words = folder.with_name(f"{folder.name}-tokenizer")
    if not words.exists():
        bpe.train(_texts(documents), options, words)
    files = tokenizer_files(words)
    tokenizer = Tokenizer.from_dir(words)
    s = config.shape
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, head_dim=s.hidden_size // s.num_attention_heads,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, tie_word_embeddings=True,
        initializer_range=s.hidden_size**-0.5,
        **s.model_dump(exclude={"vocab_size"}),
    )  # fmt: skip
    return Transformer.build(shape, seed=seed), files


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    left = _MOST_TEXT
    for document in documents:
        text = " ".join(piece for turn in document.messages for piece in cut(said(turn)) if isinstance(piece, str))
        left -= len(text)
        if left < 0:
            return
        yield text


def _there(path: Path) -> tuple[Transformer, dict[str, bytes]]:
    """A language model as floats, and its tokenizer's files."""
    if path.is_file():
        with GGUF.open(path) as file:
            config = blocks.read_config(file)
            with torch.device("meta"):
                model = Transformer(config)
            weights.fill(model, blocks.tensors(file, config), dtype=torch.float32, device="cpu", where=str(path))
            files = hugging_face_files(file.metadata)
    else:
        model, files = weights.load(path, dtype=torch.float32), tokenizer_files(path)
    if model.config.tensor_prefix:
        raise ValueError(f"{path}: sees already; name it as the model, and leave [new] out")
    return model, files


def _with_image(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], int]:
    """Tokenizer files in which <image> is a token, with the chat template for pictures, and its id."""
    if "tokenizer.json" not in files:
        raise ValueError(
            "the language model has no tokenizer.json, to which <image> could be added: take another form of it"
        )
    out = dict(files)
    data = json.loads(files["tokenizer.json"])
    added = data.setdefault("added_tokens", [])
    known = {token["content"]: token["id"] for token in added}
    if IMAGE not in known:
        vocabulary = data["model"]["vocab"]
        known[IMAGE] = 1 + max([*vocabulary.values(), *known.values()])
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added.append({"id": known[IMAGE], "content": IMAGE, **plain})
        out["tokenizer.json"] = (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode()
    if "<|im_start|>" not in known and "<|im_start|>" not in data["model"]["vocab"]:
        raise ValueError(
            "the language model's vocabulary has no marks of ChatML (<|im_start|>), in which questions are written here"
        )
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    settings = {k: v for k, v in settings.items() if k != "chat_template"} | {"processor_class": "LlavaProcessor"}
    out["tokenizer_config.json"] = (json.dumps(settings, ensure_ascii=False, indent=1) + "\n").encode()
    out["chat_template.jinja"] = CHAT_TEMPLATE.encode()
    return out, known[IMAGE]


@torch.no_grad()
def _longer(language: Transformer, vocab_size: int) -> Transformer:
    """With new tokens, whose embeddings are the mean of the others'."""
    config = language.config.model_copy(update={"vocab_size": vocab_size})
    out = {}
    for name, value in weights.state(language).items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            mean = value.mean(dim=0, keepdim=True).expand(vocab_size - len(value), -1)
            value = torch.cat([value, mean])
        out[name] = value
    with torch.device("meta"):
        model = Transformer(config)
    weights.fill(model, iter(out.items()), dtype=None, device="cpu", where="the longer vocabulary")
    return model
