"""Train several body parts in turn: one run per part inside one folder, and then the tokenizer of the body."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ds_rvqvae.config.request import Flags, Request, Start
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.fitting import check_body, check_part
from ds_rvqvae.errors import ExitStatus, UserError, say
from ds_rvqvae.files import read_json
from ds_rvqvae.launch.hosts import Ranks
from ds_rvqvae.launch.supervise import Signals
from ds_rvqvae.motion.layout import BODY_PART_CHANNELS, Layout, check_disjoint
from ds_rvqvae.process.progress import Stage
from ds_rvqvae.runs.checkpoints import has_begun
from ds_rvqvae.runs.folder import Naming, check_out_folder, choose_run_folder, is_run, profile_place, read_profile
from ds_rvqvae.runs.start import newest_lines, request_of
from ds_rvqvae.tokenizer.folder import TOKENIZER, check_same_reading, reading_of
from ds_rvqvae.tokenizer.foreign.formats import check_body_for


@dataclass(frozen=True)
class CheckedRun:
    """A run that has passed the checks."""

    request: Request
    folder: Path
    ranks: Ranks
    data: MotionData
    disk_bytes: int
    """Disk space that its checkpoints will take, in bytes."""
    done: bool
    """Whether the run is resumed and has nothing left to train."""
    said: tuple[str, ...] = ()
    """Messages about the run, for the terminal and its log."""


@dataclass(frozen=True)
class Body:
    """A folder of runs, one for each of several body parts."""

    flags: Flags
    """The launcher's flags."""
    folder: Path
    said: tuple[str, ...] = ()
    """Messages about the choice of the folder, for the terminal and the parts' logs."""

    @classmethod
    def of(cls, flags: Flags) -> "Body":
        """Returns the body for `--body_part upper,hands`. It creates no files.

        Raises:
            UserError: parts are unknown, overlap, or cannot be exported for `--for`; or the folder cannot be used.
        """
        body = cls(flags, *_body_folder(flags))
        profiles = [request.profile for request in body.requests()]
        for profile in profiles:
            check_body_for(profile, body.parts)
        data = [profile.rvqvae.data for profile in profiles]
        # A first check without the motion: it compares joints as they are written, also patterns and numbers.
        body._check_disjoint([{**BODY_PART_CHANNELS, **(own.body_parts or {})}[own.body_part] for own in data])
        return body

    @property
    def parts(self) -> tuple[str, ...]:
        return self.flags.parts

    def flags_by_part(self) -> list[Flags]:
        """Returns the flags of each part's run, in turn. A resumed part has its own profile, a new part that of another
        part.

        A part that has not begun reads its motion as one that has begun, perhaps with a version up to 0.2.
        """
        start = Start("newest" if self.flags.start.resumes else "new")
        begun = [part for part in self.parts if start.resumes and has_begun(self.folder / part / "checkpoints")]
        reading = _reading_of(self.folder / begun[0]) if begun else {}
        runs = _runs_in(self.folder) if self.flags.start.folder is not None else []
        found = []
        for part in self.parts:
            profile = self.flags.profile
            if profile is None and runs:
                profile = str(profile_place(self.folder / (part if part in runs else runs[0])))
            own = replace(self.flags, out=self.folder, name=part, start=start, profile=profile)
            for key, text in {} if part in begun else reading.items():
                own = own if key in own.keys else own.with_key(key, text)
            found.append(own.with_key("body_part", part))
        return found

    def requests(self) -> list[Request]:
        """Returns the request of each part, in turn."""
        return [replace(request_of(flags), of_body=True) for flags in self.flags_by_part()]

    def check(self, data: Sequence[MotionData], disk_bytes: int) -> None:
        """Checks the runs of all parts together, after each has been checked alone.

        Raises:
            UserError: the motion has no body parts, parts overlap in it or were read by different rules, no part can
                use a flag, or the disk has no room for all of them.
        """
        for part, motion in zip(self.parts, data, strict=True):
            if motion.body_part is None:
                check_part(part, str(motion.config.path), motion.layout, motion.store.has_body_parts)
        self._check_disjoint([[channels.name for channels in motion.layout] for motion in data])
        try:
            check_same_reading(
                {part: reading_of(one.store.settings) for part, one in zip(self.parts, data, strict=True)}
            )
        except UserError as error:
            raise UserError(f"--body_part {self._named}: {error}") from None
        check_body({part: one.left_out for part, one in zip(self.parts, data, strict=True)}, self.flags.asked)
        check_out_folder(self.folder, disk_bytes)

    def _check_disjoint(self, joints: Sequence[Sequence[str | int]]) -> None:
        """Raises UserError if two parts have a joint in common."""
        try:
            check_disjoint(zip(self.parts, joints, strict=True))
        except UserError as error:
            raise UserError(f"--body_part {self._named}: {error}") from None

    @property
    def _named(self) -> str:
        return ",".join(self.parts)

    def train(
        self, runs: Sequence[CheckedRun], train: Callable[[CheckedRun], ExitStatus], signals: Signals
    ) -> ExitStatus:
        """Trains the remaining parts in turn, and then makes the body's tokenizer.

        Args:
            runs: one run per part.
            train: trains one run, and notes signals in `signals`.

        Returns:
            the status of the first run that failed or was stopped, after which no other starts; else DONE.
        """
        for index, (part, run) in enumerate(zip(self.parts, runs, strict=True)):
            if run.done:
                say(f"{part}, part {index + 1} of {len(runs)}: already trained")
                continue
            say(f"{part}, part {index + 1} of {len(runs)}: {run.folder}")
            status = train(run)
            later = zip(self.parts[index + 1 :], runs[index + 1 :], strict=True)
            waiting = ", ".join(part for part, run in later if not run.done)
            if status == ExitStatus.DONE and waiting and signals.stops:
                say("stopped")
                status = ExitStatus.STOPPED
            if status != ExitStatus.DONE:
                if waiting:
                    say(f"not started: {waiting}")
                return status
        if runs[0].ranks.first_here:
            self._write_tokenizer(runs[0].data.store.layout)
        return ExitStatus.DONE

    def _write_tokenizer(self, layout: Layout) -> None:
        """Joins the parts' tokenizers into that of the body, whose motion has this layout."""
        with Stage("joining the parts' tokenizers"):
            # Imported late: they need torch, which nothing else in a launcher needs.
            from ds_rvqvae.tokenizer.body import BodyTokenizer
            from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

            parts = {part: MotionTokenizer.from_pretrained(self.folder / part / TOKENIZER) for part in self.parts}
            try:
                BodyTokenizer(parts, layout).save_pretrained(self.folder / TOKENIZER)
            except OSError as error:
                raise UserError(
                    f"{self.folder / TOKENIZER}: cannot be written: {error.strerror or error}; the same command with "
                    "--resume writes it"
                ) from None
        say(f"tokenizer of {', '.join(self.parts)}: {self.folder / TOKENIZER}")


