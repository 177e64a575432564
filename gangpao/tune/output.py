"""What comes out of a run: an adapter in the forms that others read, or a whole model where the base itself was tuned.

The chat template and the tokenizer are the base's and lie beside the adapter, so that whoever loads it opens and ends turns as it
was trained to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from gangpao.atomic import new_file, new_folder
from gangpao.formats.adapters import Form, write_gguf, write_peft
from gangpao.formats.adapters.read import RUN_ADAPTER
from gangpao.formats.architectures import gguf_form
from gangpao.model.config import ModelConfig
from gangpao.model.vision.tower import VisionTower
from gangpao.text.hf_folder import tokenizer_files
from gangpao.train.pretrain import export
from gangpao.tune.base.load import Base
from gangpao.tune.config import TuneConfig
from gangpao.tune.methods import METHODS, Applied
from gangpao.tune.methods.ia3_file import write_ia3
from gangpao.tune.pictures import load as sight
from gangpao.tune.sight.output import tuned, write_folder

ADAPTER, GGUF_ADAPTER, EXPORT = RUN_ADAPTER, "adapter.gguf", "export"


def there(out: Path) -> bool:
    """Whether an earlier call has written what comes out of a run."""
    return (out / ADAPTER).is_dir() or (out / EXPORT).is_dir()


def check(config: TuneConfig, base: Path) -> None:
    """Raises ValueError, before anything is trained, where nothing could come out of the run that anybody reads."""
    if sight.sees(base) and "text" in config.vision.train and METHODS[config.method.kind].export in ("none", "ia3"):
        raise ValueError(
            f"what {config.method.kind} changes is no weight, and of a model that sees a whole folder comes out: take "
            'method.kind = "lora", "dora" or "full"'
        )
    if config.objective.kind == "grpo" and not base.is_file():
        raise ValueError(
            f"grpo asks the engine for answers, which reads GGUF files: make one (gangpao export {base} base.gguf) and "
            "tune that"
        )
    if METHODS[config.method.kind].trains_base and base.is_file():
        raise ValueError(
            f'method.kind = "{config.method.kind}" changes the weights themselves, and {base} is a GGUF file, whose tokenizer and '
            'blocks cannot become a model again: name its Hugging Face folder, or take method.kind = "lora"'
        )


def warning(config: TuneConfig) -> str:
    """What somebody should know before a run begins about what will come out of it; "" where all is as one expects."""
    if METHODS[config.method.kind].export == "ia3":
        return "ia3 is written as a PEFT folder, and used by merging it (gangpao merge); chat and serve do not read it as it is"
    if METHODS[config.method.kind].export != "none":
        return ""
    return (
        f"{config.method.kind} can be trained and compared, but not used afterwards: no adapter and no model is written, only "
        'checkpoints, from which the run itself goes on. To use what is learned take method.kind = "lora", "dora" or "full"'
    )


def write(out: Path, base: Base, applied: Applied, config: TuneConfig) -> list[str]:
    """Write adapter/ and adapter.gguf, or export/, into the folder of a run. Returns what could not be written, and why."""
    kind = config.method.kind
    if base.tower is not None:
        _write_seeing(out, base, base.tower, applied)
        if not applied.modules:
            return []
    elif METHODS[kind].trains_base:
        values = {name: p.detach() for name, p in base.model.named_parameters()}
        export(out / EXPORT, base.config, values, base.path)
        return []
    if METHODS[kind].export == "ia3":
        with new_folder(out / ADAPTER) as folder:
            write_ia3(folder, applied.modules, str(base.path), base.sha256, dict(_beside(base)))
        return []
    if not METHODS[kind].export.startswith("peft"):
        return [f"{kind}: no form that other programs read holds it; what was trained is in {out / 'checkpoints'}"]
    adapter = applied.adapter(base=str(base.path), base_sha256=base.sha256)
    with new_folder(out / ADAPTER) as folder:
        write_peft(folder, adapter, extra=dict(_beside(base)))
    form = form_of(base.config)
    if form is None:
        return [f"{GGUF_ADAPTER} is not written: no GGUF file holds a model of type {base.config.model_type}"]
    try:
        with new_file(out / GGUF_ADAPTER) as path:
            write_gguf(path, adapter, form, name=out.name)
    except ValueError as error:  # what that form cannot say; the folder has it all
        return [f"{GGUF_ADAPTER} is not written: {error}"]
    return []


def _write_seeing(out: Path, base: Base, tower: VisionTower, applied: Applied) -> None:
    """export/ of a model that sees, with adapters added to its weights."""
    told = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    files = {path.name: path.read_bytes() for path in base.path.iterdir() if path.suffix in (".json", ".jinja")}
    files = {name: data for name, data in files.items() if name != "config.json" and ".safetensors" not in name}
    ids = {key: value for key, value in told.items() if key.endswith(("_token_id", "_token_index"))}
    write_folder(out / EXPORT, tower.vision, base.config, tuned(tower, base.model, applied), files, ids)


def form_of(config: ModelConfig) -> Form | None:
    """How a GGUF file of this model is laid out; None where none holds it."""
    row = gguf_form(config.parts, config.model_type, divisors=False, square=config.heads_fill_width)
    if row is None or row.gguf is None:
        return None
    return Form(row.gguf.name, config.num_attention_heads, config.num_key_value_heads, bool(config.tie_word_embeddings))


def _beside(base: Base) -> Iterator[tuple[str, bytes]]:
    """Tokenizer and chat template of the base, as files; of a GGUF file the template alone."""
    if base.path.is_dir():
        yield from tokenizer_files(base.path).items()
    elif base.chat_template:
        yield "chat_template.jinja", base.chat_template.encode()
        yield "README.md", _readme(base).encode()


def _readme(base: Base) -> str:
    return f"An adapter for {base.path.name} (sha256 {base.sha256}): `gangpao chat -m BASE --adapter FOLDER`.\n"
