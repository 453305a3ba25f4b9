"""`ds-rvqvae bench`: time the training of a profile on this machine, and compare it with a plain PyTorch loop."""

import argparse
import os
from pathlib import Path
from typing import Any

from ds_rvqvae.cli.common import add_json_flag, count, print_result
from ds_rvqvae.errors import ExitStatus, UserError, say
from ds_rvqvae.process.signals import end_now
from ds_rvqvae.process.tables import Column, Table
from ds_rvqvae.process.terminal import PLAIN, Block, Line, Terminal
from ds_rvqvae.text import gibibytes


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    parser.add_argument(
        "profile",
        nargs="?",
        default="baseline",
        metavar="PROFILE",
        help="shipped name or file (default: baseline)",
    )
    parser.add_argument("--data_path", metavar="PATH", help="motion to train on (default: demo motion)")
    parser.add_argument("--body_part", metavar="PART", help="body part (default: the profile's)")
    parser.add_argument("--compile", action="store_true", help="also the compiled step, and its losses")
    parser.add_argument("--host", action="store_true", help="host time: same layers, almost no arithmetic")
    parser.add_argument("--rounds", type=count, metavar="N", help="steps of each variant (default: 7, with --host 40)")
    parser.add_argument(
        "--checkpointing", action="store_true", help="with activation checkpointing (not in the plain loops)"
    )
    parser.add_argument("--no_plain", action="store_true", help="without the plain loops")
    parser.add_argument("--trace", type=Path, metavar="FILE.json", help="also write two steps as a Chrome trace")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a key; repeatable")
    add_json_flag(parser)
    parser.set_defaults(verb=_bench)


def _bench(args: argparse.Namespace) -> int:
    from ds_rvqvae.runs.variables import settle_rank

    settle_rank(os.environ)
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        return _measure(args, speaks)
    except UserError as error:
        if speaks:
            raise
        return error.status  # rank 0 refuses for the same reason


def _measure(args: argparse.Namespace, speaks: bool) -> int:
    from ds_rvqvae.config.profile import load_profile
    from ds_rvqvae.runs.variables import settle_device

    if args.host and args.trace is not None:
        raise UserError("--trace: --host writes no trace; leave one of the two out")
    if args.host and args.compile:
        raise UserError(
            "--compile: not with --host, which times the compiled step by --set rvqvae.training.compile=true"
        )
    # The operations of --host are counted with the profile's own setting.
    own = [] if args.host else [f"rvqvae.training.gradient_checkpointing={str(args.checkpointing).lower()}"]
    profile = load_profile(args.profile, [*own, *args.set])
    if args.compile and profile.rvqvae.training.compile:
        raise UserError("--compile: the step is timed with and without it; leave out rvqvae.training.compile=true")
    part = args.body_part or profile.rvqvae.data.body_part
    profile = profile.with_values({"rvqvae.data.path": args.data_path or None, "rvqvae.data.body_part": part})
    if args.trace is not None and not args.trace.absolute().parent.is_dir():
        raise UserError(f"--trace {args.trace}: {args.trace.absolute().parent} is not a folder")
    on_cpu = settle_device(os.environ)
    if on_cpu and speaks:
        say(on_cpu)

    asked = {override.partition("=")[0].strip() for override in args.set}
    asked |= {"rvqvae.data.body_part"} if args.body_part else set()
    if args.compile:
        from ds_rvqvae.process.compiling import check_compiler

        check_compiler(os.environ.get("DS_ACCELERATOR") == "cpu", "--compile")
    plain, trace = not args.no_plain, args.trace if speaks else None
    if args.host:
        from ds_rvqvae.bench.host import ROUNDS, measure_host

        rounds = args.rounds or ROUNDS
        result = measure_host(profile, rounds, plain, args.checkpointing, progress=speaks, asked=asked)
    else:
        from ds_rvqvae.bench.step import measure_step

        rounds = args.rounds or 7
        result = measure_step(profile, rounds, plain, trace, progress=speaks, asked=asked)
        if args.compile:
            from ds_rvqvae.bench.compiled import measure_compiled

            result["compiled"] = measure_compiled(profile, rounds, progress=speaks, asked=asked)
    if speaks:
        print_result(args, result, host_blocks(result) if args.host else bench_blocks(result))
    if result["world_size"] > 1:
        end_now(ExitStatus.DONE)  # gloo's threads may abort or block an orderly end
    return ExitStatus.DONE


def bench_table(result: dict[str, Any], terminal: Terminal = PLAIN) -> str:
    """Returns the measurements as text."""
    return terminal.text(bench_blocks(result))


def bench_blocks(result: dict[str, Any]) -> list[Block]:
    """Returns the measurements as lines and tables."""
    from ds_rvqvae.host import bf16_arithmetic_text

    step = result["step_s"]
    lines: list[Block] = [
        _machine(result),
        *([] if result["cpu_bf16_native"] is None else [bf16_arithmetic_text()]),
        _measured(result),
        "",
        ("seconds per step, median (minimum to maximum)", "title"),
        _ways(result),
        "",
    ]
    if result["parts_s"]:
        total = sum(result["parts_s"].values())
        rows = [
            [name, f"{seconds:.4f}", f"{100 * seconds / total:.1f} %"]
            for name, seconds in sorted(result["parts_s"].items(), key=lambda part: -part[1])
        ]
        columns = [Column(left=True, shrinks=True), Column(), Column()]
        lines += [
            ("time per piece of a step, one after another", "title"),
            Table(columns, rows, indent=2, headed=False),
            "",
        ]
    lines += [
        f"convolutions {100 * result['conv_share']:.1f} % of a step; waiting for data "
        f"{100 * result['data_wait_share']:.2f} %; added by engine and loop to the bare model: "
        f"{100 * result['added_share']:.1f} %",
        f"{result['flops'] / 1e9:,.0f} GFLOP per step, {100 * result['mfu']:.1f} % of the speed of large matrix "
        "products "
        f"({result['matmul_flops'] / 1e9:,.0f} GFLOP/s)",
        f"{result['kernels']:,} kernels per step; peak memory {gibibytes(result['peak_memory_bytes'])}",
    ]
    if "compiled" in result:
        lines += _compiled_lines(result["compiled"])
    if result["device_busy_share"] is not None:
        lines.append(f"the GPU is busy {100 * result['device_busy_share']:.1f} % of a step")
    windows = result["micro_batch"] * result["accumulation"] / step
    return [*lines, f"{windows:,.1f} windows per second and rank"]