def _reading_of(run: Path) -> dict[str, str]:
    """Returns how a run's files are read, as flags."""
    return {key: str(value) for key, value in reading_of(read_profile(run).rvqvae.data.model_dump()).items()}


def check_no_body(flags: Flags) -> None:
    """Raises UserError if the run of a single part would be put into a folder with the runs of several parts."""
    if flags.start.folder is not None:
        folder = flags.start.folder
    elif flags.name:
        folder = flags.out / flags.name
    else:
        return
    runs = _runs_in(folder)
    if runs:
        raise UserError(
            f"{folder}: has the runs of several body parts ({', '.join(runs)}); name them all with --body_part, or "
            f"one with --out {folder} --name {runs[0]}"
        )


def _body_folder(flags: Flags) -> tuple[Path, tuple[str, ...]]:
    """Returns the folder of the parts' runs, and messages about its choice if no flag names it."""
    start = flags.start
    said: tuple[str, ...] = ()
    if start.tag is not None:
        raise UserError(
            f"--resume {start.tag}: this is a checkpoint of one part; give --resume without a value, or one --body_part"
        )
    if start.folder is None:
        request = flags.with_key("body_part", flags.parts[0]).request()
        naming = Naming(request.source, request.profile.rvqvae.data.path, "body", "body")
        folder = choose_run_folder(flags.out, flags.name, naming, start)
        said = newest_lines(flags, naming, folder, is_body=True)
    else:
        folder = start.folder
        if not _runs_in(folder):
            raise UserError(f"--resume {folder}: it has no run of a part ({', '.join(flags.parts)})")
    if is_run(folder):
        raise UserError(f"{folder}: this is the run of one body part; give several parts another --name")
    check_out_folder(folder)
    return folder, said


def _runs_in(folder: Path) -> list[str]:
    """Returns the names of the body parts that have a run inside a folder."""
    if not folder.is_dir():
        return []
    return [entry.name for entry in sorted(folder.iterdir()) if _is_run_of(entry, entry.name)]


def _is_run_of(folder: Path, part: str) -> bool:
    try:
        profile = read_json(profile_place(folder))
        return bool(profile["rvqvae"]["data"]["body_part"] == part)
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return False
