"""One thread: the tests share their cores, and small matrices gain nothing from more."""

import torch

torch.set_num_threads(1)
