"""The experiments: each asks for trials and ends in facts; text/ says them in words.

EXPERIMENTS is the table of them. A new one is a file and a row here: the command line, the configuration, the estimate, the page of
all and what a plan compares come from the row. docs/sandbox.md says how, and what the file holds.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True, slots=True)
class Row:
    """An experiment. module: has its table of the configuration (a class named `table`) and `run(lab, submit) -> Outcome`.
    text: the module with `page(facts) -> Page`, which may be the same one. line: for --help.

    free: conditions that the experiment varies itself, or does not train with; every other difference makes its outcome one of
    another sandbox. search: a sampler chooses its trials; then the module has `outcome_of(lab, study)` instead of `run`.
    """

    module: str
    table: str
    text: str
    line: str
    free: frozenset[str] = frozenset()
    search: bool = False

    def load(self) -> ModuleType:
        """The module, which brings torch with it."""
        return importlib.import_module(self.module)


def _row(name: str, table: str, line: str, free: frozenset[str] = frozenset(), *, search: bool = False) -> Row:
    """Of an experiment that lies here."""
    return Row(f"{__name__}.{name}", table, f"{__name__}.text.{name}", line, free, search)


# In the order of the report.
EXPERIMENTS: dict[str, Row] = {
    "lr": _row(
        "lr", "LrConfig", "The best learning rate across widths and depths, under every rule of transfer.",
        frozenset({"rule", "common.lr"}),
    ),
    "batch": _row(
        "batch", "BatchConfig", "Loss against batch size, and the law of the best batch.",
        frozenset({"common.batch_tokens"}),
    ),
    "horizon": _row(
        "horizon", "HorizonConfig", "How the best learning rate moves with the number of tokens.", frozenset({"common.lr"}),
    ),
    "schedule": _row(
        "schedule", "ScheduleExperiment", "WSD with decays of several shares and shapes against tuned cosine runs.",
        frozenset({"common.schedule", "common.decay", "mixture.decay"}),
    ),
    "scaling": _row(
        "scaling", "ScalingConfig", "The law of loss over model size and tokens, from decays branched off stable runs."
    ),
    "mix": _row("mix", "MixConfig", "What goes into the decay stage."),
    "optim": _row("optim", "OptimConfig", "AdamW, Muon and their hyperballs at equal loss."),
    "search": _row(
        "search", "SearchConfig",
        "Search any fields of a trial with Optuna (TPE, random, grid), pruning hopeless ones.", search=True,
    ),
}  # fmt: skip
