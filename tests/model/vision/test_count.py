"""Counts by arithmetic equal those of real modules; costs of a picture against what torch's own counter sees."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gangpao.formats.vision import VISION
from gangpao.model.vision.count import picture_cost, sight_parameters
from gangpao.model.vision.tower import VisionTower
from tests.model.vision.pictures import piece, small


@pytest.mark.parametrize("name", VISION)
def test_counts_equal_those_of_modules(name: str) -> None:
    row = small(name)
    for vision in (row, replace(row, merger=replace(row.merger, times=2, hidden_size=24, queries=49))):
        tower = VisionTower.build(vision, 64)
        count = sight_parameters(vision, 64)
        assert count.encoder == sum(p.numel() for p in tower.encoder.parameters())
        assert count.merger == sum(p.numel() for p in tower.merger.parameters())


def test_minicpm_v_2_has_its_exact_count() -> None:
    """3,434,965,792 with its language model of 3,007,703,808."""
    count = sight_parameters(VISION["minicpm-v-2"], 2304)
    assert (count.encoder, count.merger) == (397_747_744, 29_514_240)
    assert count.total + 3_007_703_808 == 3_434_965_792


@pytest.mark.parametrize("name", ["minicpm-v-2", "minicpm-v-4.6", "omnilmm-12b", "llava"])
def test_flops_of_a_picture_are_those_that_torch_counts(name: str) -> None:
    """Within a hundredth: torch counts the products of matrices alone, as we do."""
    vision = small(name)
    cost = picture_cost(vision, 64, 448, 448)
    rows = vision.slicing.resolution // vision.encoder.patch_size
    assert (cost.pieces, cost.patches) == (1, rows * rows)
    tower = VisionTower.build(vision, 64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted, torch.no_grad():
        tower([piece(rows, rows, vision.encoder.patch_size)])
    assert cost.flops == pytest.approx(counted.get_total_flops(), rel=0.01)
