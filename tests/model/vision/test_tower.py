"""The tower alone: every row is built, counted and run; packing, gradients, freezing, recomputation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gangpao.formats.vision import VISION
from gangpao.model.vision.tower import VisionTower
from tests.model.vision.pictures import Piece, piece, small

GRIDS = ((4, 8), (8, 8), (8, 8), (12, 4))


def tower(name: str, **changes: object) -> VisionTower:
    return VisionTower.build(small(name, **changes), 64)


@pytest.mark.parametrize("name", VISION)
def test_every_row_gives_its_rows(name: str) -> None:
    vision = VISION[name]
    pieces = [piece(*grid) for grid in GRIDS]
    with torch.no_grad():
        rows = tower(name)(pieces)
    for one, (height, width) in zip(rows, GRIDS, strict=True):
        patches = height * width // (4 if vision.encoder.merge_after else 1)
        expected = {"resampler": 64, "merge": patches // 4, "mlp": patches}[vision.merger.kind]
        assert one.shape == (expected, 64)
        assert one.isfinite().all()


@pytest.mark.parametrize("name", VISION)
def test_pieces_together_are_pieces_apart(name: str) -> None:
    """One after another the bits are equal; packed, sums may have another order, and differ by rounding only."""
    model = tower(name)
    pieces = [piece(*grid) for grid in GRIDS]
    with torch.no_grad():
        alone = [model([one])[0] for one in pieces]
        together, packed = model(pieces), model(pieces, packed=True)
    for a, b, c in zip(alone, together, packed, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)


def test_times_of_frames_share_rows() -> None:
    """V 4.5: frames of one group are one set of rows; a picture without a time is as without times at all."""
    model = tower("minicpm-v-4.5")
    frames = [piece(4, 6, seed=i) for i in range(3)]
    with torch.no_grad():
        apart = model(frames)
        untimed = model(frames, times=[[-1], [-1], [-1]])
        grouped = model(frames, times=[[-1], [0, 7]])
        moved = model(frames, times=[[-1], [7, 0]])
    for a, b in zip(apart, untimed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert [len(rows) for rows in grouped] == [64, 64]
    torch.testing.assert_close(grouped[0], apart[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(grouped[1], moved[1], atol=1e-5), "the time of a frame tells"
    with pytest.raises(ValueError, match="times"):
        model(frames, times=[[0, 1]])
    with pytest.raises(ValueError, match="no place for them"):
        tower("minicpm-v-2.6")(frames, times=[[0, 1, 2]])


@pytest.mark.parametrize("name", ["minicpm-v-2", "minicpm-v-4.6", "omnilmm-12b", "llava"])
def test_recomputation_gives_the_same_gradients(name: str) -> None:
    model = tower(name)
    pieces = [piece(*grid) for grid in GRIDS[:2]]
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        model.encoder.recompute = recompute
        torch.stack([rows.square().mean() for rows in model(pieces)]).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    missing = {n for n, p in model.named_parameters() if n not in gradients[0] and p.requires_grad}
    assert missing == set()
    for n in gradients[0]:
        assert torch.equal(gradients[0][n], gradients[1][n]), n


def test_parts_are_frozen_by_name() -> None:
    model = tower("minicpm-v-2")
    model.train_only("merger")
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"merger"}
    assert not model.merger.pos_embed.requires_grad, "a table of positions is not trained"
    torch.stack([rows.sum() for rows in model([piece(4, 4)])]).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())


def test_bits_depend_on_seed_and_name_alone() -> None:
    a, b = tower("minicpm-v-2"), tower("minicpm-v-2", layers=2)
    for name, parameter in b.named_parameters():
        assert torch.equal(parameter, a.get_parameter(name)), name


def test_half_precision_stays_near() -> None:
    model = tower("minicpm-v-2")
    with torch.no_grad():
        whole, half = model([piece(6, 6)])[0], model([piece(6, 6)], dtype=torch.bfloat16)[0]
    assert half.dtype == torch.bfloat16
    assert (whole - half.float()).abs().max() < 0.05 * whole.abs().max()


def test_pieces_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="cut for another model"):
        tower("minicpm-v-2")([piece(4, 4, patch=16)])
    wrong = Piece(np.zeros((15, 588), np.float32), (4, 4))
    with pytest.raises(ValueError, match="4 x 4"):
        tower("minicpm-v-2")([wrong])
    with pytest.raises(ValueError, match="no whole windows"):
        tower("minicpm-v-4.6")([piece(5, 4)])
    with pytest.raises(ValueError, match="no multiple"):
        VisionTower(replace(VISION["llava"], encoder=replace(VISION["llava"].encoder, heads=7)), 64)
    assert tower("minicpm-v-2")([]) == []


def test_tables_of_positions_do_not_grow_without_bound() -> None:
    with pytest.raises(ValueError, match="too large"):
        tower("minicpm-v-2").merger.key_table((100_000, 100_000))


def test_the_encoder_of_omnilmm_has_its_published_count() -> None:
    """4,348,720,896 with all 64 blocks (timm 1.0.31); the last one is not computed."""
    vision = VISION["omnilmm-12b"]
    with torch.device("meta"):
        whole = VisionTower(replace(vision, encoder=replace(vision.encoder, layers=64)), 4096)
    assert sum(p.numel() for p in whole.encoder.parameters()) == 4_348_720_896
