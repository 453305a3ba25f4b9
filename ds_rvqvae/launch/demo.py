"""The launcher's `--demo`: motion made for it, and what came out of training on it."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.request import Flags
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.store.places import cache_folder
from ds_rvqvae.errors import printable
from ds_rvqvae.files import read_json
from ds_rvqvae.gpu.nvml import Driver, NoDriverError
from ds_rvqvae.launch.hosts import warn
from ds_rvqvae.launch.preflight import Build, can_use_cards
from ds_rvqvae.launch.slots import cpu_slots, format_include
from ds_rvqvae.process.terminal import terminal_of
from ds_rvqvae.tokenizer.tables import score_table


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


def print_results(run: Path) -> None:
    """Prints the scores of the run's folder against those of the untrained model, its picture and where to look on."""
    evaluation = run / "eval"
    try:
        trained, untrained = (read_json(evaluation / name) for name in ("scores.json", "untrained.json"))
        print(score_table(trained, untrained, terminal_of()))
    except (OSError, ValueError, LookupError, TypeError) as error:
        warn(f"{evaluation}: the scores cannot be read: {error}; ds-rvqvae evaluate {run} takes them again")
    pictures = sorted(evaluation.glob("reconstruction*.png"), key=lambda picture: picture.stat().st_mtime)
    if pictures:
        print(printable(f"picture: {pictures[-1]}"))
    print(printable(f"run: {run}"))
    print(printable(f"tensorboard --logdir {run / 'tensorboard'} --host localhost"))
