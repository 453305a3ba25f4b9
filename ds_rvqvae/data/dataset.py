"""A packed store as a run uses it: the columns of its body part, normalised and cut into windows."""

import hashlib
import json
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.batch_sizes import window_sizes
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.data.augment import Augment
from ds_rvqvae.data.fitting import BODY_PART, LeftOut, check_columns, check_part, left_out_line, unfitting
from ds_rvqvae.data.formats.features import feature_weights, read_statistics
from ds_rvqvae.data.store.prepare import prepare_store, settings_of
from ds_rvqvae.data.store.report import column_ranges, shortened
from ds_rvqvae.data.store.splits import Groups, Segment, balanced, group_of, shares_text
from ds_rvqvae.data.store.store import REPORT, Store
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import MIN_FRAMES
from ds_rvqvae.motion.layout import Layout, layout_to_json, select_columns
from ds_rvqvae.motion.rotations import same_rate
from ds_rvqvae.process.home import expanded
from ds_rvqvae.text import counted


class MotionData:
    """A store with the settings of `rvqvae.data` applied. Windows are read by index; no copy of them is stored.

    Attributes:
        store: the packed store, with all columns.
        in_features: number of columns in use, C below.
        columns: their indices in the store, int64 `[C]`.
        layout: their meaning, numbered from 0.
        body_part: the body part that they belong to; None if all columns are in use.
        fps: frames per second.
        mean, std: float32 `[C]`; motion is normalised as `(motion - mean) / std`. `std` is divided by the column's
            weight if `feat_bias` gives one. A measured std is at least `std_floor`; a given one is used as it is.
        left_out: keys of the profile that do not fit these columns.
    """

    def __init__(self, store: Store, config: DataConfig) -> None:
        self.store = store
        self.config = config
        self.left_out: tuple[LeftOut, ...] = ()
        self.fps = store.fps
        columns: NDArray[np.int64] = np.arange(len(store.mean))
        self.layout: Layout = store.layout
        self.body_part: str | None = None
        if store.has_body_parts or config.body_part in (config.body_parts or ()):
            columns, self.layout = select_columns(store.layout, config.body_part, config.body_parts)
            self.body_part = config.body_part
        self.columns = columns
        self.in_features = len(columns)
        self._raised: list[str] = []
        self.mean, std = self._statistics()
        self.std: NDArray[np.float32] = np.divide(std, self._weights())

    @classmethod
    def open(cls, config: DataConfig, progress: bool = False) -> "MotionData":
        """Opens the data that `config` names and prepares their store if there is none yet.

        Raises:
            UserError: no path, no usable motion, or statistics with another number of columns.
        """
        return cls(prepare_store(config, progress=progress), config)

    def fit(self, profile: Profile, asked: Collection[str] = ()) -> Profile:
        """Leaves out the keys of a profile that do not fit these columns, and returns the run's profile.

        Args:
            asked: paths of the keys that the user has given; these are not left out.
        """
        layouts = self.layout, self.store.layout
        self.left_out = unfitting(profile, *layouts, self.store.skeleton, asked)
        profile = self.fitted(profile)
        self.config = self.config.model_copy(update={"augment": profile.rvqvae.data.augment})
        return profile

    def fitted(self, profile: Profile) -> Profile:
        """Returns a profile without the keys that `fit` has left out."""
        return profile.with_values({one.key: one.value for one in self.left_out})

    def notes(self) -> list[str]:
        """Returns a line for the user about the keys that were left out of the profile, if any."""
        name = self.body_part or str(self.config.path or self.store.folder)
        return [left_out_line(name, self.left_out)] if self.left_out else []

    def use_normalisation(self, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        """Normalises by `mean` and `std` from now on, float32 `[C]`, for example those of a trained tokenizer.

        Raises:
            UserError: another number of columns.
        """
        if len(mean) != self.in_features:
            raise UserError(f"{self.store.folder}: {self.in_features} columns, but the tokenizer takes {len(mean)}")
        self.mean, self.std = mean, std

    def fingerprint(self) -> str:
        """Returns a sha256 of what defines a model's inputs: columns and normalisation."""
        columns = json.dumps(layout_to_json(self.layout)).encode()
        return hashlib.sha256(columns + self.mean.tobytes() + self.std.tobytes()).hexdigest()

    def segments(self, split: str) -> list[Segment]:
        """Returns the pieces of clips in `train`, `val` or `test` that have at least 16 frames.

        `all` gives the complete clips, whatever their split.
        """
        segments = [segment for segment in self.store.segments if segment.split == split]
        if split == "all":
            lengths = np.diff(self.store.starts).tolist()
            segments = [
                Segment(name, 0, frames, split) for name, frames in zip(self.store.clip_names, lengths, strict=True)
            ]
        return [segment for segment in segments if segment.stop - segment.start >= MIN_FRAMES]

    def frames(self, segment: Segment) -> NDArray[np.float32]:
        """Returns a segment's motion in the data's own units, float32 `[frames, C]`."""
        return self.store.clip(segment.name)[segment.start : segment.stop].take(self.columns, axis=1)

    def normalised(self, segment: Segment) -> NDArray[np.float32]:
        """Returns a segment's motion, normalised for the model, float32 `[frames, C]`."""
        return self.normalise(self.frames(segment))

    def window_starts(self, split: str = "train", window_size: int | None = None) -> NDArray[np.int64]:
        """Returns the row of the store where each window starts, int64, in order; no window crosses a cut.

        Args:
            window_size: frames per window; by default the one in the settings.

        Raises:
            UserError: there is no window. The message says how long the longest clip is and which size fits.
        """
        size, stride = window_size or self.config.window_size, self.config.window_stride
        segments = self.segments(split)
        starts = [
            self.store.rows(segment.name)[0] + np.arange(segment.start, segment.stop - size + 1, stride)
            for segment in segments
            if segment.stop - segment.start >= size
        ]
        if not starts:
            raise UserError(self._no_window(split, segments, size))
        rows: NDArray[np.int64] = np.concatenate(starts).astype(np.int64)
        return rows

    @cached_property
    def training_windows(self) -> dict[int, NDArray[np.int64]]:
        """`window_starts` of the training split for each window length, the shortest first.

        Raises:
            UserError: no clip is long enough for one of the lengths.
        """
        return {size: self.window_starts("train", size) for size in window_sizes(self.config)}

    @cached_property
    def training_groups(self) -> dict[int, Groups]:
        """Speakers or sets of `training_windows`, each with its fraction of the samples; empty without `balance`.

        Raises:
            UserError: a weight for a group that is not in the training split, or a weight of 0 for every group in it.
        """
        if self.config.balance is None:
            return {}
        return {size: self._groups(starts, self.config.balance) for size, starts in self.training_windows.items()}

    def count_training_windows(self) -> dict[int, int]:
        """Returns the number of training windows by length; raises UserError if the settings do not fit them."""
        _ = self.training_groups
        if self.config.augment.is_on:
            Augment(self.layout, self.config.augment, 0, self.store.skeleton)
        return {size: len(starts) for size, starts in self.training_windows.items()}

    def warnings(self) -> list[str]:
        """Returns notes from when the store was made, and on settings of `rvqvae.data` that do not act as given."""
        found = store_warnings(self.store)
        if self.store.settings["reading_version"] < self.config.reading_version:
            found.append(
                f"{self.store.folder}: was prepared by version 0.2 or earlier, so its files were read by the old rules "
                "(rvqvae.data.reading_version 1, see docs/data.md); prepare it again to use the rules of today"
            )
        if self._raised:
            found.append(
                "read by the rules of version 0.2 and earlier: the given std is raised to rvqvae.data.std_floor "
                f"{self.config.std_floor:g} in {shortened(self._raised, 6)}; a new run uses it as it is"
            )
        prepared, fps = self.store.settings.get("fps"), self.store.fps
        if not same_rate(fps, self.config.fps) and prepared not in (None, self.config.fps):
            found.append(f"the store has {fps:g} fps: rvqvae.data.fps {self.config.fps:g} is not used")
        augment, parts = self.config.augment, len(self.layout)
        if augment.mix and parts < 2:
            found.append(f"rvqvae.data.augment.mix: no effect: all columns belong together, as {self.layout[0].name}")
        elif augment.mix and augment.mix_windows > parts:
            more = f"{augment.mix_windows} is more than the {parts} joints; {parts} is used"
            found.append(f"rvqvae.data.augment.mix_windows: {more}")
        return found

    def balance_lines(self) -> list[str]:
        """Returns lines for the user: each speaker's or set's fraction of the samples, and of the windows."""
        texts = {size: shares_text(groups) for size, groups in self.training_groups.items()}
        start = f"rvqvae.data.balance: share of the samples per {self.config.balance} (of the windows)"
        if len(set(texts.values())) == 1:
            return [f"{start}: {next(iter(texts.values()))}"]
        return [f"{start}, {size} frames: {text}" for size, text in texts.items()]

    def _groups(self, starts: NDArray[np.int64], by: Literal["speaker", "set"]) -> Groups:
        trained = sorted({segment.name for segment in self.segments("train")})
        place = {name: index for index, name in enumerate(trained)}
        clips, of_each = np.unique(self._clip_of(starts), return_inverse=True)
        of_window = np.array([place[self.store.clip_names[clip]] for clip in clips.tolist()])[of_each]
        groups = [group_of(name, by, self.config.reading_version) for name in trained]
        return balanced(groups, of_window, self.config.weights or {}, by)

    def windows(
        self, starts: NDArray[np.int64], window_size: int | None = None, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Returns normalised windows `[len(starts), window_size, C]`, float32, written into `out` if it is given."""
        return self.normalise(self.raw_windows(starts, window_size, out))

    def raw_windows(
        self, starts: NDArray[np.int64], window_size: int | None = None, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Returns the windows in the data's own units; see `windows`."""
        size = window_size or self.config.window_size
        if out is None:
            out = np.empty((len(starts), size, self.in_features), np.float32)
        for window, start in zip(out, starts.tolist(), strict=True):
            # The columns are known to exist; mode="clip" only saves numpy a buffer.
            np.take(self.store.read(start, start + size), self.columns, axis=1, out=window, mode="clip")
        return out

    def training_frames(self, start: int, frames: int) -> NDArray[np.float32]:
        """Returns rows of the store from `start` on, float32 `[frames, C]`; fewer if their training segment ends."""
        segment = int(np.searchsorted(self._training_bounds[0], start, side="right")) - 1
        stop = min(start + frames, int(self._training_bounds[1][segment]))
        return self.store.read(start, stop).take(self.columns, axis=1)

    @cached_property
    def _training_bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First rows of the training segments, sorted, and for each the row after its last."""
        firsts = {segment: self.store.rows(segment.name)[0] for segment in self.segments("train")}
        bounds = sorted((first + segment.start, first + segment.stop) for segment, first in firsts.items())
        return np.array([start for start, _ in bounds]), np.array([stop for _, stop in bounds])

    def normalise(self, motion: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalises `motion [..., C]`, float32 in the data's own units, in place."""
        motion -= self.mean
        motion /= self.std
        return motion

    def clip_names(self, starts: NDArray[np.int64]) -> list[str]:
        """Returns the name of the clip that each window comes from."""
        return [self.store.clip_names[clip] for clip in self._clip_of(starts)]

    def _clip_of(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.store.starts, starts, side="right") - 1

    def _weights(self) -> NDArray[np.float32]:
        """Returns the weight of each column, float32 `[C]`; raises UserError if no weights are known for them."""
        width, bias = len(self.store.mean), self.config.feat_bias
        weights = np.ones(width, np.float32) if bias == 1 else feature_weights(width, bias)
        if weights is None:
            raise UserError(
                f"rvqvae.data.feat_bias: {self.store.folder} has {width} columns, and only the features of HumanML3D "
                "(263) and KIT (251) can be weighted; leave it at 1"
            )
        return weights[self.columns]

    def _statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns mean and std of the columns in use, from the files that the settings name or from the store.

        Raises:
            UserError: a given std is 0 in some column.
        """
        files = self.config.mean_file, self.config.std_file
        if files[0] is None or files[1] is None:
            mean, std = self.store.mean[self.columns], self.store.std[self.columns]
            is_given, source = self.store.has_own_statistics, f"{self.config.path or self.store.folder}: its own std"
        else:
            mean, std = self._of_width(files[0]), self._of_width(files[1], positive=True)
            is_given, source = True, f"{files[1]}:"
        if is_given and self.config.reading_version == 1:
            self._raised = column_ranges(np.flatnonzero(std < np.float32(self.config.std_floor)), self.layout)
        if not is_given or self.config.reading_version == 1:
            return mean, np.maximum(std, np.float32(self.config.std_floor))
        zeros = column_ranges(np.flatnonzero(std == 0), self.layout)
        if zeros:
            way = "give a mean_file and a std_file without 0"
            raise UserError(f"{source} holds 0 for {shortened(zeros, 6)}, and nothing can be divided by that; {way}")
        return mean, std

    def _of_width(self, file: str, positive: bool = False) -> NDArray[np.float32]:
        values = read_statistics(expanded(file), positive)
        if len(values) == len(self.store.mean):
            return values[self.columns]
        if len(values) != self.in_features:
            raise UserError(f"{file}: {len(values)} columns, but the motion has {self.in_features}")
        return values

    def _no_window(self, split: str, segments: list[Segment], size: int) -> str:
        if not segments:
            splits = sorted({segment.split for segment in self.store.segments})
            return (
                f"{self.store.folder}: no clip is in {split} (there is {', '.join(splits)}); "
                "set rvqvae.data.split to hash or time"
            )
        longest = max(segments, key=lambda segment: segment.stop - segment.start)
        frames = longest.stop - longest.start
        key, advice = "window_size", f"use --window_size {frames // MIN_FRAMES * MIN_FRAMES} or less"
        if self.config.window_sizes is not None:
            key, advice = "window_sizes", f"leave {size} out"
        return (
            f"rvqvae.data.{key}: no clip has the {size} frames of a window in {split}; the longest, "
            f"{longest.name}, has {frames}: {advice}"
        )


def store_warnings(store: Store, most: int = 8) -> list[str]:
    """Returns what a user who trains on a store should know: notes of `prepare`, and files left out completely.

    Args:
        most: the largest number of notes; the report has all of them.
    """
    try:
        report = store.report()
    except UserError as error:
        return [str(error)]
    counts = report["notes"].items()
    found = [f"{note} ({counted(count, 'file')})" if count else note for note, count in counts]
    if len(found) > most:
        found[most:] = [f"{len(found) - most:,} more notes are in {store.folder / REPORT}"]
    if store.left_out:
        first = store.left_out[0]
        more = f"; {store.folder / REPORT} names all" if len(store.left_out) > 1 else ""
        found.append(
            f"{len(store.left_out):,} of {report['files']:,} files are left out: {first.file}: {first.reason}{more}"
        )
    return found


def store_of_the_same(config: DataConfig, opened: Sequence[MotionData]) -> Store | None:
    """Returns the store of motion that is already open, if `config` asks for the same one."""
    asked = config.path, settings_of(config)
    return next((data.store for data in opened if asked == (data.config.path, settings_of(data.config))), None)


def open_training_data(profile: Profile, store: Store | None = None, asked: Collection[str] = ()) -> MotionData:
    """Opens a profile's motion. Keys that do not fit its columns are left out: see `MotionData.fitted`.

    Args:
        store: of that motion, if it was checked already; without it, that is done now.
        asked: paths of the keys that the user has given; they are not left out.

    Raises:
        UserError: the motion does not fit the profile, or a key that the user has given.
    """
    config = profile.rvqvae.data
    data = MotionData.open(config) if store is None else MotionData(store, config)
    if BODY_PART in asked and data.body_part is None:
        check_part(config.body_part, str(config.path), data.store.layout, data.store.has_body_parts)
    profile = data.fit(profile, asked)
    check_columns(profile, data.layout, data.store.skeleton, data.body_part)
    data.count_training_windows()
    return data
