"""Budgets of the tiny model: what is measured, what is chosen, and that a killed run goes on to the same end."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gangpao.compress.budget import sensitivity
from gangpao.compress.budget.layout import layout_of
from gangpao.compress.budget.measured import mean
from gangpao.compress.budget.probe import Probe
from gangpao.compress.budget.rounding import rounded
from gangpao.compress.budget.sensitivity import Errors, Measurement, watch
from gangpao.compress.budget.solve import Budget, solve, summary
from gangpao.compress.budget.table import show
from gangpao.compress.quantize.write import write
from gangpao.evaluate.journal import Journal
from gangpao.formats.adapters.gguf import hf_name
from gangpao.model import weights
from gangpao.progress import Progress
from gangpao.tune.base.load import load_base
from tests.deploy.test_gguf import hf_tokenizer
from tests.engine.tiny import write_tiny
from tests.model.test_transformer import build

torch.set_num_threads(1)
IDS = np.random.default_rng(0).integers(0, 256, (9, 32))
TYPES = ("Q4_0", "Q8_0", "F16")  # fewer than there are, for speed
SIZES = (62_000, 70_000, 90_000, 120_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf")


def test_the_size_is_that_of_the_written_file_to_the_byte(model: Path, tmp_path: Path) -> None:
    fields = {"general.file_type": np.uint32(2), "quantize.imatrix.file": "x.gguf"}
    layout = layout_of(model, fields)
    assert layout.bits(layout.stored) == 32
    assert set(layout.fixed) == {n for n in layout.tensors if n.endswith("norm.weight")}
    types = {name: ["Q4_0", "Q5_1", "F16"][i % 3] for i, name in enumerate(layout.matrices)}
    assert write(model, tmp_path / "x.gguf", types, fields=fields).nbytes == layout.file_bytes(types)


def test_the_size_of_a_folder_is_that_of_its_file(folder: Path, tmp_path: Path) -> None:
    layout = layout_of(folder)
    types = {name: "Q4_0" if "ffn" in name else "Q8_0" for name in layout.matrices}
    assert write(folder, tmp_path / "x.gguf", types).nbytes == layout.file_bytes(types)


def test_a_solved_budget_is_the_file_that_is_written(model: Path, budgets: list["Budget"], tmp_path: Path) -> None:
    for size, found in zip(SIZES, budgets, strict=True):
        written = write(model, tmp_path / f"{size}.gguf", found.types)
        assert written.nbytes == found.nbytes <= size
        assert {t.name: t.type for t in written.tensors if t.name in found.types} == found.types


def gradients_by_autograd(base, ids: torch.Tensor, seed: int) -> list[dict[str, torch.Tensor]]:
    """Of each sequence, under names of the file, by a backward pass through the whole model."""
    model, generator, found = base.model, torch.Generator().manual_seed(seed), []
    model.requires_grad_(True)
    for one in ids:
        model.zero_grad()
        logits = model.logits(model(one[None]).hidden[0])
        p = logits.detach().softmax(-1)
        token = torch.multinomial(p, 1, generator=generator)
        logits.log_softmax(-1).gather(1, token).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder whose head is a matrix of its own."""
    model = build("qwen2", tie_word_embeddings=False).float()
    path = weights.save(tmp_path_factory.mktemp("hf") / "export", model.config, weights.state(model))
    hf_tokenizer(path)
    return path


@pytest.mark.parametrize("which", ["model", "folder"])
def test_scores_are_those_of_whole_gradients(which: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(which)
    layout = layout_of(source)
    assert ("output.weight" in layout.tensors) is (which == "folder")
    candidates = {name: ["Q4_0", "Q8_0"] for name in layout.matrices}
    base, other = load_base(source, storage="fp32"), load_base(source, storage="fp32")
    ids = torch.from_numpy(IDS[:2]) % base.config.vocab_size
    watch(base.model)
    scores = Measurement(base.model, ids, Errors(candidates, {}), None).run({}.get, lambda *_: None, lambda _: None)
    assert set(scores) == set(layout.matrices)
    for n, gradients in enumerate(gradients_by_autograd(other, ids, seed=0)):
        for name in layout.matrices:
            weight = other.model.get_parameter(hf_name(name)).detach()
            for kind in candidates[name]:
                products = (gradients[hf_name(name)] * (rounded(weight, kind) - weight)).sum(1)
                wanted = float(products.double().square().sum()) / (2 * ids.shape[1])
                assert scores[name][kind][n] == pytest.approx(wanted, rel=2e-3, abs=1e-12), (name, kind)


def test_a_folder_is_solved_for(folder: Path, tmp_path: Path) -> None:
    vocab = load_base(folder, storage="fp32").config.vocab_size
    layout = layout_of(folder)
    size = layout.file_bytes(dict.fromkeys(layout.matrices, "Q5_0"))
    found = solve(folder, nbytes=size, ids=IDS % vocab, allowed=TYPES)
    assert write(folder, tmp_path / "x.gguf", found.types).nbytes == found.nbytes <= size


def test_gradients_foretell_what_a_small_error_costs(model: Path) -> None:
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (16, 32)))
    base = load_base(model, storage="fp32")
    watch(base.model)
    names = ["token_embd.weight", "blk.0.attn_v.weight", "blk.1.ffn_down.weight"]
    errors = Errors({name: ["Q8_0"] for name in layout_of(model).matrices}, {})
    scores = Measurement(base.model, ids, errors, None).run({}.get, lambda *_: None, lambda _: None)
    probe = Probe(base.model, ids, {})
    for name in names:
        assert mean(probe.divergence({name: "Q8_0"})) == pytest.approx(mean(scores[name]["Q8_0"]), rel=0.5), name
    assert mean(probe.divergence({})) == pytest.approx(0, abs=1e-6)  # everything is in its place again


