"""The encoder on the device: equal to the torch half for every row, the same bits however it is run, and what it refuses."""

import threading

import numpy as np
import pytest

from gangpao import kernels
from gangpao.engine.transformer import ONE_AT_A_TIME
from gangpao.engine.vision import encoder
from gangpao.engine.vision.sight import Sight, weight_bytes, work_bytes
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.formats.vision import VISION
from tests.engine import vision as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mmproj")


def distance(found, expected):
    """Root mean square of the difference, as a share of that of what is expected."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("name", VISION)
def test_every_row_is_the_torch_half(folder, name):
    vision = tiny.small(name)
    sight = Sight.open(tiny.written(folder, vision))
    assert (sight.vision, sight.text_size) == (vision, 64)
    for grid in ((8, 8), (4, 20), (12, 4)):
        piece = tiny.piece(vision, grid)
        expected = tiny.by_torch(vision, piece)
        found = sight.encode(piece)
        assert found.shape == expected.shape == (sight.tokens(grid), 64)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_clip_with_its_class_token_is_the_torch_half(tmp_path):
    """The encoder of LLaVA 1.5: a token in front, a norm in front of the layers, patches without bias, the quick GELU."""
    vision = tiny.small(
        "llava",
        prefix_tokens=1,
        first_norm=True,
        patch_bias=False,
        activation="quick_gelu",
        table=(6, 8),
        key_bias=False,
    )
    path = tiny.mmproj.write(vision, tiny.tower(vision).state_dict(), tmp_path / "m.gguf", "F32")
    sight = Sight.open(path)
    assert sight.vision == vision
    for grid in ((6, 8), (3, 5)):
        piece = tiny.piece(vision, grid)
        expected = tiny.by_torch(vision, piece)
        np.testing.assert_allclose(sight.encode(piece), expected, atol=1e-5 * np.abs(expected).max())


# What is lost beside float32, as a share of a row: by the weights, and by activations in 8 bits where the type has them.
@pytest.mark.parametrize(
    ("kind", "weights", "both"), [("F16", 8e-4, 8e-4), ("BF16", 5e-3, 5e-3), ("Q8_0", 0.018, 0.025)]
)
@pytest.mark.parametrize("name", ["minicpm-v-2.6", "minicpm-v-4.6", "llava"])
def test_types_lose_what_rounding_explains(folder, name, kind, weights, both):
    vision = tiny.small(name, hidden_size=128, intermediate_size=256)
    piece = tiny.piece(vision, (8, 12))
    expected = tiny.by_torch(vision, piece)
    path = folder / f"{name}-wide-{kind}.gguf"
    tiny.mmproj.write(vision, tiny.tower(vision).state_dict(), path, kind)
    assert distance(Sight.open(path, float32=True).encode(piece), expected) < weights
    assert distance(Sight.open(path).encode(piece), expected) < both


def test_the_same_bits_on_all_instruction_sets_threads_and_chunks(folder, monkeypatch):
    vision = tiny.small("minicpm-v-4.6", hidden_size=128, intermediate_size=256)
    path = folder / "bits.gguf"
    tiny.mmproj.write(vision, tiny.tower(vision).state_dict(), path, "Q8_0")
    piece, isa, threads, found = tiny.piece(vision, (12, 12)), kernels.isa_name(), kernels.num_threads(), []
    try:
        for name in kernels.available_isas():
            for count, chunk in ((1, 256), (3, 17)):
                kernels.set_isa(name)
                kernels.set_num_threads(count)
                monkeypatch.setattr(encoder, "CHUNK", chunk)
                found.append(Sight.open(path).encode(piece))
    finally:
        kernels.set_isa(isa)
        kernels.set_num_threads(threads)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_others_have_the_kernels_between_the_steps(folder):
    """Somebody who waits for the lock gets it while a piece is encoded, again and again."""
    vision = tiny.small("minicpm-v-2.6", layers=12)
    path = folder / "long.gguf"
    tiny.mmproj.write(vision, tiny.tower(vision).state_dict(), path, "F32")
    sight, done, turns = Sight.open(path), threading.Event(), []

    def other():
        while not done.is_set():
            with ONE_AT_A_TIME:
                turns.append(1)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        sight.encode(tiny.piece(vision, (30, 30)))
    finally:
        done.set()
        thread.join()
    assert len(turns) > 12


def test_wrong_pieces_are_refused(folder):
    vision = tiny.small("minicpm-v-4.6")
    sight = Sight.open(tiny.written(folder, vision))
    for piece, why in (
        (tiny.Patches(np.zeros((64, 47), np.float32), (8, 8)), "48"),
        (tiny.Patches(np.zeros((63, 48), np.float32), (8, 8)), "64"),
        (tiny.Patches(np.zeros((0, 48), np.float32), (0, 8)), "0 x 8"),
        (tiny.Patches(np.zeros((15, 48), np.float32), (3, 5)), "3 x 5"),
        (tiny.Patches(np.zeros((1, 48), np.float32), (1000, 1000)), "too large"),
    ):
        with pytest.raises(ValueError, match=why):
            sight.encode(piece)
    assert np.isfinite(sight.encode(tiny.piece(vision, (8, 8)))).all()


def test_memory_is_what_the_header_says(folder):
    vision = tiny.small("minicpm-v-2.6")
    path = tiny.written(folder, vision)
    with GGUF.open(path) as gguf:
        planned = weight_bytes(gguf)
    assert 0.95 * planned < Sight.open(path).nbytes < 1.05 * planned
    assert 30e6 < work_bytes(VISION["minicpm-v-2.6"], 3584) < 60e6


def test_a_language_model_is_no_mmproj_file(tmp_path):
    from tests.engine.tiny import write_tiny

    path = tmp_path / "model.gguf"
    write_tiny(path)
    with pytest.raises(ModelFileError, match="not an mmproj file"):
        Sight.open(path)
