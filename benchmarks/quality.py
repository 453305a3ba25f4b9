"""Runs a study of tokenizers: many settings with several seeds each, trained and scored alike, in one table.

    python benchmarks/quality.py --study FILE --data_path MOTION [--out DIR] [--jobs N] [--known FILE]
        [--table FILE] [--picture FILE] [--json [FILE]]

A study is a JSON file:

    {"profile": "baseline", "reference": "lineage", "seeds": [0, 1, 2],
     "common": ["rvqvae.training.total_iter=2000"],
     "settings": {"lineage": ["rvqvae.model.lineage=true"], "baseline": [], "best": {"profile": "best", "set": []}},
     "picture": ["lineage", "baseline"]}

A setting is a list of `--set` overrides of the profile and of `common`, or an object that names another profile and its
overrides. Each run is `python -m ds_rvqvae.train` in a process of its own with one thread and one rank, on a GPU if
there is one and `--jobs` is 1. `benchmarks/cmu_task.py` scores it. `--jobs` runs train side by side, by default one per
core. Finished runs are kept in `--out`: the same command continues where it was stopped, and trains a changed setting
anew. A failed run is reported, and the others continue. `--known` reads results of an earlier `--json`, and does not
train those runs again.

The table gives the mean over seeds and half of its 95 % interval (Student's t).
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ds_rvqvae.process.command import begin_program, print_out, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

from quality_tables import SPLITS, picture, tables

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.files import sha256_of, whole_file
from ds_rvqvae.host import processor_name
from ds_rvqvae.process.signals import Stopped

HERE = Path(__file__).resolve().parent
_KEYS = {"profile", "reference", "seeds", "common", "settings", "picture"}


class Run(NamedTuple):
    """One setting with one seed."""

    setting: str
    seed: int
    overrides: list[str]
    profile: str

    @property
    def name(self) -> str:
        return f"{self.setting}-seed{self.seed}"

    def digest(self, data_path: Path) -> str:
        """Returns a digest of all that a result depends on, except the code."""
        profile = load_profile(self.profile, self.overrides)
        # Defaults do not count, so that a new key that is off keeps the digest. A changed default is not noticed.
        ours = profile.rvqvae.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps([profile.deepspeed_config(), ours, self.seed, digest_of_data(data_path)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def digest_of_data(path: Path) -> str:
    """Returns a digest of a file's content, or of the names, sizes and times of the files in a folder."""
    if path.is_file():
        return sha256_of(path)
    files = sorted((str(file.relative_to(path)), file.stat()) for file in path.rglob("*") if file.is_file())
    listed = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder of runs and results (default: runs/STUDY)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side (default: one per core)")
    parser.add_argument("--only", action="append", metavar="SETTING", help="train only this setting; repeatable")
    parser.add_argument("--known", type=Path, metavar="FILE", help="results of an earlier --json")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw error against rate, PNG")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write all results as JSON")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs: {args.jobs}: give 1 or more")
    return run_study(args)


def run_study(args: argparse.Namespace) -> int:
    """Trains the missing runs and writes the outputs; returns the exit status. Raises UserError for bad input."""
    study = read_study(args.study)
    out = args.out or Path("runs") / args.study.stem
    if not args.data_path.exists():
        raise UserError(f"{args.data_path}: no such file or folder")
    out.mkdir(parents=True, exist_ok=True)
    if args.known:
        take_over(args.known, study, args.data_path, out)
    failed = train_all(study, args, out)
    results = results_of(study, args.data_path, out)
    if not results:
        print(f"error: no run of {args.study} has a result; the logs of failed runs are in {out}", file=sys.stderr)
        return ExitStatus.FAILED
    if args.json and args.json != "-":
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = tables(results, study["reference"])
    print_out((json.dumps(results, indent=1) if args.json == "-" else text) + "\n")
    if args.table:
        args.table.write_text(text + "\n", encoding="utf-8")
    if args.picture:
        picture(results, study.get("picture") or list(study["settings"]), args.picture)
    return ExitStatus.FAILED if failed else ExitStatus.DONE


def read_study(path: Path) -> dict[str, Any]:
    """Reads a study; raises UserError if the file is not one, or if a setting does not give a valid profile."""
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(study, dict) or not {"reference", "seeds", "settings"} <= set(study) or set(study) - _KEYS:
        raise UserError(f"{path}: a study is an object of {', '.join(sorted(_KEYS))}")
    _check_types(study, path)
    for name in [study["reference"], *(study.get("picture") or [])]:
        if name not in study["settings"]:
            raise UserError(f"{path}: no setting is called {name!r}")
    for run in runs_of(study):
        try:
            load_profile(run.profile, run.overrides)
        except UserError as error:
            raise UserError(f"{path}: {run.setting}: {error}") from None
    return study


def _check_types(study: dict[str, Any], path: Path) -> None:
    seeds, settings = study["seeds"], study["settings"]
    numbers = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not numbers or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds: give a list of different whole numbers")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: settings: give an object with a list of overrides for each name")
    for name, setting in {"common": study.get("common", []), **settings}.items():
        overrides = setting
        if isinstance(setting, dict) and set(setting) == {"profile", "set"}:
            overrides = setting["set"]
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise UserError(f"{path}: {name}: a setting is a list of overrides, or an object of profile and set")
        if "/" in name:
            raise UserError(f"{path}: {name}: the name becomes a file name; remove the /")


