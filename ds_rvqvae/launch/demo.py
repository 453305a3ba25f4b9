"""The launcher's `--demo`: its motion, and the devices that it trains on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.request import Flags
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.store.places import cache_folder
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.host import VISIBLE, hides_all_gpus, shown_visible
from ds_rvqvae.launch.hosts import note, warn
from ds_rvqvae.launch.slots import Cards, cpu_slots, format_include
from ds_rvqvae.process.torch_build import Build


def motion_folder() -> Path:
    """Returns the folder of the demo motion."""
    return cache_folder().absolute() / "demo_motion"


def with_demo(flags: Flags) -> Flags:
    """Returns the flags with the demo motion, and with devices if the user names none: all GPUs, or two CPU ranks."""
    if not flags.keys.get("data_path"):
        flags = flags.with_key("data_path", str(motion_folder()))
    if flags.options.chooses_devices:
        return flags
    environment = flags.environment
    if cpu_slots(environment) is None:
        found = _on_cards(flags)
        if found is not None:
            return found
    environment = {"LOCAL_SIZE": "2", **environment, "DS_ACCELERATOR": "cpu"}
    on_cpu = _with_include(flags, range(int(environment["LOCAL_SIZE"])))
    return replace(on_cpu, environment=MappingProxyType(environment))


def _on_cards(flags: Flags) -> Flags | None:
    """Returns the flags with the GPUs that CUDA_VISIBLE_DEVICES names, or else all GPUs that no other user computes on;
    None if there is no GPU for the demo."""
    try:
        cards = Cards.read()
    except UserError as error:
        if error.status != ExitStatus.NO_DRIVER:
            raise
        return None
    gpus = [gpu.index for gpu in cards.gpus]
    visible = flags.environment.get(VISIBLE)
    shares = flags.options.share_gpus
    free = [gpu.index for gpu in cards.gpus if not gpu.error and (shares or not cards.others(gpu.index))]
    if not gpus:
        return None
    if visible is not None and hides_all_gpus(visible):
        note(f"{shown_visible(visible)} hides every GPU: the demo trains on CPU ranks")
    elif not (build := Build.read()).can_use_cards(serves := cards.snapshot.cuda_version):
        why = f"is built for CUDA {build.cuda}, the driver supports {serves}: {build.way_on(serves)}"
        why = why if build.cuda else "is built without CUDA"
        warn(f"the demo trains on CPU ranks, because torch {build.version} cannot use this machine's GPUs: it {why}")
    elif visible is not None:
        return flags  # the checks of the run resolve its GPUs
    elif free:
        if left := [str(index) for index in gpus if index not in free]:
            note(f"GPU {', '.join(left)} left out: other users compute there, or it cannot be read")
        return _with_include(flags, free)
    else:
        warn("other users compute on every GPU: the demo trains on CPU ranks, or on GPUs with --share_gpus")
    return None


def _with_include(flags: Flags, slots: Sequence[int]) -> Flags:
    return replace(flags, options=replace(flags.options, include=format_include(slots)))


def write_motion(config: DataConfig) -> None:
    """Writes the demo motion, unless it exists or the run reads other motion."""
    if config.path == str(motion_folder()):
        write_demo_motion(motion_folder())
