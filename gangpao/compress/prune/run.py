"""A pruning step: what runs through the model is measured, what stays is chosen, what stays takes over, and the rest is cut.

    out/model/              the smaller model, a Hugging Face folder with the tokenizer
    out/masks.safetensors   where a pattern was asked for (masks.py)
    out/work/               what was measured so far: told.json, statistics.safetensors, layers.jsonl, candidates.jsonl, facts.json,
                            takeover.safetensors (until the model is there), gates/ (a training run)

A step that was killed goes on from work/, and gives the same bits. Another configuration, model or text in the same folder is
refused. Everything that is computed counts in facts["flops"], whichever call computed it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gangpao import machine
from gangpao.atomic import locked, new_file, read_json, write_json
from gangpao.compress.prune import solve, source
from gangpao.compress.prune.config import PruneConfig
from gangpao.compress.prune.cut import Kept, cut
from gangpao.compress.prune.layers import Order, Remembered
from gangpao.compress.prune.masks import masked, write_masks
from gangpao.compress.prune.measure import Judge, Measure, only_layers
from gangpao.compress.prune.reconstruct import reconstructed
from gangpao.compress.prune.scores import Scores, keep, scores
from gangpao.compress.prune.shape import Shape, pruned_config, total
from gangpao.compress.prune.statistics import collect
from gangpao.compress.step import StepResult
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.count import flops_per_token, parameters

TAKEOVER = "takeover.safetensors"
BUSY = "another process is pruning here; stop it or choose another folder"
Say = Callable[[str], None]


def run_step(
    config: PruneConfig, source_path: Path, original: Path, out: Path, *, stream: TextIO | None = None
) -> StepResult:
    """Prune the model at `source_path` into out/model, or go on with what is in `out`. original is not looked at: importance is
    that of the model at hand.

    Raises ValueError for impossible targets (naming possible ones) and for a folder that holds another step, Stopped after a signal
    while gates were trained.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads or machine.physical_cores())
    with locked(out, BUSY):
        return _Step(config, source_path, out, stream).run()


