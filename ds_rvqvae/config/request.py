"""A request for training, made from the command line once and never changed.

Only this module reads argparse's results. `Flags` is the command line as written; `Request` adds its profile, read,
overridden and validated. Everything that starts ranks, and each rank, takes one of them.
"""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ds_rvqvae.config.data import DESCRIBED
from ds_rvqvae.config.flags import PROFILE_FLAGS, add_training_flags, json_value
from ds_rvqvae.config.launch_flags import DEEPSPEED_SWITCHES, DEEPSPEED_VALUES, add_deepspeed_flags, add_launch_flags
from ds_rvqvae.config.parser import FlagParser
from ds_rvqvae.config.profile import PROFILE_FILE, REFERENCE_RANKS, Profile, load_profile
from ds_rvqvae.config.training import is_repository
from ds_rvqvae.errors import UserError
from ds_rvqvae.process.home import expanded

DATA_VARIABLE = "DS_RVQVAE_DATA"
"""Environment variable with the motion for runs that name none."""
TAG = "global_step"
"""Start of the name of a checkpoint's folder; its step follows."""


def is_tag(text: str) -> bool:
    """Returns whether `text` is the folder name of a checkpoint."""
    return text.startswith(TAG) and text.removeprefix(TAG).isdecimal()


def is_abandoned_tag(text: str) -> bool:
    """Returns whether `text` is the folder name of a checkpoint that was put aside: `global_step40-1f2e3d4c5b6a`."""
    return re.fullmatch(rf"{TAG}\d+-[0-9a-f]{{12}}(-\d+)?", text) is not None


@dataclass(frozen=True)
class Start:
    """How a run starts, from `--resume`.

    Attributes:
        kind: `new`, without the flag; `newest`, with the flag but no value: continue from the newest complete
            checkpoint, or start fresh if there is none; `checkpoint`: continue from the one named `tag`; `run`:
            continue the run in `folder`.
    """

    kind: Literal["new", "newest", "checkpoint", "run"] = "new"
    tag: str | None = None
    folder: Path | None = None

    @classmethod
    def of(cls, resume: bool | str) -> "Start":
        """Returns the start for the flag's value: False without the flag, True without a value, else a checkpoint's
        name or a folder."""
        if not isinstance(resume, str):
            return cls("newest" if resume else "new")
        if is_tag(resume) or is_abandoned_tag(resume):
            return cls("checkpoint", tag=resume)
        return cls("run", folder=Path(resume))

    @property
    def resumes(self) -> bool:
        """Whether the run may already exist."""
        return self.kind != "new"

    def arguments(self) -> list[str]:
        """Returns the start as words of a command line."""
        named = self.tag or self.folder
        return [] if not self.resumes else ["--resume"] if named is None else _flag("resume", str(named))


@dataclass(frozen=True)
class LaunchOptions:
    """The launcher's own options, beside the flags of training; see `add_launch_flags`."""

    demo: bool = False
    dry_run: bool = False
    include: str | None = None
    exclude: str | None = None
    num_gpus: int | None = None
    master_port: int | None = None
    require_idle: tuple[int, ...] | None = None
    """GPUs that must be idle; None: the flag is not given."""
    share_gpus: bool = False
    """Whether ranks may run on GPUs that other users also use."""
    hang_timeout: float = 0.0
    """Seconds without progress after which a run is ended; 0: never."""
    max_restarts: int = 0
    nccl: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Environment variables of NCCL that flags set."""
    hostfile: str | None = None
    num_nodes: int | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    launcher: str | None = None
    no_ssh: bool = False
    force_multi: bool = False
    handed_through: tuple[tuple[str, str | None], ...] = ()
    """All given flags of deepspeed's launcher, also those above, by name and value (None for a switch)."""

    @property
    def chooses_devices(self) -> bool:
        """Whether a flag chooses the devices or hosts of the ranks."""
        return bool(self.include or self.exclude or self.num_gpus or self.hostfile or self.num_nodes)


