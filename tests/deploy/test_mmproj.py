"""Files of encoders: written with llama.cpp's names, proved by reading them back, and run by llama.cpp with the same rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gangpao.deploy import mmproj
from gangpao.engine.vision.sight import Sight
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.formats.vision import VISION
from gangpao.images import slices
from gangpao.model.vision.tower import VisionTower
from tests.deploy.mtmd_oracle import mean_of_rows, normalised
from tests.engine import vision as tiny

# What llama.cpp wants of a file: 70 x 70 positions, heads of 128 in a resampler, pictures of 448 for MiniCPM-V, patches of 14.
PEERS = {"minicpm-v-2.6": 2e-4, "minicpm-v-4.6": 1e-3, "llava": 2e-3}


def for_llama_cpp(name):
    row = VISION[name]
    encoder = replace(row.encoder, layers=2, hidden_size=72, heads=2, intermediate_size=136)
    if encoder.merge_after:
        encoder = replace(encoder, merge_after=1)
    slicing = row.slicing
    if name == "llava":
        encoder, slicing = replace(encoder, table=(8, 8), activation="gelu_tanh"), replace(slicing, resolution=112)
    return replace(row, encoder=encoder, slicing=slicing)


@pytest.mark.parametrize("name", PEERS)
def test_llama_cpp_computes_the_same_rows(tmp_path, name, monkeypatch):
    monkeypatch.setenv("GGML_NO_BACKTRACE", "1")
    vision = for_llama_cpp(name)
    tower = VisionTower.build(vision, 128)
    with torch.no_grad():
        for i, parameter in enumerate(tower.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    path = mmproj.write_mmproj(tower, tmp_path / "mmproj.gguf", dtype="F32")
    side = vision.slicing.resolution
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    (piece,) = slices.pieces(pixels, vision).pieces
    ours = Sight.open(path).encode(piece)
    assert len(ours) == piece.tokens
    np.testing.assert_allclose(
        normalised(normalised(ours).mean(axis=0)), mean_of_rows(path, 128, pixels), atol=PEERS[name]
    )


def test_the_row_comes_back_whole(tmp_path):
    """Also what no key of llama.cpp says: marks, slicing, activations, filters."""
    vision = tiny.small("omnilmm-12b")
    vision = replace(vision, marks=replace(vision.marks, behind="说"), slicing=replace(vision.slicing, max_slices=4))
    path = tmp_path / "m.gguf"
    mmproj.write(vision, tiny.tower(vision).state_dict(), path)
    assert Sight.open(path).vision == vision


def test_channels_of_zeros_make_whole_blocks(tmp_path):
    vision = tiny.small("minicpm-v-2.6", hidden_size=128, intermediate_size=280)
    path = tmp_path / "m.gguf"
    mmproj.write(vision, tiny.tower(vision).state_dict(), path, "Q8_0")
    with GGUF.open(path) as gguf:
        assert gguf.info("v.blk.0.ffn_down.weight")[1:3] == ((128, 288), "Q8_0")
    piece = tiny.piece(vision, (8, 8))
    expected = tiny.by_torch(vision, piece)
    found = Sight.open(path, float32=True).encode(piece)
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 0.02


def test_square_mlps_get_the_names_that_llama_cpp_expects(tmp_path):
    vision = tiny.small("minicpm-v-2.6", intermediate_size=72)
    path = tmp_path / "m.gguf"
    mmproj.write(vision, tiny.tower(vision).state_dict(), path, "F32")
    with GGUF.open(path) as gguf:
        np.testing.assert_array_equal(
            gguf.array("v.blk.0.ffn_down.weight"), tiny.tower(vision).state_dict()["encoder.layers.0.mlp.fc1.weight"]
        )
    piece = tiny.piece(vision, (8, 8))
    np.testing.assert_allclose(Sight.open(path).encode(piece), tiny.by_torch(vision, piece), atol=2e-5)


def test_rounding_at_load_is_that_of_the_writer(tmp_path):
    """int8=True on a file of floats gives what the file in Q8_0 gives."""
    vision = tiny.small("minicpm-v-2.6", hidden_size=128, intermediate_size=280)
    state = tiny.tower(vision).state_dict()
    paths = {kind: mmproj.write(vision, state, tmp_path / f"{kind}.gguf", kind) for kind in ("F32", "Q8_0")}
    piece = tiny.piece(vision, (8, 12))
    found = [Sight.open(paths["F32"], int8=True).encode(piece), Sight.open(paths["Q8_0"]).encode(piece)]
    scale = np.sqrt(np.mean(found[0] ** 2))
    # The convolution stays F32 in one and is F16 in the other, and a value on a border is rounded the other way.
    assert np.sqrt(np.mean((found[0] - found[1]) ** 2)) < 0.02 * scale


def test_what_cannot_be_written_is_said(tmp_path):
    vision = tiny.small("llava")
    state = dict(tiny.tower(vision).state_dict())
    path = tmp_path / "m.gguf"
    with pytest.raises(ValueError, match="type"):
        mmproj.write(vision, state, path, "Q9")
    with pytest.raises(ValueError, match="nonsense"):
        mmproj.write(vision, state | {"encoder.nonsense.weight": torch.zeros(4, 4)}, path)
    short = {name: t for name, t in state.items() if "layers.1.mlp.fc2" not in name}
    with pytest.raises(ValueError, match="missing"):
        mmproj.write(vision, short, path)
    with pytest.raises(ValueError, match="linear_2"):
        mmproj.write(vision, {name: t for name, t in state.items() if "linear_2" not in name}, path)
    assert not list(tmp_path.iterdir())
    mmproj.write(vision, state, path)
    with pytest.raises(ValueError, match="exists"):
        mmproj.write(vision, state, path)


def changed(path, out, edit):
    """A file with other keys: edit(fields) changes them in place."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(path)
    fields = {}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            fields[key] = (field.contents(), field.types)
    edit(fields)
    writer = GGUFWriter(out, "clip")
    for key, (value, types) in fields.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, types[0], types[1] if len(types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    vision = tiny.small("minicpm-v-2.6")
    return mmproj.write(vision, tiny.tower(vision).state_dict(), tmp_path_factory.mktemp("m") / "m.gguf", "F32")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("clip.projector_type", "qwen2vl_merger", "qwen2vl_merger.*not supported; there are resampler version 1"),
        ("clip.minicpmv_version", 2, "resampler version 2"),
        ("clip.has_vision_encoder", False, "no encoder of pictures"),
        ("clip.vision.embedding_length", 64, "shape"),
        ("clip.vision.embedding_length", 0, "1 to 8192"),
        ("clip.vision.attention.head_count", 5, "do not divide"),
        ("clip.vision.block_count", 4, "missing"),
        ("clip.vision.patch_size", 7, "shape"),
        ("clip.vision.attention.layer_norm_epsilon", -1.0, "positive"),
        ("clip.vision.image_std", [0.5, 0.5, 0.0], "positive"),
        ("clip.vision.image_mean", [0.5], "three numbers"),
        ("clip.use_silu", True, "SiLU"),
    ],
)
def test_wrong_headers_are_refused_by_name(file, tmp_path, key, value, why):
    def edit(fields):
        del fields["gangpao.vision"]
        fields[key] = (value, fields[key][1] if key in fields else fields["clip.has_vision_encoder"][1])

    with pytest.raises(ModelFileError, match=why):
        Sight.open(changed(file, tmp_path / "wrong.gguf", edit))


