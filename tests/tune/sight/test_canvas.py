"""MiniCPM-V 4.7 is trained at the positions at which it is asked: rows of pictures on one canvas, each document of a row anew."""

import numpy as np
import pytest
import torch

from gangpao.images.canvas import Crop, MarkIds, canvas
from gangpao.model.vision.load import load_vision
from gangpao.model.vision.splice import VisionLanguage
from gangpao.tune.pictures.places import positions
from gangpao.tune.pictures.table import PictureTable
from gangpao.tune.sight.model import SeeingModel
from tests.engine.pictures.linear_sight import png

pytest.importorskip("transformers")
from tests.model.vision.peers import minicpm_v, saved

MARKS = MarkIds(1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The tower, the language model, and a table of two pictures: one of a piece, one of an overview and two slices."""
    marks = {f"{n}_id": i for i, n in enumerate(("image_start", "image_end", "slice_start", "slice_end", "newline"), 1)}
    peer = minicpm_v("4_7", **marks)
    vision, tower, language = load_vision(saved(peer, tmp_path_factory.mktemp("peer") / "peer"))
    assert vision.canvas
    table = PictureTable(vision, language.config.vocab_size)
    for data in (png(300, 60, seed=1), png(640, 330, seed=2)):
        table.add(data, tmp_path_factory.getbasetemp())
    assert [len(entry.plan.tokens) for entry in table.entries] == [1, 3]
    return tower.eval(), language.eval(), table


def document(table, number):
    """Ids of words, a picture with its marks, and words; where its pieces begin, and their grids of tokens."""
    entry, ids, crops = table.entries[number], [50, 51], []
    first = table.vocab_size + entry.first
    for index, (count, (rows, columns)) in enumerate(zip(entry.plan.tokens, entry.plan.grids, strict=True)):
        ids.append(3 if index else 1)
        crops.append(Crop(len(ids), rows // 4, columns // 4))
        ids += [*range(first, first + count), 4 if index else 2]
        first += count
    return [*ids, 52, 53], crops


def test_positions_of_packed_rows_are_those_of_prompts(parts):
    table = parts[2]
    found = [document(table, number) for number in (0, 1)]
    length = sum(len(ids) for ids, _ in found) + 3
    ids = np.array([[*found[0][0], *found[1][0], 7, 8, 9]])
    documents = np.array([[0] * len(found[0][0]) + [1] * len(found[1][0]) + [2] * 3])
    expected = [canvas(one, crops, MARKS) for one, crops in found] + [np.tile(np.arange(3), (3, 1))]
    assert np.array_equal(positions(ids, documents, table, MARKS)[:, 0], np.concatenate(expected, axis=1))
    assert positions(ids, None, table, MARKS).shape == (3, 1, length)
    with pytest.raises(ValueError, match="do not fit"):
        positions(ids[:, :10], None, table, MARKS)


def test_hidden_states_are_those_of_the_model_that_is_asked(parts):
    tower, language, table = parts
    ids, crops = document(table, 1)
    pieces = table.pieces(1).pieces
    with torch.no_grad():
        found = SeeingModel(language, tower, table, marks=MARKS)(torch.tensor([ids])).hidden
        places = torch.from_numpy(canvas(ids, crops, MARKS))[:, None]
        text = torch.tensor([[token if token < table.vocab_size else 0 for token in ids]])
        wanted = VisionLanguage(tower, language)(
            text, pieces, [(0, c.start) for c in crops], positions_3BT=places
        ).hidden
        line = VisionLanguage(tower, language)(text, pieces, [(0, c.start) for c in crops]).hidden
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, line, atol=1e-2)


def test_a_canvas_needs_its_marks(parts):
    with pytest.raises(AssertionError, match="marks"):
        SeeingModel(parts[1], parts[0], parts[2])