@dataclass(frozen=True)
class Flags:
    """A command line of training, before any profile is read.

    Attributes:
        profile: a file or a shipped profile's name; None: not given.
        out: the folder of runs.
        name: the name of the run's folder in `out`; None: chosen later.
        keys: values of the flags that set keys of the profile, by flag.
        overrides: the values of `--set`.
        options: the launcher's options; the defaults for `python -m ds_rvqvae.train`.
        environment: this process's variables when the command line was read.
    """

    profile: str | None
    out: Path
    name: str | None
    start: Start
    keys: Mapping[str, str]
    overrides: tuple[str, ...]
    options: LaunchOptions
    environment: Mapping[str, str]

    @property
    def parts(self) -> tuple[str, ...]:
        """The body parts that `--body_part` names; empty if the flag is not given."""
        text = self.keys.get("body_part")
        return tuple(text.split(",")) if text else ()

    @property
    def asked(self) -> frozenset[str]:
        """The keys, by their paths, that the command line sets."""
        keys = {PROFILE_FLAGS[flag] for flag in self.keys}
        return frozenset(keys | {override.partition("=")[0].strip() for override in self.overrides})

    def with_key(self, flag: str, text: str) -> "Flags":
        """Returns a copy of these flags in which a flag that sets a key of the profile is added or changed."""
        return replace(self, keys=MappingProxyType({**self.keys, flag: text}))

    def request(self) -> "Request":
        """Reads the profile that the flags ask for: the file, overridden by the flags, overridden by `--set`.

        Without `--profile` the file is that of the run that `--resume` names, else baseline. Without `--data_path` and
        without a path in the profile, motion comes from the environment variable DS_RVQVAE_DATA.

        Raises:
            UserError: several body parts are given, but a profile has only one; or as `load_profile` raises.
        """
        if len(self.parts) > 1:
            raise UserError(
                f"--body_part {self.keys['body_part']}: a run trains one body part; launch/train_8x4090.sh trains "
                "several in turn"
            )
        source = self._source()
        profile = load_profile(source, [*self._overrides(), *self.overrides])
        training, data = profile.rvqvae.training, profile.rvqvae.data
        changed: dict[str, Any] = {}
        if training.reference_batch is None:
            # From the file without flags: the learning rate is scaled by the change that `--batch_size` makes. It is
            # always saved, so that a resumed run with `--scale_lr` knows it.
            changed["rvqvae.training.reference_batch"] = load_profile(source).global_batch(REFERENCE_RANKS)
        path = data.path or self.environment.get(DATA_VARIABLE) or None
        files = {"data.path": path, "data.mean_file": data.mean_file, "data.std_file": data.std_file}
        if training.init_from is not None and not is_repository(training.init_from):
            files["training.init_from"] = training.init_from
        files |= {f"data.{key}": file for key in DESCRIBED if isinstance(file := getattr(data, key), str)}
        changed |= {f"rvqvae.{key}": None if file is None else _absolute(file) for key, file in files.items()}
        return Request(self, source, profile.with_values(changed))

    def _source(self) -> str:
        if self.profile is not None:
            return self.profile
        if self.start.folder is not None and (self.start.folder / PROFILE_FILE).is_file():
            return str(self.start.folder / PROFILE_FILE)
        return "baseline"

    def _overrides(self) -> list[str]:
        given = [(flag, path) for flag, path in PROFILE_FLAGS.items() if flag in self.keys]
        return [f"{path}={json_value(flag, self.keys[flag])}" for flag, path in given]

    def arguments(self) -> list[str]:
        """Returns the flags of training as a command line for `ds_rvqvae.train`."""
        line = [] if self.profile is None else _flag("profile", self.profile)
        line += _flag("out", str(self.out))
        line += [] if self.name is None else _flag("name", self.name)
        line += self.start.arguments()
        line += [word for override in self.overrides for word in _flag("set", override)]
        return line + [word for flag in PROFILE_FLAGS if flag in self.keys for word in _flag(flag, self.keys[flag])]


@dataclass(frozen=True)
class Request:
    """A requested run: its flags and its profile.

    Attributes:
        source: the profile's file or shipped name.
        profile: the profile with all changes by flags and environment; paths are absolute.
        begun: whether it continues from a checkpoint.
        of_body: whether it is one of the runs of several body parts that share one command line.
    """

    flags: Flags
    source: str
    profile: Profile
    begun: bool = False
    of_body: bool = False

    @property
    def start(self) -> Start:
        return self.flags.start

    @property
    def options(self) -> LaunchOptions:
        return self.flags.options

    @property
    def asked(self) -> frozenset[str]:
        """The keys, by their paths, that the command line sets and that have to fit the motion.

        A resumed run keeps its body part: versions up to 0.5 accepted one for motion that has no parts.
        """
        return self.flags.asked - {"rvqvae.data.body_part"} if self.begun else self.flags.asked

    @cached_property
    def resolved(self) -> Flags:
        """The flags with the profile and the motion's path filled in."""
        flags = replace(self.flags, profile=self.source)
        path = self.profile.rvqvae.data.path
        return flags if path is None else flags.with_key("data_path", path)


