"""Rows in the places of embeddings, several pictures and turns, and both models as one module."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Transformer
from gangpao.model.vision.splice import IGNORED, VisionLanguage, splice, without_rows
from gangpao.model.vision.tower import VisionTower
from tests.model.vision.pictures import piece, small

CONFIG = ModelConfig(
    model_type="minicpm", vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, rms_norm_eps=1e-5, scale_emb=12.0, scale_depth=1.4,
    dim_model_base=16,
)  # fmt: skip


def models(queries: int = 4, name: str = "minicpm-v-2") -> VisionLanguage:
    row = small(name)
    row = replace(row, merger=replace(row.merger, queries=queries))
    return VisionLanguage(VisionTower.build(row, 64, seed=1), Transformer.build(CONFIG, seed=2))


def test_rows_stand_in_their_places_and_nothing_else_moves() -> None:
    embeddings, rows = torch.randn(2, 5, 3), torch.randn(3, 3)
    found = splice(embeddings, torch.tensor([1, 2, 9]), rows)
    expected = embeddings.clone()
    expected[0, 1], expected[0, 2], expected[1, 4] = rows
    assert torch.equal(found, expected)
    assert torch.equal(splice(embeddings, torch.zeros(0, dtype=torch.long), torch.zeros(0, 3)), embeddings)


def test_gradients_go_to_rows_and_to_the_other_embeddings() -> None:
    embeddings, rows = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    splice(embeddings, torch.tensor([3, 1]), rows).square().sum().backward()
    assert embeddings.grad is not None
    assert rows.grad is not None
    assert torch.equal(embeddings.grad[[1, 3]], torch.zeros(2, 3))
    assert torch.equal(rows.grad, 2 * rows.detach())


@pytest.mark.parametrize(
    ("places", "rows", "said"),
    [([0], (2, 3), "do not belong together"), ([0, 1], (2, 4), "do not belong together"), ([0, 4], (2, 3), "within the 4"),
     ([-1, 1], (2, 3), "within the 4"), ([1, 1], (2, 3), "differ")],
)  # fmt: skip
def test_places_that_do_not_fit_are_refused(places: list[int], rows: tuple[int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        splice(torch.zeros(4, 3), torch.tensor(places), torch.zeros(rows))


def test_text_is_scaled_and_rows_are_not() -> None:
    """The first layer sees scale_emb * embedding, and rows as the merger gives them."""
    both = models()
    seen: list[Tensor] = []
    both.language.model.layers[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    ids = torch.tensor([[1, 7, 0, 0, 0, 0, 8]])
    with torch.no_grad():
        rows = both.rows([piece(4, 4)])[0]
        both(ids, [piece(4, 4)], [(0, 2)])
        plain = both.language.model.embed_tokens(ids[0]) * 12.0
    assert torch.equal(seen[0][0, 2:6], rows)
    assert torch.equal(seen[0][0, [0, 1, 6]], plain[[0, 1, 6]])


def test_several_pictures_and_turns_in_one_batch() -> None:
    """Two sequences, the first with pictures in two turns, as each alone; what stands in a picture's place does not matter."""
    both = models()
    pieces = [piece(4, 4), piece(2, 6, seed=1), piece(3, 3, seed=2)]
    ids = torch.tensor([[1, 0, 0, 0, 0, 7, 8, 0, 0, 0, 0, 9], [2, 3, 4, 5, 0, 0, 0, 0, 6, 7, 8, 9]])
    places = [(0, 1), (0, 7), (1, 4)]
    with torch.no_grad():
        together = both(ids, pieces, places).hidden
        first = both(ids[:1], pieces[:2], places[:2]).hidden
        second = both(ids[1:], pieces[2:], [(0, 4)]).hidden
        filled = ids.clone()
        filled[ids == 0] = 33
        other = both(filled, pieces, places, packed=True).hidden
    torch.testing.assert_close(together, torch.cat([first, second]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(together[0, 6:], both(ids[:1], pieces[1::-1], places[:2]).hidden[0, 6:], atol=1e-4)


def test_labels_of_rows_count_for_nothing() -> None:
    labels = torch.arange(12).view(2, 6)
    found = without_rows(labels, [(0, 1), (1, 3)], [2, 3])
    assert found.tolist() == [[0, IGNORED, IGNORED, 3, 4, 5], [6, 7, 8, IGNORED, IGNORED, IGNORED]]
    assert labels[0, 1] == 1


def test_a_picture_that_is_cut_off_is_refused() -> None:
    both, ids = models(), torch.zeros(1, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="was the prompt cut"):
        both(ids, [piece(4, 4)], [(0, 3)])
    with pytest.raises(ValueError, match="1 places are given for 2 pieces"):
        both(ids, [piece(4, 4), piece(4, 4)], [(0, 0)])
    with pytest.raises(ValueError, match="takes 64"):
        VisionLanguage(VisionTower.build(small("minicpm-v-2"), 32), both.language)


@pytest.mark.parametrize("parts", [("merger",), ("merger", "language"), ("encoder", "merger"), ("language",)])
def test_only_what_is_trained_gets_a_gradient(parts: tuple[str, ...]) -> None:
    both = models()
    both.train_only(*parts)  # type: ignore[arg-type]
    hidden = both(torch.tensor([[1, 0, 0, 0, 0, 7]]), [piece(4, 4)], [(0, 1)], recompute=True).hidden
    hidden[0, -1].square().sum().backward()
    trained = {
        name.split(".")[0] if name.startswith("language") else name.split(".")[1]
        for name, p in both.named_parameters()
        if p.grad is not None
    }
    assert trained == set(parts)


def test_what_is_in_a_picture_is_learned() -> None:
    """Two pictures, two answers, the same text: after a few steps each picture gets its own."""
    both = models()
    both.train_only("merger", "language")
    ids = torch.tensor([[1, 0, 0, 0, 0, 7]] * 2)
    pieces, places = [piece(2, 2, seed=i) for i in range(2)], [(0, 1), (1, 1)]
    answers = torch.tensor([11, 12])
    optimizer = torch.optim.AdamW([p for p in both.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(40):
        loss = F.cross_entropy(both.language.logits(both(ids, pieces, places).hidden[:, -1]), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
