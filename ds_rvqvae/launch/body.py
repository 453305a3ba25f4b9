"""Several body parts, trained in turn: a run each inside one folder, and the tokenizer of the body that they make."""

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
    """A run that may start."""

    request: Request
    folder: Path
    ranks: Ranks
    data: MotionData
    disk_bytes: int
    """What its checkpoints will take."""
    done: bool
    """Whether a resume of it has nothing left to train."""
    said: tuple[str, ...] = ()
    """Lines on it, for the terminal and its log."""


@dataclass(frozen=True)
class Body:
    """A folder of runs, one for each of several body parts."""

    flags: Flags
    """What the launcher was given."""
    folder: Path
    said: tuple[str, ...] = ()
    """Lines on which folder that is, for the terminal and the parts' logs."""

    @classmethod
    def of(cls, flags: Flags) -> "Body":
        """The body that `--body_part upper,hands` asks for. Creates nothing.

        Raises:
            UserError: parts that are not known or overlap, or that `--for` cannot have, or a folder that cannot be
                theirs.
        """
        body = cls(flags, *_body_folder(flags))
        profiles = [request.profile for request in body.requests()]
        for profile in profiles:
            check_body_for(profile, body.parts)
        data = [profile.rvqvae.data for profile in profiles]
        # As far as can be told without the motion: joints as they are written, patterns and numbers too.
        body._check_disjoint([{**BODY_PART_CHANNELS, **(own.body_parts or {})}[own.body_part] for own in data])
        return body

    @property
    def parts(self) -> tuple[str, ...]:
        return self.flags.parts

    def flags_by_part(self) -> list[Flags]:
        """The flags of each part's run, in turn. A resumed part brings its own profile, a new one that of another.

        A part that has not begun reads its motion as one that has, which a version up to 0.2 may have begun.
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
        """What is asked for each part, in turn."""
        return [replace(request_of(flags), of_body=True) for flags in self.flags_by_part()]

    def check(self, data: Sequence[MotionData], disk_bytes: int) -> None:
        """Checks all parts' runs together, once each has been checked by itself.

        Raises:
            UserError: motion without body parts, parts that overlap in it or were read by other rules, a flag that no
                part can have, or no room for all of them.
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
        """Raises UserError where two parts share one of the joints that each takes."""
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
        """Trains the parts that are left, in turn, and then makes the body's tokenizer.

        Args:
            runs: one a part.
            train: trains one, noting signals in `signals`.

        Returns:
            the status of the first run that did not end well, after which no other starts.
        """
        for index, (part, run) in enumerate(zip(self.parts, runs, strict=True)):
            if run.done:
                say(f"{part}, part {index + 1} of {len(runs)}: trained already")
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
        """Puts the parts' tokenizers together as that of the body, whose motion has this layout."""
        with Stage("putting the parts' tokenizers together"):
            # Late: they need torch, which nothing else in a launcher does.
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
    """How a run's files are read, as flags say it."""
    return {key: str(value) for key, value in reading_of(read_profile(run).rvqvae.data.model_dump()).items()}


def check_no_body(flags: Flags) -> None:
    """Raises UserError where the run of a single part would go into a folder of several parts' runs."""
    if flags.start.folder is not None:
        folder = flags.start.folder
    elif flags.name:
        folder = flags.out / flags.name
    else:
        return
    runs = _runs_in(folder)
    if runs:
        raise UserError(
            f"{folder}: holds the runs of several body parts ({', '.join(runs)}): name them all by --body_part, or one "
            f"by --out {folder} --name {runs[0]}"
        )


def _body_folder(flags: Flags) -> tuple[Path, tuple[str, ...]]:
    """The folder that the parts' runs go into, and lines on which that is, where no flag names it."""
    start = flags.start
    said: tuple[str, ...] = ()
    if start.tag is not None:
        raise UserError(f"--resume {start.tag}: a checkpoint of one part; give --resume alone, or one --body_part")
    if start.folder is None:
        request = flags.with_key("body_part", flags.parts[0]).request()
        naming = Naming(request.source, request.profile.rvqvae.data.path, "body", "body")
        folder = choose_run_folder(flags.out, flags.name, naming, start)
        said = newest_lines(flags, naming, folder, is_body=True)
    else:
        folder = start.folder
        if not _runs_in(folder):
            raise UserError(f"--resume {folder}: no part's run is in it ({', '.join(flags.parts)})")
    if is_run(folder):
        raise UserError(f"{folder}: is the run of one body part; give several parts another --name")
    check_out_folder(folder)
    return folder, said


def _runs_in(folder: Path) -> list[str]:
    """The body parts that have a run inside a folder, by name."""
    if not folder.is_dir():
        return []
    return [entry.name for entry in sorted(folder.iterdir()) if _is_run_of(entry, entry.name)]


def _is_run_of(folder: Path, part: str) -> bool:
    try:
        profile = read_json(profile_place(folder))
        return bool(profile["rvqvae"]["data"]["body_part"] == part)
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return False
