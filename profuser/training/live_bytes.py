"""Counts the bytes of all live tensors by purpose while PyTorch runs; works for real tensors and for fake ones."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within this context each storage counts from the operation that makes it until nothing refers to it.

    A storage belongs to the value of `part` at its creation, unless `assign` changes it. Memory that an operation allocates and
    frees internally is not counted.
    """

    def __init__(self, part: str):
        super().__init__()
        self.part = part
        self.live: Counter[str] = Counter()
        """Live bytes by part."""
        self.fullest: Counter[str] = Counter()
        """Live bytes by part at the peak since `reset`."""
        self._storages: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._resize: Callable[..., Any] = torch.UntypedStorage.resize_

    def __enter__(self) -> "LiveBytes":
        # FSDP frees and allocates whole parameters with it, bypassing the dispatcher.
        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            self._resize(storage, size)
            if storage._cdata in self._storages:
                self._count(storage, self._storages[storage._cdata][1])

        torch.UntypedStorage.resize_ = resize_  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[assignment]
        super().__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # Dispatched again with the local tensors.
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._storages:
                    self._count(storage, self.part)
        return out

    def assign(self, tensor: Tensor, part: str) -> None:
        """Sets the part of a tensor's storage."""
        self._count(tensor.untyped_storage(), part)

    def reset(self) -> None:
        """Starts a new interval: its peak is the present state."""
        self.fullest = self.live.copy()

    def _count(self, storage: torch.UntypedStorage, part: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            ref, before, old = self._storages[key]
            self.live[before] -= old
        else:
            ref = weakref.ref(storage, lambda _: self._forget(key))
        self._storages[key] = (ref, part, size)
        self.live[part] += size
        if self.live.total() > self.fullest.total():
            self.fullest = self.live.copy()

    def _forget(self, key: int) -> None:
        _, part, size = self._storages.pop(key)
        self.live[part] -= size