def _machine(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return f"{result['device']}; {versions}"


def _measured(result: dict[str, Any]) -> str:
    """Returns the measured model and settings as a line."""
    return (
        f"{result['parameters']:,} parameters, {result['dtype']}, batch {result['micro_batch']} x "
        f"{result['window_size']} frames x {result['in_features']} columns, {result['world_size']} rank(s), "
        f"activation checkpointing {'on' if result['activation_checkpointing'] else 'off'}"
        + (", compiled" if result["compile"] else "")
    )


_WAYS = {
    "step": "ds_rvqvae, through DeepSpeed",
    "model": "the model alone, forward and backward",
    "plain_fp32_step": "plain PyTorch loop, fp32",
    "plain_bf16_step": "plain PyTorch loop, bf16 autocast",
}


def _ways(result: dict[str, Any]) -> Table:
    rows: list[list[Line]] = []
    for name, words in _WAYS.items():
        if f"{name}_s" in result:
            least, most = result["spread_s"][name]
            text = f"({least:.4f} to {most:.4f})"
            if name.startswith("plain"):
                text += f", {result[f'{name}_s'] / result['step_s']:.2f} times ours"
            rows.append([words, f"{result[f'{name}_s']:.4f}", text])
    if "plain_fp32_step_s" in result and result["cpu_bf16_native"] is False:
        rows.append(
            [_WAYS["plain_bf16_step"], "", "left out: PyTorch's own bf16 takes up to ten times as long as fp32"]
        )
    if "checkpointed_step_s" in result:
        rows.append(["with activation checkpointing", f"{result['checkpointed_step_s']:.4f}", ""])
    return Table([Column(left=True), Column(), Column(wraps=True)], rows, indent=2, headed=False)


def _compiled_lines(compiled: dict[str, Any]) -> list[Block]:
    """Returns the measurements of `--compile` as lines."""
    return [
        f"compiled (mode {compiled['mode']}): {compiled['step_s']:.4f} s per step, not compiled "
        f"{compiled['uncompiled_step_s']:.4f} s, in turns; the first step took {compiled['first_step_s']:.1f} s",
        f"{compiled['graphs']} graphs, {compiled['graph_breaks']} graph break(s), {compiled['recompilations']} "
        "recompilation(s)",
        f"in fp32 without dropout, losses of {len(compiled['losses']['compiled'])} steps differ by "
        f"{compiled['loss_difference']:.1e} at most, relative",
    ]


_HOST_WAYS = {
    "host_step": "ds_rvqvae, through DeepSpeed",
    "host_plain_bf16": "plain PyTorch loop, bf16 autocast",
    "host_ddp_bf16": "plain loop, DistributedDataParallel",
}


def host_blocks(result: dict[str, Any]) -> list[Block]:
    """Returns the measurements of `--host` as lines and tables."""
    keys = {path: path.rpartition(".")[2] for path in result["shrunk"]}
    keys |= {"train_micro_batch_size_per_gpu": "micro batch"}
    shrunk = [f"{keys[path]} {few} for {many}" for path, (many, few) in result["shrunk"].items()]
    many, few = result["buckets"]
    shrunk += [f"buckets of gradients {few} for {many}"] if many != few else []
    ways: list[list[Line]] = []
    for name, words in _HOST_WAYS.items():
        if (seconds := result[f"{name}_s"]) is not None:
            least, most = (1000 * each for each in result["spread_s"][name])
            text = f"({least:.2f} to {most:.2f})"
            if name != "host_step":
                text += f"; ours takes {result['host_step_s'] / seconds:.2f} times as long"
            ways.append([words, f"{1000 * seconds:.2f}", text])
    operations = {part: number for part, number in result["operations"].items() if part != "all"}
    parts: list[list[Line]] = [[part, f"{number:,}"] for part, number in operations.items()]
    waits = result["host_waits"]
    places: list[list[Line]] = [[place, str(times)] for place, times in waits["where"].items()]
    columns = [Column(left=True, shrinks=True), Column()]
    counted_with = "with" if result["operations_with_checkpointing"] else "without"
    return [
        _machine(result),
        _measured(result),
        "almost no arithmetic: " + ", ".join(shrunk),
        "convolutions of GPUs and of CPUs with bf16 arithmetic, here and in the plain loop",
        "",
        (f"host time per step, ms: median of {result['rounds']} (minimum to maximum)", "title"),
        Table([Column(left=True), Column(), Column(wraps=True)], ways, indent=2, headed=False),
        "",
        (f"{result['operations']['all']:,} operations per step, {counted_with} activation checkpointing", "title"),
        Table(columns, parts, indent=2, headed=False),
        "",
        (f"host waits per step: {waits['ours']} of ours, {waits['deepspeed']} of DeepSpeed's", "title"),
        *([Table(columns, places, indent=2, headed=False)] if places else []),
    ]
