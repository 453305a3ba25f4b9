"""A device that is played on the CPU: torch sees tensors of another device, which mix with none of the CPU.

`play()` adds it to this process for good, so a test that plays it runs in a process of its own. Data of the device lies
in CPU memory, and each operation is the CPU's own, so results are equal bit by bit. As on a GPU, an operation fails if
its tensors are on two devices, and `.numpy()` fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_BETWEEN_DEVICES = ("aten._to_copy.default", "aten.copy_.default", "aten.index.Tensor", "aten.index_put_.default")
"""Copies; and indices of the CPU, which CUDA takes too."""


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Played(torch.Tensor):
    """A tensor of the device."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "_Played":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="played:0",
        )
        tensor.values = values
        return tensor

    def tolist(self) -> Any:
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        return _run(operation, given, named or {})


class _Device(TorchDispatchMode):
    """Sends every operation that concerns the device to `_run`, also those that make a tensor."""

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        return _run(operation, given, named or {})


def _run(operation: Any, given: Any, named: dict[str, Any]) -> Any:
    inputs = [leaf for leaf in tree_leaves((given, named)) if isinstance(leaf, torch.Tensor)]
    played = [leaf for leaf in inputs if isinstance(leaf, _Played)]
    others = [leaf for leaf in inputs if not isinstance(leaf, _Played) and leaf.dim()]
    if played and others and str(operation) not in _BETWEEN_DEVICES:
        raise RuntimeError(f"{operation}: tensors of the CPU and of the played device")
    if str(operation) == "aten._local_scalar_dense.default":
        return operation(given[0].values if played else given[0])
    wanted = named.get("device")
    named = {**named, "device": torch.device("cpu")} if wanted is not None else named
    result = operation(*_values(given), **_values(named))
    is_on_cpu = not played if wanted is None else torch.device(wanted).type != "played"
    if str(operation) == "aten.copy_.default":
        is_on_cpu = not isinstance(given[0], _Played)
    own = {id(leaf.values): leaf for leaf in played}  # an operation in place returns its own input
    if is_on_cpu:
        return result
    return tree_map(lambda leaf: own.get(id(leaf), _Played(leaf)) if isinstance(leaf, torch.Tensor) else leaf, result)


def _values(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.values if isinstance(leaf, _Played) else leaf, tree)


class _Made(TorchFunctionMode):
    """Makes tensors of Python's and NumPy's values on the CPU, and moves them: torch makes them past other modes."""

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named = dict(named or {})
        device = named.get("device")
        if function in (torch.tensor, torch.as_tensor) and device is not None and "played" in str(device):
            return function(*given, **{**named, "device": "cpu"}).to(device)
        return function(*given, **named)


@contextmanager
def play() -> Iterator[None]:
    """Adds the device `played` to this process, once; it works inside the block."""
    backend_registration._setup_privateuseone_for_python_backend("played", _Backend())
    with _Device(), _Made():
        yield