def runs_of(study: dict[str, Any]) -> list[Run]:
    """Returns all runs: every setting with the first seed, then with the next."""
    common = study.get("common", [])
    settings = {
        name: setting if isinstance(setting, dict) else {"profile": study.get("profile", "baseline"), "set": setting}
        for name, setting in study["settings"].items()
    }
    return [
        Run(name, seed, [*common, *setting["set"]], setting["profile"])
        for seed in study["seeds"]
        for name, setting in settings.items()
    ]


def take_over(known: Path, study: dict[str, Any], data_path: Path, out: Path) -> None:
    """Stores results of an earlier `--json` where training would write them; raises UserError for another file."""
    try:
        results = json.loads(known.read_text(encoding="utf-8"))
        kept = {(result["digest"], result["seed"]): result for runs in results.values() for result in runs}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"--known {known}: not results written by --json: {error!r}") from None
    for run in runs_of(study):
        result = kept.get((run.digest(data_path), run.seed))
        if result is not None and not _result(run, data_path, out):
            _write_result(result | {"setting": run.setting}, run, out)


def train_all(study: dict[str, Any], args: argparse.Namespace, out: Path) -> list[str]:
    """Trains and scores the missing runs; returns the names of those that failed."""
    only = set(args.only or study["settings"])
    if unknown := only - set(study["settings"]):
        raise UserError(f"--only: no setting is called {', '.join(sorted(unknown))}")
    waiting = [run for run in runs_of(study) if run.setting in only and not _result(run, args.data_path, out)]
    done, failed, lock = len(runs_of(study)) - len(waiting), [], threading.Lock()

    def one(run: Run) -> None:
        nonlocal done
        started = time.perf_counter()
        error = _train(run, args, out)
        with lock:
            done += 1
            minutes = (time.perf_counter() - started) / 60
            print(f"{done}/{len(runs_of(study))} {run.name}: {error or f'{minutes:.1f} min'}", file=sys.stderr)
            if error:
                failed.append(run.name)

    pool = ThreadPoolExecutor(args.jobs)
    try:
        list(pool.map(one, waiting))
    except Stopped as stop:
        pool.shutdown(wait=False, cancel_futures=True)
        stop.summary = f"{done} of {len(runs_of(study))} runs are done; the same command continues from there"
        raise
    pool.shutdown()
    return failed


def _train(run: Run, args: argparse.Namespace, out: Path) -> str | None:
    """Trains and scores one run; returns the reason if it failed."""
    digest, folder = run.digest(args.data_path), out / "training" / run.name
    mark = out / f"{run.name}.digest"
    if folder.is_dir() and (not mark.is_file() or mark.read_text() != digest):
        shutil.rmtree(folder)
    resumed = folder.is_dir()
    mark.write_text(digest)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if args.jobs > 1:
        environment["DS_ACCELERATOR"] = "cpu"
    sets = [f"--set={override}" for override in run.overrides]
    place = [f"--profile={run.profile}", f"--out={folder.parent}", f"--name={run.name}", "--resume"]
    train = ["-m", "ds_rvqvae.train", *place, f"--data_path={args.data_path}", f"--seed={run.seed}", *sets]
    scores = out / f"{run.name}.scores.json"
    score = [str(HERE / "cmu_task.py"), str(folder), f"--data_path={args.data_path}", f"--json={scores}"]
    score.append(f"--splits={','.join(SPLITS)}")
    started = time.perf_counter()
    with (out / f"{run.name}.log").open("a", encoding="utf-8") as log:
        for command in (train, score):
            ended = subprocess.run([sys.executable, *command], env=environment, stdout=log, stderr=log, check=False)
            if ended.returncode:
                return f"exit status {ended.returncode}; see {log.name}"
    result = {
        "setting": run.setting,
        "seed": run.seed,
        "digest": digest,
        # The duration of a resumed run is not known.
        "minutes": None if resumed else (time.perf_counter() - started) / 60,
        "machine": f"{processor_name()}, torch {version('torch')}",
        "scores": json.loads(scores.read_text(encoding="utf-8")),
    }
    _write_result(result, run, out)
    scores.unlink()
    # Checkpoints take 16 bytes per parameter; the tokenizer stays.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return None


def _write_result(result: dict[str, Any], run: Run, out: Path) -> None:
    with whole_file(out / f"{run.name}.json") as content:
        content.write(json.dumps(result, indent=1).encode())


def _result(run: Run, data_path: Path, out: Path) -> dict[str, Any] | None:
    """Returns the kept result of a run, if it was trained with exactly these settings."""
    file = out / f"{run.name}.json"
    if not file.is_file():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    return result if result["digest"] == run.digest(data_path) else None


def results_of(study: dict[str, Any], data_path: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the finished results by setting, in the order of the study and its seeds."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in study["settings"]}
    for run in runs_of(study):
        if result := _result(run, data_path, out):
            results[run.setting].append(result)
    return {name: found for name, found in results.items() if found}


if __name__ == "__main__":
    run_program(main)