def read_training_flags(argv: Sequence[str] | None = None, prog: str = "python -m ds_rvqvae.train") -> Flags:
    """Reads the command line of one rank; an error is one line on stderr and exit status 2."""
    parser = FlagParser(
        prog=prog,
        usage="%(prog)s --data_path DATA [flags]",
        description="Runs one rank of a training; deepspeed's launcher starts it. Defaults are in [brackets]; for "
        "keys of a profile they are baseline's.",
    )
    add_training_flags(parser)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return flags_of(parser.parse_args(argv))


def read_launch_flags(argv: Sequence[str]) -> Flags:
    """Reads the launcher's command line; an error is one line on stderr and exit status 2.

    Raises:
        UserError: as `launch_flags_of` raises.
    """
    parser = FlagParser(prog="bash launch/train_8x4090.sh", fill=fill_launch_parser)
    return launch_flags_of(parser.parse_args(argv))


def fill_launch_parser(parser: FlagParser) -> None:
    """Adds the launcher's flags, and the description and examples of its help."""
    parser.usage = "%(prog)s --data_path DATA [flags]"
    parser.description = (
        "Checks a training run, starts it on the GPUs and supervises it. Defaults are in [brackets]; for keys of a "
        "profile they are baseline's."
    )
    parser.epilog = (
        "Exit status: 0 done, 2 bad input or no such GPU, 3 a GPU is not idle or another user's, 4 no NVIDIA driver, "
        "70 a rank died or hung, 75 stopped by a signal (continue with --resume). SIGUSR1 saves a checkpoint and "
        "training goes on."
    )
    parser.examples = (
        ("--demo", "a first run, on any machine"),
        ("--data_path /data/BEAT2 --body_part upper", "baseline on GPUs 1 to 7"),
        ("--data_path /data/bvh --include localhost:0 --batch_size 32", "on one GPU"),
        ("--data_path /data/BEAT2 --body_part upper,hands,lower_trans", "all parts of a body, in turn"),
        ("--resume runs/baseline-BEAT2-upper --total_iter 400000", "continue a run"),
    )
    add_training_flags(parser)
    add_launch_flags(parser)
    add_deepspeed_flags(parser)


def launch_flags_of(args: argparse.Namespace) -> Flags:
    """Returns the flags that a parser of the launcher's flags has read.

    Raises:
        UserError: `--require_idle` names no GPUs.
    """
    if args.demo and args.profile is None:
        args.profile = "demo"
    nccl = {
        "NCCL_DEBUG": args.nccl_debug,
        "NCCL_SOCKET_IFNAME": args.nccl_socket_ifname,
        "NCCL_IB_DISABLE": "1" if args.nccl_ib_disable else None,
        "NCCL_P2P_DISABLE": "1" if args.nccl_p2p_disable else None,
    }
    values = [(name, getattr(args, name)) for name in DEEPSPEED_VALUES if getattr(args, name) is not None]
    switches = [name for name in DEEPSPEED_SWITCHES if getattr(args, name)]
    own = (
        *("demo", "dry_run", "include", "exclude", "num_gpus", "master_port", "hang_timeout", "max_restarts"),
        *("share_gpus", "hostfile", "num_nodes", "node_rank", "master_addr", "launcher", "no_ssh", "force_multi"),
    )
    options = LaunchOptions(
        **{name: getattr(args, name) for name in own},
        require_idle=None if args.require_idle is None else _indices(args.require_idle),
        nccl=MappingProxyType({name: value for name, value in nccl.items() if value is not None}),
        handed_through=(*((name, str(value)) for name, value in values), *((name, None) for name in switches)),
    )
    return flags_of(args, options)


def flags_of(args: argparse.Namespace, options: LaunchOptions | None = None) -> Flags:
    """Returns the flags that a parser with `add_training_flags` has read."""
    given = {flag: getattr(args, flag) for flag in PROFILE_FLAGS if getattr(args, flag) is not None}
    return Flags(
        profile=args.profile,
        out=args.out,
        name=args.name,
        start=Start.of(args.resume),
        keys=MappingProxyType(given),
        overrides=tuple(args.set),
        options=options or LaunchOptions(),
        environment=MappingProxyType(dict(os.environ)),
    )


def _indices(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise UserError(f"--require_idle {text}: give GPU numbers, for example 0,1")
    return tuple(int(part) for part in text.split(","))


def _absolute(path: str) -> str:
    return str(expanded(path).absolute())


def _flag(name: str, text: str) -> list[str]:
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
