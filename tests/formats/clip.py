"""A file that says as much of an encoder of pictures as is looked for when one is searched."""

import gguf
import numpy as np


def clip(path, projector="resampler", width=64):
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("clip.projector_type", projector)
    writer.add_uint32("clip.vision.projection_dim", width)
    writer.add_tensor("x", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
