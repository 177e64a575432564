"""Sight in torch: pieces of pictures -> patches -> rows of the language model.

tower.py      VisionTower: an encoder and a merger, as a row of formats/vision.py says
encoder.py    the ViT; position.py brings its learned table to a grid
merger.py     resampler, window merger, mergers of 2 x 2, MLP
names.py      official names of tensors <-> ours, as data
load.py       checkpoints in and out
splice.py     rows in the places of token embeddings; VisionLanguage, both models as one
canvas.py     positions of MiniCPM-V 4.7 on one canvas
"""