@pytest.fixture(scope="module")
def budgets(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Budget]:
    folder = tmp_path_factory.mktemp("budgets")
    return [solve(model, nbytes=size, ids=IDS, folder=folder, allowed=TYPES) for size in SIZES]


def test_more_bytes_are_never_worse(budgets: list[Budget]) -> None:
    for size, found in zip(SIZES, budgets, strict=True):
        assert found.least <= found.nbytes <= size
    for less, more in itertools.pairwise(budgets):
        assert more.divergence <= less.divergence
    assert budgets[0].divergence > 10 * budgets[-1].divergence


def test_the_mixture_is_better_than_one_type_of_the_same_bytes(model: Path, budgets: list[Budget]) -> None:
    layout = layout_of(model)
    base = load_base(model, storage="fp32")
    probe = Probe(base.model, torch.from_numpy(IDS[2::3]), {})
    plain = dict.fromkeys(layout.matrices, "Q4_1")
    mixed = solve(model, nbytes=layout.file_bytes(plain), ids=IDS, allowed=(*TYPES, "Q4_1"))
    assert mixed.divergence < mean(probe.divergence(plain))


def test_the_table_says_where_the_bytes_are(budgets: list[Budget]) -> None:
    text = show(budgets[1])
    assert "token_embd" in text
    assert "Q8_0" in text
    every = show(budgets[1], every=True).splitlines()
    assert len(every) == 1 + len(budgets[1].types)
    assert sum(row.nbytes for row in budgets[1].rows) < budgets[1].nbytes
    assert "held-out ids" in summary(budgets[1])


def test_bits_are_those_of_all_weights(model: Path) -> None:
    found = solve(model, bits=8.0, ids=IDS, allowed=TYPES)
    assert 7.5 < found.bits <= 8.0


@pytest.mark.parametrize("budget", [{"nbytes": 1000}, {"bits": 2.0}, {"bits": float("nan")}])
def test_an_impossible_budget_names_the_least_and_the_most(model: Path, budget: dict) -> None:
    with pytest.raises(ValueError, match=r"the least is 5[\d,]+ bytes .*the most 368,\d+ bytes .*32.000 bits"):
        solve(model, ids=IDS, **budget, allowed=TYPES)


def test_bytes_that_make_nothing_better_are_left(model: Path) -> None:
    found = solve(model, nbytes=1_000_000, ids=IDS, allowed=TYPES)
    assert found.nbytes == found.most == layout_of(model).file_bytes(layout_of(model).stored)
    assert found.divergence == 0
    assert "are left" in found.notes[0]


def test_both_or_no_budget_are_refused(model: Path) -> None:
    for budget in ({}, {"nbytes": 100_000, "bits": 8.0}):
        with pytest.raises(ValueError, match="one of the two"):
            solve(model, ids=IDS, **budget, allowed=TYPES)


def test_types_that_fit_no_row_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="the least"):
        solve(model, nbytes=10, ids=IDS, allowed=["Q4_0"])


@pytest.mark.parametrize("dies_at", ["layer 1", "layer 0", "outside", "mixture"])
def test_a_killed_run_goes_on_to_the_same_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    whole = solve(model, nbytes=80_000, ids=IDS, allowed=TYPES)
    put = Journal.put

    class Killed(Exception):
        pass

    def dying(self: Journal, key: str, answer: object) -> None:
        if key.startswith(dies_at):
            raise Killed
        put(self, key, answer)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", dying)
        with pytest.raises(Killed):
            solve(model, nbytes=80_000, ids=IDS, folder=tmp_path, allowed=TYPES)
    asked: list[str] = []
    layer = sensitivity.Measurement._layer
    monkeypatch.setattr(Measurement, "_layer", lambda self, n, *rest: (asked.append(n), layer(self, n, *rest))[1])
    assert solve(model, nbytes=80_000, ids=IDS, folder=tmp_path, allowed=TYPES) == whole
    assert asked == {"layer 1": [1, 0], "layer 0": [0]}.get(dies_at, [])
    assert len(list(tmp_path.glob("gradient-*.npy"))) == 1


def test_a_folder_of_other_texts_is_refused(model: Path, tmp_path: Path) -> None:
    solve(model, nbytes=80_000, ids=IDS, folder=tmp_path, allowed=TYPES)
    with pytest.raises(ValueError, match="holds answers of another run: ids was"):
        solve(model, nbytes=80_000, ids=IDS + 1, folder=tmp_path, allowed=TYPES)
    first = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])
    assert first["identity"]["importance"] == ""


class Heard(Progress):
    """What a progress line would say."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[tuple[str, int, list[int]]] = []

    def start(self, label: str, total: int, done: int = 0) -> None:
        self.tasks.append((label, total, []))

    def update(self, done: int) -> None:
        self.tasks[-1][2].append(done)


def test_progress_comes_to_its_end(model: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time from what was kept
        heard = Heard()
        solve(model, nbytes=80_000, ids=IDS, folder=tmp_path, progress=heard, allowed=TYPES)
        assert [label for label, _, _ in heard.tasks] == ["sensitivity", "kinds of tensors"]
        for _, total, done in heard.tasks:
            assert done[-1] == total
            assert done == sorted(done)
