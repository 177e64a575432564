"""`gangpao model show`: what a preset or a checkpoint is, and what it costs, without reading a weight."""

import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from gangpao.atomic import read_json
from gangpao.config import explained
from gangpao.formats.vision import VisionModel
from gangpao.formats.vision.config import read
from gangpao.model.config import PRESETS, ModelConfig
from gangpao.model.count import flops_per_token, kv_bytes_per_token, memory, parameters, state_bytes
from gangpao.model.vision.count import picture_cost, sight_parameters
from gangpao.units import show_bytes

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)


@app.callback()
def model() -> None:
    """Look at presets and checkpoints: shapes, parameters, FLOPs, memory."""


@app.command("show", help="Shapes, parameters, FLOPs, cache and memory of a preset or a checkpoint.")
def show(
    name: Annotated[
        str, typer.Argument(help="A preset, a run, a Hugging Face folder, or nothing for the list of presets.")
    ] = "",
    context: Annotated[int, typer.Option("--context", min=1, help="Positions for FLOPs and cache.")] = 4096,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of a training step on one device.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Print what a shape is and costs."""
    if not name:
        print(json.dumps(sorted(PRESETS)) if as_json else presets_table())
        return
    facts = examine(find(name), context, tokens, vision_of(name))
    print(json.dumps(facts) if as_json else report(name, facts))


def find(name: str) -> ModelConfig:
    """A preset by name, or the shape of a Hugging Face folder or of a run. Raises ValueError saying what there is."""
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        raise ValueError(
            f"{name}: a .gguf file is for running (gangpao chat -m {name}); show the folder that it was exported from"
        )
    if path.is_file():
        return ModelConfig.from_file(path, say=False)
    if not path.is_dir():
        near = difflib.get_close_matches(name, PRESETS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{name!r:.80} is neither a preset ({', '.join(PRESETS)}) nor a folder{meant}")
    for file in (path / "config.json", path / "export" / "config.json"):
        if file.is_file():
            return ModelConfig.from_file(file, say=False)
    # Of a run that has no export yet, or a part of one.
    for folder in (path, *path.absolute().parents):
        if (folder / _RUN).is_file():
            return _of_run(folder / _RUN)
    raise ValueError(f"{name}: a folder without config.json: give a Hugging Face folder or a run")


def vision_of(name: str) -> VisionModel | None:
    """What a folder, or a config.json, of a model that sees says of its sight; None for others."""
    path = Path(name).expanduser()
    for file in (path, path / "config.json", path / "export" / "config.json"):
        if file.is_file() and file.suffix == ".json":
            data = read_json(file)
            processor = file.with_name("preprocessor_config.json")
            said = read_json(processor) if processor.is_file() else None
            sees = read(data, said if isinstance(said, dict) else None) if isinstance(data, dict) else None
            return sees.vision if sees else None
    return None


_RUN = "run.json"


def _of_run(path: Path) -> ModelConfig:
    """The shape that run.json has. Raises ValueError where it has none."""
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise ValueError(f"{path}: it does not say what the model is; is this the folder of a run?")
    try:
        return ModelConfig.model_validate(found["model"])
    except ValidationError as error:
        raise ValueError(explained(error, ModelConfig, found["model"], str(path))) from error


_PICTURES = ((448, 448), (1344, 1344))


def _sight(vision: VisionModel, text_size: int) -> dict[str, Any]:
    """What the report says of sight."""
    count = sight_parameters(vision, text_size)
    costs = {f"{w} x {h}": asdict(picture_cost(vision, text_size, w, h)) for w, h in _PICTURES}
    return {"row": asdict(vision), "parameters": asdict(count) | {"total": count.total}, "pictures": costs}


def examine(config: ModelConfig, context: int, tokens: int, vision: VisionModel | None = None) -> dict[str, Any]:
    """Everything the report says, as JSON; of the language model, and of its sight where it has one."""
    count = parameters(config)
    sight = {"sight": _sight(vision, config.hidden_size)} if vision else {}
    return sight | {
        "config": config.model_dump(mode="json", exclude_none=True),
        "parameters": asdict(count) | {"non_embedding": count.non_embedding, "total": count.total},
        "context": context,
        "flops_per_token": flops_per_token(config, context),
        "training_flops_per_token": flops_per_token(config, context, training=True),
        "kv_bytes_per_token": kv_bytes_per_token(config),
        "state_bytes": state_bytes(config),
        "tokens": tokens,
        "memory_bytes": memory(config, context=context, tokens=tokens),
        "remarks": [] if vision else list(config.remarks),
    }


_USES = {
    "serve_bf16": "serve in bf16",
    "serve_q8_0": "serve in Q8_0",
    "serve_q4_0": "serve in Q4_0",
    "train_adamw": "train, AdamW float32",
    "tune_lora_bf16": "tune, LoRA on bf16",
    "tune_lora_4bit": "tune, LoRA on 4 bits",
}


def report(name: str, facts: dict[str, Any]) -> str:
    """The facts for a person."""
    lines = [name, ""]
    lines += [f"  {key:24} {_value(value)}" for key, value in facts["config"].items()]
    lines += ["", "parameters"]
    lines += [f"  {key:24} {value:>16,}" for key, value in facts["parameters"].items() if value]
    if "sight" in facts:
        lines += _sight_lines(facts)
    context, tokens = facts["context"], facts["tokens"]
    lines += [
        "",
        f"per token, at a context of {context:,}",
        f"  {'forward':24} {facts['flops_per_token'] / 1e9:>12.3f} GFLOP",
        f"  {'forward and backward':24} {facts['training_flops_per_token'] / 1e9:>12.3f} GFLOP",
        f"  {'KV cache, 16 bits':24} {facts['kv_bytes_per_token']:>12,} bytes",
        *([f"  {'recurrent state, a text':24} {facts['state_bytes']:>12,} bytes"] if facts["state_bytes"] else []),
        "",
        f"memory (serving {context:,} positions; training with {tokens:,} tokens a step and recomputation)",
    ]
    lines += [f"  {_USES[use]:24} {show_bytes(size):>12}" for use, size in facts["memory_bytes"].items()]
    lines += ["", *(f"note: {remark}" for remark in facts["remarks"])] if facts["remarks"] else []
    return "\n".join(lines)


def _sight_lines(facts: dict[str, Any]) -> list[str]:
    sight, text = facts["sight"], facts["parameters"]["total"]
    lines = ["", f"sight ({sight['row']['name']})"]
    lines += [f"  {key:24} {value:>16,}" for key, value in sight["parameters"].items()]
    lines += [f"  {'with the language model':24} {sight['parameters']['total'] + text:>16,}", ""]
    for size, cost in sight["pictures"].items():
        lines.append(
            f"  a picture of {size:12} {cost['pieces']:>3} pieces, {cost['patches']:>6,} patches, {cost['rows']:>5,} rows, "
            f"{cost['flops'] / 1e9:>9,.1f} GFLOP"
        )
    return lines


def _value(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 90 else text[:87] + "..."


def presets_table() -> str:
    """One line a preset."""
    lines = [f"{'preset':18} {'non-embedding':>16} {'total':>16}   shape"]
    for name, c in PRESETS.items():
        count = parameters(c)
        heads = f"{c.num_attention_heads}/{c.num_key_value_heads} heads"
        shape = f"{c.hidden_size} x {c.num_hidden_layers}, {heads}, FFN {c.intermediate_size}"
        lines.append(f"{name:18} {count.non_embedding:>16,} {count.total:>16,}   {shape}")
    return "\n".join(lines)
