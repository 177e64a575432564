"""What the tests of the compression room share: one thread, so that sums come in one order."""

import torch

torch.set_num_threads(1)
