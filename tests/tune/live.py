"""Bytes of the tensors that are alive, counted while something runs."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """`now` and `peak`: bytes of storages that operations made inside, and of those that `count` was told of."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = {}

    def count(self, *tensors):
        """Count tensors that were there before."""
        for t in tensors:
            self._add(t)

    def _add(self, t):
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self._seen or t.is_meta:
            return
        size = storage.nbytes()
        self._seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, key, size):
        if self._seen.pop(key, None) is not None:
            self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return out
