"""Profile and flags into a checked deepspeed command, run under supervision."""

import argparse
import contextlib
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ds_rvqvae.config.flags import FlagParser, add_training_flags, body_parts_of, profile_from_flags, training_arguments
from ds_rvqvae.data.dataset import open_training_data
from ds_rvqvae.errors import ExitStatus, UserError, exit_status_of
from ds_rvqvae.gpu.nvml import Driver, NoDriverError
from ds_rvqvae.gpu.sizes import parameter_count
from ds_rvqvae.launch import demo
from ds_rvqvae.launch.body import Body, CheckedRun, check_no_body
from ds_rvqvae.launch.hosts import Ranks, check_cards, free_port, place_ranks, warn
from ds_rvqvae.launch.preflight import Build, Finding, Preflight, can_use_cards, check_machine
from ds_rvqvae.launch.restarts import run_with_restarts
from ds_rvqvae.launch.slots import DEFAULT_INCLUDE, cores, cpu_slots, format_include
from ds_rvqvae.launch.supervise import Job, Signals, signals_noted
from ds_rvqvae.runs.checkpoints import checkpoint_bytes
from ds_rvqvae.runs.folder import OUTCOME_VARIABLE, check_out_folder, choose_run_folder
from ds_rvqvae.runs.heartbeat import HEARTBEAT_VARIABLE, Watch
from ds_rvqvae.runs.init_from import find_initial, take_start
from ds_rvqvae.runs.start import find_resume, take_batch

HANG_TIMEOUT = 120.0
SHORTEST_HANG_TIMEOUT = 5.0
"""Ranks give a sign of life every second, later where the machine is busy."""