@dataclass
class _Step:
    config: PruneConfig
    path: Path
    out: Path
    stream: TextIO | None

    def say(self, text: str) -> None:
        if self.stream is not None:
            print(f"prune: {text}", file=self.stream, flush=True)

    def tick(self, what: str) -> Callable[[int, int], None]:
        def progress(done: int, all_of_it: int) -> None:
            if done == all_of_it or done % max(1, all_of_it // 4) == 0:
                self.say(f"{what} {done} of {all_of_it}")

        return progress

    @cached_property
    def work(self) -> Path:
        folder = self.out / "work"
        folder.mkdir(exist_ok=True)
        return folder

    @cached_property
    def source(self) -> source.Source:
        return source.load(self.path)

    @property
    def shape(self) -> ModelConfig:
        return self.source.model.config

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return weights.state(self.source.model)

    @cached_property
    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        return source.windows(self.source.tokenizer, self.config.calibration)

    # --- the way of a step

    def run(self) -> StepResult:
        target = self.out / "model"
        facts = self.work / "facts.json"
        self._same_step()
        if target.is_dir() and facts.is_file():
            return StepResult(target, read_json(facts))
        found = solve.shapes(self.shape, self._wanted()) if self.config.cuts else [Shape.of(self.shape)]
        torch.manual_seed(0)
        small, tensors, said = self._pruned(found)
        masks: dict[str, Tensor] = {}
        if self.config.pattern is not None:
            model = source.build(small, {name: t.clone() for name, t in tensors.items()})
            pattern, by = self.config.pattern, self.config.pattern_by
            masks = masked(model, self.ids[0], by, pattern, self.config.damping, progress=self.tick("masks: layer"))
            small, tensors = model.config, weights.state(model)
        write_json(facts, self._facts(small, tensors, masks, said))
        dtype = source.DTYPES[self.config.dtype]
        stored = {name: t.to(dtype) for name, t in tensors.items()}
        if masks:
            write_masks(target, masks)
        weights.save(target, small, stored, extra=dict(self.source.files))
        (self.work / TAKEOVER).unlink(missing_ok=True)
        return StepResult(target, read_json(facts))

    def _same_step(self) -> None:
        told = self.config.model_dump(mode="json", exclude={"threads"})
        now = {"digest": source.digest(self.source.sha256, told, *self.ids), "config": told}
        path = self.work / "told.json"
        if path.exists() and (before := read_json(path)) != now:
            differ = [key for key in told if before["config"].get(key) != told[key]]
            what = f"another {', '.join(differ)}" if differ else "another model or calibration text"
            raise ValueError(
                f"{self.out} holds a pruning step with {what}: take the change back to go on with it, give another folder, or "
                f"delete it and begin anew: rm -r {self.out}"
            )
        write_json(path, now)

    def _wanted(self) -> solve.Wanted:
        c = self.config
        return solve.Wanted(c.layers, c.ffn, c.heads, c.kv_heads, c.width, c.parameters, c.multiple, c.least)

    def _pruned(self, found: list[Shape]) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
        if not self.config.cuts:
            return self.shape, self.tensors, {}
        chosen, table = self._chosen(found)
        if self.config.gates is not None:
            return self._through_gates(chosen, table)
        kept = self._kept(chosen)
        small, tensors = self._cut(kept, last=True)
        return small, tensors, {"kept": kept.facts(), **table}

    # --- what is measured

    @cached_property
    def statistics(self) -> dict[str, Tensor]:
        path = self.work / "statistics.safetensors"
        if not path.is_file():
            found = collect(self.source.model, self.ids[0], progress=self.tick("importance: window"))
            with new_file(path) as staging:
                save_file({name: t.contiguous() for name, t in found.items()}, staging)
        return load_file(path)

    @cached_property
    def scores(self) -> Scores:
        return scores(self.shape, self.tensors, self.statistics, self.config.score)

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.source.model, self.ids[1], self.config.measure)

    @cached_property
    def without(self) -> Remembered:
        """How bad the model is with some layers left out."""
        by: Measure = "loss" if self.config.layer_score == "loss" else "kl"
        judge = self.judge if by == self.config.measure else Judge(self.source.model, self.ids[1], by)

        def measure(gone: tuple[int, ...]) -> float:
            rest = [i for i in range(self.shape.num_hidden_layers) if i not in gone]
            with only_layers(self.source.model, rest) as model:
                value = judge(model)
            self.say(f"without layers {', '.join(map(str, gone))}: {by} {value:.4f}")
            return value

        return Remembered(self.work / "layers.jsonl", measure)

    @cached_property
    def order(self) -> Order:
        c = self.config
        return Order(
            self.shape.num_hidden_layers, c.layer_score, c.layer_search, self.statistics["cosine"], self.without
        )

    def _kept(self, shape: Shape) -> Kept:
        return keep(self.shape, self.scores, shape, self.order.stays(shape.layers))

    def _cut(self, kept: Kept, *, last: bool = False) -> tuple[ModelConfig, dict[str, Tensor]]:
        changed: dict[str, Tensor] = {}
        if self.config.reconstruct:
            changed = self._taken_over(kept) if last else self._reconstructed(kept, lambda done, all_of_it: None)
        return cut(self.shape, self.tensors | changed, kept, self._energies())

    def _reconstructed(self, kept: Kept, progress: Callable[[int, int], None]) -> dict[str, Tensor]:
        return reconstructed(self.source.model, self.ids[0], kept, self.config.damping, progress=progress)

    def _taken_over(self, kept: Kept) -> dict[str, Tensor]:
        """The reconstruction of what was chosen, kept in a file until the model is written: it is the longest part."""
        path = self.work / TAKEOVER
        if not path.is_file():
            found = self._reconstructed(kept, self.tick("reconstruction: layer"))
            if not found:
                return {}
            with new_file(path) as staging:
                save_file({name: t.contiguous() for name, t in found.items()}, staging)
        return load_file(path)

    def _energies(self) -> dict[str, Tensor]:
        end = ".square"
        return {name.removesuffix(end): t for name, t in self.statistics.items() if name.endswith(f"weight{end}")}

    # --- what is chosen

    def _chosen(self, found: list[Shape]) -> tuple[Shape, dict[str, Any]]:
        """The shape, and what is to be said of how it was found."""
        if len(found) == 1:
            return found[0], {}
        near = Order(self.shape.num_hidden_layers, "influence", "each", self.statistics["cosine"], lambda _: 0.0)

        def gone(shape: Shape) -> float:
            stays = near.stays(shape.layers)
            return near.without(tuple(i for i in range(self.shape.num_hidden_layers) if i not in stays))

        ranked = [(solve.guess(self.shape, self.scores, shape, gone(shape)), shape) for shape in found]
        guesses = {shape: value for value, shape in ranked}
        values = Remembered(self.work / "candidates.jsonl", self._measure)
        measured = {shape: values(_key(shape)) for shape in solve.chosen(ranked, self.config.candidates)}
        best = sorted(measured, key=lambda shape: measured[shape])
        rows = [
            {"shape": _as_dict(s), "parameters": total(self.shape, s), "guess": guesses[s], "measured": measured[s]}
            for s in best
        ]
        return best[0], {"candidates": rows, "shapes": len(found)}

    def _measure(self, key: tuple[int, ...]) -> float:
        shape = Shape(*key)
        value = self.judge(source.build(*self._cut(self._kept(shape))))
        self.say(f"{shape.words()}: {self.config.measure} {value:.4f}")
        return value

    def _through_gates(
        self, shape: Shape, table: dict[str, Any]
    ) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
        from gangpao.compress.prune.gates.train import learned

        assert self.config.gates is not None
        found = learned(
            self.config.gates,
            self.source,
            shape,
            self.work / "gates",
            threads=torch.get_num_threads(),
            stream=self.stream,
        )
        small, tensors = cut(self.shape, found.tensors, found.kept)
        return small, tensors, {"kept": found.kept.facts(), "gates": found.facts, **table}

    # --- what is said

    def _facts(
        self, small: ModelConfig, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], said: dict[str, Any]
    ) -> dict[str, Any]:
        size = {"fp32": 4, "bf16": 2, "fp16": 2}[self.config.dtype]
        before, after = Shape.of(self.shape), Shape.of(small)
        kl = Judge(self.source.model, self.ids[1], "kl")
        loss = Judge(self.source.model, self.ids[1], "loss")
        model = source.build(small, tensors)
        facts = {
            "kind": "prune",
            "before": _as_dict(before) | {"parameters": total(self.shape, before)},
            "after": _as_dict(after) | {"parameters": parameters(small).total, "bytes": size * parameters(small).total},
            "kl": kl(model),
            "loss": {"before": loss(self.source.model), "after": loss(model)},
            "calibration_tokens": {"importance": int(self.ids[0].size), "measured": int(self.ids[1].size)},
            **said,
        }
        if masks:
            ones = sum(int(mask.sum()) for mask in masks.values())
            all_of_it = sum(mask.numel() for mask in masks.values())
            facts["pattern"] = {"pattern": self.config.pattern, "by": self.config.pattern_by, "share": ones / all_of_it}
        facts["flops"] = self._flops(small, said)
        self.say(
            f"{total(self.shape, before):,} -> {parameters(small).total:,} parameters ({after.words()}); on calibration text KL "
            f"{facts['kl']:.4f}, loss {facts['loss']['before']:.4f} -> {facts['loss']['after']:.4f}"
        )
        return facts

    def _flops(self, small: ModelConfig, said: Mapping[str, Any]) -> dict[str, float]:
        """What was computed, by what for: forward passes, and the second moments of reconstruction."""
        length = self.config.calibration.length
        here = flops_per_token(self.shape, length)
        cuts, first, second = self.config.cuts, self.ids[0].size, self.ids[1].size
        out = {"importance": here * first if cuts else 0.0}
        if cuts and (self.work / "layers.jsonl").exists():
            per = [len(gone) for gone in self.without.known]
            layers = self.shape.num_hidden_layers
            shapes = [pruned_config(self.shape, replace(Shape.of(self.shape), layers=max(1, layers - n))) for n in per]
            out["layers"] = float(sum(flops_per_token(shape, length) for shape in shapes) * second)
        rounds = 0
        if "candidates" in said:
            rounds = len(said["candidates"])
            shapes = [pruned_config(self.shape, Shape(**row["shape"])) for row in said["candidates"]]
            out["candidates"] = float(sum(flops_per_token(shape, length) for shape in shapes) * second)
        if cuts and self.config.reconstruct and self.config.gates is None:
            out["reconstruction"] = (rounds + 1) * first * (here + _moment_flops(self.shape))
        if self.config.pattern is not None and self.config.pattern_by != "magnitude":
            out["masks"] = first * (5 * flops_per_token(small, length) + _moment_flops(small))
        if "gates" in said:
            out["gates"] = said["gates"]["flops"]
        out["report"] = 5 * here * second
        return out | {"total": sum(out.values())}


def _moment_flops(c: ModelConfig) -> float:
    """Of x x^T at all places of a token, at most."""
    widths = (c.intermediate_size, c.num_attention_heads * c.head_dim, c.hidden_size, c.hidden_size)
    return 2.0 * c.num_hidden_layers * sum(width**2 for width in widths)


def _as_dict(shape: Shape) -> dict[str, int]:
    return dict(zip(("layers", "ffn", "heads", "kv_heads", "width"), _key(shape), strict=True))


def _key(shape: Shape) -> tuple[int, ...]:
    return (shape.layers, shape.ffn, shape.heads, shape.kv_heads, shape.width)
