"""Plays CUDA in every process that has this folder in its PYTHONPATH: torch reports the GPUs of the NVML stand-in, and
DeepSpeed takes its CUDA accelerator, whose tensors lie on the CPU and whose ranks talk over gloo.

What DeepSpeed asks its accelerator about compilers, operations and NVML is not played: it is what the CUDA accelerator
itself answers.
"""

import importlib.machinery
import os
import sys
from types import ModuleType, SimpleNamespace

CUDA = "12.4"
OWN = ("__init__", "_init_pynvml", "_get_nvml_gpu_id", "available_memory", "is_available", "current_device")
"""Methods that the CUDA accelerator keeps, besides those that build or choose operations or set variables."""


def _count() -> int:
    import pynvml

    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetCount())


def _torch(torch: ModuleType) -> None:
    torch.version.cuda = CUDA
    torch.backends.cuda.is_built = lambda: True
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    played = {
        "is_available": lambda: True,
        "device_count": _count,
        "init": lambda: None,
        "current_device": lambda: local_rank,
        "get_device_capability": lambda device=None: (8, 9),
        "get_device_properties": lambda device=None: SimpleNamespace(major=8, minor=9, total_memory=1 << 30),
    }
    for name, function in played.items():
        setattr(torch.cuda, name, function)


def _accelerator(module: ModuleType) -> None:
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    kind = module.CUDA_Accelerator
    for name, member in vars(CPU_Accelerator).items():
        asks = ("op_builder", "visible_devices", "class_dict", "triton", "export", "build_extension")
        if name not in OWN and not any(word in name for word in asks):
            setattr(kind, name, member)
    kind.communication_backend_name = lambda self: "gloo"
    kind.device_count = lambda self: _count()


def _build(module: ModuleType) -> None:
    module.Build.read = classmethod(lambda kind: kind("2.13.0", CUDA))


PLAYED = {
    "torch": _torch,
    "deepspeed.accelerator.cuda_accelerator": _accelerator,
    "ds_rvqvae.process.torch_build": _build,
}


class _Finder:
    """Finds the modules to be played, and changes them as soon as they are imported."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> object:
        change = PLAYED.pop(name, None)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder)