def test_a_file_of_others_is_its_row(tmp_path):
    vision = for_llama_cpp("minicpm-v-2.6")
    path = mmproj.write_mmproj(VisionTower.build(vision, 128), tmp_path / "ours.gguf")
    theirs = changed(path, tmp_path / "theirs.gguf", lambda fields: fields.pop("gangpao.vision"))
    assert Sight.open(theirs).vision == vision


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "not an object"),
        ("{", "not JSON"),
        ('{"name": 3, "model_types": []}', "name is 3"),
        ('{"name": "x"}', "model_types"),
        ('{"name": "x", "model_types": ["y"], "encoder": {"layers": "2"}}', "layers is '2'"),
        ('{"name": "x", "model_types": ["y"], "encoder": {"stretch": "tall"}}', "stretch is 'tall'"),
        ('{"name": "x", "model_types": ["y"], "pixels": {"mean": [1, 2]}}', "2 entries"),
        ('{"name": "x", "model_types": ["y"], "pixels": {"mean": [1, 2, 1e999]}}', "mean is inf"),
        ("[" * 5000, "not JSON"),
        (" " * 30_000, "characters"),
    ],
)
def test_a_lying_description_is_refused(file, tmp_path, text, why):
    def edit(fields):
        fields["gangpao.vision"] = (text, fields["gangpao.vision"][1])

    with pytest.raises(ModelFileError, match=why):
        Sight.open(changed(file, tmp_path / "wrong.gguf", edit))


def test_a_tensor_without_a_place_is_refused(tmp_path):
    vision = tiny.small("llava")
    path = mmproj.write(vision, tiny.tower(vision).state_dict(), tmp_path / "m.gguf", "F32")
    fewer = {"clip.vision.block_count": 2, "clip.vision.feature_layer": [2]}

    def edit(fields):
        for key, value in fewer.items():
            fields[key] = (value, fields[key][1])

    with pytest.raises(ModelFileError, match="no place"):
        Sight.open(changed(path, tmp_path / "wrong.gguf", edit))


def test_a_cut_file_is_refused(file, tmp_path):
    data = file.read_bytes()
    for size in (10, 1000, len(data) // 2, len(data) - 4096):
        cut = tmp_path / f"{size}.gguf"
        cut.write_bytes(data[:size])
        with pytest.raises(ModelFileError):
            Sight.open(cut)
