"""The launcher's `--demo`: motion made for it, and the devices that it trains on."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.request import Flags
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.store.places import cache_folder
from ds_rvqvae.gpu.nvml import Driver, NoDriverError
from ds_rvqvae.launch.hosts import warn
from ds_rvqvae.launch.preflight import Build, can_use_cards
from ds_rvqvae.launch.slots import cpu_slots, format_include


def motion_folder() -> Path:
    """Where the demo's motion is kept."""
    return cache_folder().absolute() / "demo_motion"


def with_demo(flags: Flags) -> Flags:
    """The flags with the demo's motion, and its devices where the user names none: all cards, or two CPU ranks."""
    if not flags.keys.get("data_path"):
        flags = flags.with_key("data_path", str(motion_folder()))
    if flags.options.chooses_devices:
        return flags
    environment = flags.environment
    if cpu_slots(environment) is None:
        with contextlib.suppress(NoDriverError), Driver() as driver:
            gpus = len(driver.cards())
            if gpus and can_use_cards(Build.read(), driver.cuda_version):
                return _on_slots(flags, gpus)
            if gpus:
                warn("the installed torch cannot use this machine's cards: the demo trains on CPU ranks")
    environment = {"LOCAL_SIZE": "2", **environment, "DS_ACCELERATOR": "cpu"}
    return replace(_on_slots(flags, int(environment["LOCAL_SIZE"])), environment=MappingProxyType(environment))


def _on_slots(flags: Flags, count: int) -> Flags:
    return replace(flags, options=replace(flags.options, include=format_include(range(count))))


def write_motion(config: DataConfig) -> None:
    """Writes the demo's motion, unless the run reads other motion or it is there already."""
    if config.path == str(motion_folder()):
        write_demo_motion(motion_folder())