DEEPSPEED_VALUES = (
    "hostfile", "num_nodes", "master_addr", "node_rank", "launcher", "launcher_args", "enable_each_rank_log",
    "bind_core_list", "ssh_port", "venv_script", "log_level",
)  # fmt: skip
DEEPSPEED_SWITCHES = (
    "no_ssh", "no_ssh_check", "force_multi", "save_pid", "bind_cores_to_rank", "no_local_rank", "quiet",
)  # fmt: skip
"""deepspeed's own flags, handed through: those that take a value, and those that do not."""
_SHORT = {"hostfile": ["-H"], "quiet": ["-q"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `launch/train_8x4090.py` and returns its exit status."""
    return exit_status_of(lambda: _launch(sys.argv[1:] if argv is None else list(argv)))


def _launch(argv: list[str]) -> int:
    parser = _parser()
    if "--demo" in argv:
        parser.set_defaults(profile="demo")
    args = parser.parse_args(argv)
    environment = dict(os.environ)
    if args.demo:
        _choose_demo(args, environment)
    if len(body_parts_of(args)) > 1:
        body = Body.of(args)
        checked = [_check(each, environment) for each in body.flags_by_part()]
        body.check([run.data for run, _ in checked], sum(run.disk_bytes for run, _ in checked))
    else:
        check_no_body(args)
        body, checked = None, [_check(args, environment)]
    if args.dry_run:
        _show([(run, report) for run, report in checked if body is None or not run.done], environment)
        return ExitStatus.DONE
    runs = [run for run, _ in checked]
    with signals_noted() as signals:
        if body is None:
            return _train(runs[0], environment, signals)
        return body.train(runs, lambda run: _train(run, environment, signals), signals)


def _show(checked: list[tuple[CheckedRun, Preflight | None]], environment: dict[str, str]) -> None:
    """Prints each run's command, and on stderr its plan, what the checks found and the ranks' own variables."""
    shown: set[Finding] = set()
    for run, report in checked:
        if report is None:
            print(f"{run.folder.name}: nothing is left to train", file=sys.stderr)
            continue
        # Most of what is found is the same for every part of a body.
        new = [finding for finding in report.findings if finding not in shown]
        shown.update(new)
        lines = [f"plan of {run.folder.name}", *(f"  {line}" for line in report.plan_lines())]
        lines += ["checks", *(f"  {finding}" for finding in new)]
        print("\n".join(lines), file=sys.stderr)
    for run, _ in checked[:1]:
        added = _rank_environment(run.args, run.ranks, environment)
        print(f"environment: {shlex.join(f'{name}={value}' for name, value in added.items())}", file=sys.stderr)
    for run, _ in checked:
        print(shlex.join(_command(run.args, run.ranks)))


def _train(run: CheckedRun, environment: dict[str, str], signals: Signals) -> ExitStatus:
    """Trains one run to its end."""
    args = run.args
    variables = {**environment, **_rank_environment(args, run.ranks, environment)}
    with tempfile.TemporaryDirectory(prefix="ds_rvqvae-") as temporary:
        make_job = _job_maker(args, run.ranks, variables, Path(temporary))
        status = run_with_restarts(make_job, args.max_restarts, signals)
    if args.demo and status == ExitStatus.DONE:
        demo.print_results(run.folder)
    return status


def _job_maker(
    args: argparse.Namespace, ranks: Ranks, environment: dict[str, str], temporary: Path
) -> Callable[[int], Job]:
    """Gives the function that makes the job for start 0 and for restarts 1, 2, …"""

    def make_job(restart: int) -> Job:
        again, at = args, ranks
        if restart:
            again = argparse.Namespace(**{**vars(args), "resume": True})
        if args.master_port is None and len(ranks.hosts) == 1:
            # A restart, or the next part of a body, may come long after the check.
            at = replace(ranks, port=free_port(None, here=True))
        heartbeats = temporary / f"heartbeats-{restart}"
        heartbeats.mkdir()
        outcome = temporary / f"outcome-{restart}"
        variables = {OUTCOME_VARIABLE: str(outcome)}
        watch = None
        # With --force_multi even ranks of this machine are started by ssh, without these variables.
        if ranks.local is not None and not args.force_multi:
            variables[HEARTBEAT_VARIABLE] = str(heartbeats)
            watch = Watch(heartbeats, len(ranks.local), args.hang_timeout)
        return Job(_command(again, at), {**environment, **variables}, outcome if ranks.first_here else None, watch)

    return make_job


def _parser() -> FlagParser:
    parser = FlagParser(
        prog="train_8x4090",
        description="Checks a training run, starts it under the deepspeed launcher and supervises it.",
        epilog="Exit status: 0 done, 2 bad input or no such card, 3 a card is not idle, 4 no NVIDIA driver, "
        "70 a rank died or hung, 75 stopped by a signal (--resume goes on). SIGUSR1 saves and goes on.",
    )
    start = parser.add_argument_group("start")
    start.add_argument("--demo", action="store_true", help="train on motion made for it, on what devices there are")
    start.add_argument(
        "--dry_run", action="store_true", help="check everything, print plan, checks and the deepspeed command"
    )
    start.add_argument(
        "-i", "--include", metavar="HOST:SLOTS", help=f"GPUs (default: {DEFAULT_INCLUDE}, or all of a hostfile's)"
    )
    start.add_argument("-e", "--exclude", metavar="HOST:SLOTS", help="take all GPUs but these")
    start.add_argument(
        "--num_gpus", "--num_accelerators", type=int, metavar="N", help="take GPUs 0 to N-1 (of every host)"
    )
    start.add_argument("--master_port", type=int, metavar="PORT", help="default: a port that is free")
    start.add_argument(
        "--require_idle",
        nargs="?",
        const="0",
        metavar="IDS",
        help="refuse to start unless these GPUs are idle (bare: 0)",
    )
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--hang_timeout",
        type=_hang_timeout,
        default=HANG_TIMEOUT,
        metavar="SECONDS",
        help=f"end a run whose ranks give no sign of life or finish no step for so long; 0 never does "
        f"(default: {HANG_TIMEOUT:.0f})",
    )
    faults.add_argument(
        "--max_restarts",
        type=_restarts,
        default=0,
        metavar="N",
        help="start a run in which a rank died or hung again from the newest checkpoint, N times at most (default: 0)",
    )
    nccl = parser.add_argument_group("NCCL")
    nccl.add_argument(
        "--nccl_debug", nargs="?", const="INFO", choices=("VERSION", "WARN", "INFO", "TRACE"), help="bare: INFO"
    )
    nccl.add_argument("--nccl_socket_ifname", nargs="?", const="^docker0,lo", metavar="NAMES", help="bare: ^docker0,lo")
    nccl.add_argument("--nccl_ib_disable", action="store_true", help="no InfiniBand")
    nccl.add_argument("--nccl_p2p_disable", action="store_true", help="no direct transfers between cards")
    add_training_flags(parser)
    handed_on = parser.add_argument_group("deepspeed's launcher", "handed through; `deepspeed --help` explains them")
    for name in DEEPSPEED_VALUES:
        handed_on.add_argument(
            *_SHORT.get(name, []), f"--{name}", type=int if name in ("num_nodes", "node_rank") else str, metavar="X"
        )
    for name in DEEPSPEED_SWITCHES:
        handed_on.add_argument(*_SHORT.get(name, []), f"--{name}", action="store_true")
    return parser


def _hang_timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if seconds != 0 and not SHORTEST_HANG_TIMEOUT <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give {SHORTEST_HANG_TIMEOUT:.0f} seconds or more, or 0")
    return seconds


def _restarts(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of restarts, 0 or more")
    return int(text)


def _choose_demo(args: argparse.Namespace, environment: dict[str, str]) -> None:
    """Sets the demo's motion, and its devices where the user names none: all cards, or two CPU ranks."""
    args.data_path = args.data_path or str(demo.motion_folder())
    if args.include or args.exclude or args.num_gpus or args.hostfile or args.num_nodes:
        return
    slots = cpu_slots(environment)
    if slots is None:
        with contextlib.suppress(NoDriverError), Driver() as driver:
            gpus = len(driver.cards())
            if gpus and can_use_cards(Build.read(), driver.cuda_version):
                args.include = format_include(range(gpus))
                return
            if gpus:
                warn("the installed torch cannot use this machine's cards: the demo trains on CPU ranks")
    environment["DS_ACCELERATOR"] = "cpu"
    environment.setdefault("LOCAL_SIZE", "2")
    args.include = format_include(range(int(environment["LOCAL_SIZE"])))


def _check(args: argparse.Namespace, environment: dict[str, str]) -> tuple[CheckedRun, Preflight | None]:
    """Everything that can be checked before a rank starts: what is quick first, then the data, the machine last.

    Gives no report on the machine where nothing is left to train.

    Raises:
        UserError: with the statuses in the order 2, 4, 3.
    """
    profile = profile_from_flags(args)
    config = profile.rvqvae
    args.data_path = config.data.path
    if args.demo:
        demo.write_motion(config.data)
    folder = choose_run_folder(args.out, args.name, args.profile, config.data.body_part, args.resume)
    check_out_folder(folder)
    idle = _indices(args.require_idle) if args.require_idle is not None else []
    ranks = place_ranks(args, environment)
    if ranks.world_size and not args.resume:
        profile.check_world_size(ranks.world_size)
    find_initial(folder, profile, args.resume)
    data = open_training_data(profile)
    windows = data.count_training_windows()
    initial = take_start(folder, profile, data, args.resume)
    kept = 1 if args.resume else config.training.keep_checkpoints + 1
    averaged = config.training.ema_decay is not None
    disk_bytes = kept * checkpoint_bytes(parameter_count(data.in_features, config.model), averaged)
    check_out_folder(folder, disk_bytes)
    cards = None
    if ranks.local is not None and not ranks.cpu:
        ranks, cards = check_cards(ranks, environment)
        if not args.resume:
            profile.check_world_size(ranks.world_size)
    elif idle:
        warn("--require_idle: no card of this machine takes part, so none is looked at")
    done, planned = False, profile.model_copy()
    if args.resume:
        fingerprint = data.fingerprint()
        resume = find_resume(folder, profile, ranks.world_size, fingerprint, thorough=False, tag=args.resume)
        done = resume.step() >= config.training.total_iter
        take_batch(planned, resume.fitted)
        take_batch(planned, resume.kept)
    report = None
    if not done:
        report = check_machine(planned, data.in_features, ranks, cards, idle=idle, dry_run=args.dry_run)
    if cards is not None:
        cards.require_idle(idle)
    found = [finding.text for finding in report.findings if finding.warning] if report and not args.dry_run else []
    batches = profile.warnings(ranks.world_size, windows)
    for warning in [*batches, *data.warnings(), *(initial.warnings(data) if initial else []), *found]:
        warn(warning)
    if args.demo or args.max_restarts:
        # The ranks would choose the same; said here, it is known where the scores will be, and to restarts.
        args.out, args.name = folder.absolute().parent, folder.absolute().name
    return CheckedRun(args, folder, ranks, data, disk_bytes, done), report


def _indices(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise UserError(f"--require_idle {text}: give GPU numbers, for example 0,1")
    return [int(part) for part in text.split(",")]


def _command(args: argparse.Namespace, ranks: Ranks) -> list[str]:
    script = Path(sys.executable).parent / "deepspeed"
    command = [str(script)] if script.is_file() else [sys.executable, "-m", "deepspeed.launcher.runner"]
    if ranks.include:
        command += ["--include", ranks.include]
    command += ["--master_port", str(ranks.port)]
    for name in DEEPSPEED_VALUES:
        value = getattr(args, name)
        if name == "num_nodes" and ranks.include:
            continue  # deepspeed takes one of the two
        if name == "log_level":
            value = value or "critical"  # its lines on every variable and process drown the trainer's
        if value is not None:
            command += [f"--{name}={value}"]
    command += [f"--{name}" for name in DEEPSPEED_SWITCHES if getattr(args, name)]
    return [*command, "--module", "ds_rvqvae.train", *training_arguments(args)]


def _rank_environment(args: argparse.Namespace, ranks: Ranks, environment: dict[str, str]) -> dict[str, str]:
    """The variables that ranks get beside those of this process."""
    added = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as NVML counts the cards
    if ranks.cpu:
        added = {name: environment[name] for name in ("DS_ACCELERATOR", "LOCAL_SIZE") if name in environment}
        # Ranks that each take all cores run ten times slower than one after the other.
        added["OMP_NUM_THREADS"] = str(max(1, cores() // len(ranks.local or [0])))
    flags = {
        "NCCL_DEBUG": args.nccl_debug,
        "NCCL_SOCKET_IFNAME": args.nccl_socket_ifname,
        "NCCL_IB_DISABLE": "1" if args.nccl_ib_disable else None,
        "NCCL_P2P_DISABLE": "1" if args.nccl_p2p_disable else None,
    }
    added |= {name: value for name, value in flags.items() if value is not None}
    if "OMP_NUM_THREADS" in environment:
        added.pop("OMP_NUM_THREADS", None)
    return added
