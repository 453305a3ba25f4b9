"""The launcher: check the runs that the flags ask for, and train each under supervision."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ds_rvqvae.errors import ExitStatus, printable, say
from ds_rvqvae.process.command import exit_status_of, print_out
from ds_rvqvae.process.streams import queued_streams

if TYPE_CHECKING:  # imported late, so that help answers at once
    from ds_rvqvae.config.parser import FlagParser
    from ds_rvqvae.config.request import Flags
    from ds_rvqvae.launch.body import CheckedRun
    from ds_rvqvae.launch.preflight import Finding, Preflight
    from ds_rvqvae.process.terminal import Block


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `launch/train_8x4090.py` and returns its exit status."""
    return exit_status_of(lambda: _launch(sys.argv[1:] if argv is None else argv), is_program=argv is None)


def _launch(argv: Sequence[str]) -> ExitStatus:
    from ds_rvqvae.config.request import read_launch_flags

    return launch(read_launch_flags(argv))


def add_train(parser: "FlagParser") -> None:
    """Fills the parser of `ds-rvqvae train`, which is this launcher as a command of the package."""
    from ds_rvqvae.config.request import fill_launch_parser, launch_flags_of

    fill_launch_parser(parser)
    parser.set_defaults(verb=lambda given: launch(launch_flags_of(given)))


def launch(flags: "Flags") -> ExitStatus:
    """Checks the run or runs that the flags ask for, and trains."""
    from ds_rvqvae.launch import demo
    from ds_rvqvae.launch.body import Body, check_no_body
    from ds_rvqvae.launch.check import check_run
    from ds_rvqvae.launch.command import train
    from ds_rvqvae.launch.hosts import warn
    from ds_rvqvae.launch.results import tell_ending
    from ds_rvqvae.launch.supervise import signals_noted
    from ds_rvqvae.process.torch_build import check_torch
    from ds_rvqvae.runs.start import check_may_look, request_of

    if newer := check_torch():
        warn(newer)
    if flags.options.demo:
        flags = demo.with_demo(flags)
    check_may_look(flags)
    if len(flags.parts) > 1:
        body = Body.of(flags)
        checked: list[tuple[CheckedRun, Preflight | None]] = []
        for request in body.requests():
            run, report = check_run(request, [run.data for run, _ in checked])
            checked.append((replace(run, said=(*body.said, *run.said)), report))
        body.check([run.data for run, _ in checked], sum(run.disk_bytes for run, _ in checked))
    else:
        check_no_body(flags)
        body, checked = None, [check_run(request_of(flags))]
    runs = [run for run, _ in checked]
    for line in dict.fromkeys(line for run in runs for line in run.said):
        say(line)
    if flags.options.dry_run:
        _show([(run, report) for run, report in checked if body is None or not run.done])
        return ExitStatus.DONE
    # From here on the run is the result: a failure to print must not stop it.
    with queued_streams("stdout"), signals_noted() as signals:
        if body is None:
            return train(runs[0], signals, lambda run, status: tell_ending(run.folder, (), run, status))
        status = body.train(runs, lambda run: train(run, signals), signals)
        tell_ending(body.folder, body.parts, runs[0], status)
        return status


def _show(checked: "list[tuple[CheckedRun, Preflight | None]]") -> None:
    """Prints each run's command, and on stderr its plan, the results of the checks and the ranks' own variables."""
    from ds_rvqvae.launch.command import command_by_flags, rank_variables
    from ds_rvqvae.process.tables import Column, Table
    from ds_rvqvae.process.terminal import terminal_of

    shown: set[Finding] = set()
    for run, report in checked:
        if report is None:
            say(f"{run.folder.name}: nothing is left to train")
            continue
        # Most results are the same for every part of a body.
        new = [finding for finding in report.findings if finding not in shown]
        shown.update(new)
        blocks: list[Block] = [(f"plan of {run.folder.name}", "title"), *(f"  {line}" for line in report.plan_lines())]
        findings = [[finding.topic, finding.words()] for finding in new]
        blocks += [
            ("checks", "title"),
            Table([Column(left=True), Column(wraps=True)], findings, indent=2, headed=False),
        ]
        print(terminal_of(sys.stderr).text(blocks), file=sys.stderr)
    for run, _ in checked[:1]:
        added = rank_variables(run)
        line = f"environment: {shlex.join(f'{name}={value}' for name, value in added.items())}"
        print(terminal_of(sys.stderr).text([line]), file=sys.stderr)
    for run, _ in checked:
        print_out(printable(shlex.join(command_by_flags(run))), end="\n")
