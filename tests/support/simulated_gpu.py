"""A simulated GPU: it tracks which tensors would be on a GPU, and finds code that would wait for it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ahm_gym.device import transfers

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}
"""Operations that need their result, or its size, in main memory."""
READING = {"item", "tolist", "cpu", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__"}


class Waited(AssertionError):
    pass


class SimulatedGPU(TorchDispatchMode):
    """Tracks tensors that count as being on a GPU, and everything computed from them, by their memory.

    Reading one raises `Waited`; reading the result of a `Fetch` is allowed. `blocked` counts the waits of fetches,
    except those for data that an earlier wait has already brought.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocked = 0
        self._kept: dict[int, Tensor] = {}
        """References that keep the memory from being reused for another tensor."""
        self._began, self._arrived = 0, 0

    def adopt(self, *values: Tensor | nn.Module) -> None:
        """Makes these tensors, or those of a module, count as being on the GPU."""
        for value in values:
            tensors = value.state_dict(keep_vars=True).values() if isinstance(value, nn.Module) else [value]
            self._kept |= {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [value for value in tree_leaves((args, kwargs or {})) if self.holds(value)]
        name = func._overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(value, Tensor) and value.dtype == torch.bool for value in tree_leaves(args[1])
        )
        if inputs and (name in WAITING or by_mask):
            raise Waited(f"{name} waits for the GPU")
        result = func(*args, **(kwargs or {}))
        if inputs:
            self.adopt(*(value for value in tree_leaves(result) if isinstance(value, Tensor)))
        return result

    @contextlib.contextmanager
    def running(self) -> Iterator[SimulatedGPU]:
        """Activates the simulated GPU."""
        gpu, begin, wait, to_device = (
            self,
            transfers.Fetch.__init__,
            transfers.Fetch.wait,
            transfers.to_device,
        )

        def begun(fetch: Any, tensor: Tensor) -> None:
            begin(fetch, tensor)
            gpu._began += 1
            fetch.place = gpu._began

        def brought(fetch: Any) -> Tensor:
            gpu.blocked += fetch.place > gpu._arrived
            gpu._arrived = max(gpu._arrived, fetch.place)
            with torch._C._DisableTorchDispatch():
                return wait(fetch).clone()

        def sent(tensor: Tensor, device: torch.device) -> Tensor:
            copy = tensor.clone()
            gpu.adopt(copy)
            return copy

        modules = [module for module in list(sys.modules.values()) if _imports(module, to_device)]
        transfers.Fetch.__init__, transfers.Fetch.wait = begun, brought
        for module in modules:
            module.to_device = sent
        try:
            with self, _Readers(self):
                yield self
        finally:
            transfers.Fetch.__init__, transfers.Fetch.wait = begin, wait
            for module in modules:
                module.to_device = to_device


class _Readers(TorchFunctionMode):
    """Finds calls that read a tensor's memory without an operation of torch."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        # torch itself passes the device as an object, and only the one on which the tensor is.
        named = any(isinstance(value, str) and value == "cpu" for value in args[1:])
        to_main_memory = name == "to" and named and not kwargs.get("non_blocking")
        if (name in READING or to_main_memory) and self.gpu.holds(args[0]):
            raise Waited(f"{name}() waits for the GPU")
        return func(*args, **kwargs)


def _imports(module: Any, function: Any) -> bool:
    name = getattr(module, "__name__", "")
    # The environment masks in main memory, and masking/selection.py only copies to the device of the scores.
    own = name.startswith("ahm_gym.") and name != "ahm_gym.masking.selection"
    return own and vars(module).get("to_device") is function
