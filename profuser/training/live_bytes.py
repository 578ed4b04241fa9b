"""Counts the bytes of all tensors that are alive, by what they are for, while PyTorch runs; real tensors or such without memory."""

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
    """Within this context each storage counts from the operation that makes it until nothing refers to it any longer.

    A storage is for `part`, as it was when the storage was made, unless `assign` says otherwise. Memory that an operation takes
    and gives back within itself is not seen.
    """

    def __init__(self, part: str):
        super().__init__()
        self.part = part
        self.live: Counter[str] = Counter()
        """Bytes alive, by part."""
        self.fullest: Counter[str] = Counter()
        """The same at the fullest instant since `reset`."""
        self._storages: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._resize: Callable[..., Any] = torch.UntypedStorage.resize_

    def __enter__(self) -> "LiveBytes":
        # FSDP frees and allocates whole parameters by it, past the dispatcher.
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
            return NotImplemented  # It comes again, with the local tensors.
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._storages:
                    self._count(storage, self.part)
        return out

    def assign(self, tensor: Tensor, part: str) -> None:
        """Says what the storage of a tensor is for."""
        self._count(tensor.untyped_storage(), part)

    def reset(self) -> None:
        """Begins a new stretch: its fullest instant is now."""
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
