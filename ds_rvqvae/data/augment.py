"""Random changes of training windows: mirrored, at another speed, with noise or an offset, scaled, or mixed.

Each is a pure function of the seed and of a sample's position in the run, so it depends neither on the number of ranks
nor on where a run was resumed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import AugmentConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import MOVING, SMPLX_JOINTS, Layout, rotation_columns
from ds_rvqvae.motion.rotations import decimation, resample
from ds_rvqvae.motion.sides import partners

# The purpose of a draw, as part of its seed; data/order.py uses smaller numbers.
_CHANGES, _NOISE, _OFFSET, _MIX, _SCALE = 16, 17, 18, 19, 20

_LARGEST_ASYMMETRY = 0.25
"""Asymmetry of a figure at rest, as a fraction of its bones' lengths; real bodies have a few hundredths."""


class Draws(NamedTuple):
    """The changes drawn for one sample."""

    mirror: bool
    speed: float
    """Source frames per frame; 1 leaves the timing as it is."""

    @property
    def changes(self) -> bool:
        """Whether the window must be computed from frames of the store, before it is normalised."""
        return self.mirror or self.speed != 1


class Augment:
    """The changes that `rvqvae.data.augment` asks for.

    A sample's place in the run, its `position`, counts over all ranks and from the run's first step.

    Args:
        layout: of the columns in use.
        seed: of the run.
        skeleton: `Store.skeleton`, which tells the axis from right to left; without it, the axis is x.

    Raises:
        UserError: mirroring is asked for, but the columns cannot be mirrored; the message names them.
    """

    def __init__(
        self, layout: Layout, config: AugmentConfig, seed: int, skeleton: Mapping[str, Any] | None = None
    ) -> None:
        self.config, self.seed = config, seed
        self._mirror = Mirror(layout, skeleton) if config.mirror else None
        self._parts = [np.arange(part.start, part.stop) for part in layout]
        self._rotations = rotation_columns(layout)
        roots = (part for part in layout if part.kind == "translation" and part.width == 3)
        self._velocities = np.array([start for part in roots for start in (part.start, part.start + 2)], np.int64)

    def draw(self, position: int) -> Draws:
        """Draws the changes of the sample at `position`."""
        mirror, pace = self._generator(position, _CHANGES).random(2)
        speed = 1 + self.config.time_scale * (2 * pace - 1)
        return Draws(bool(mirror < self.config.mirror), 1.0 if _is_one(speed) else float(speed))

    @staticmethod
    def needed(size: int, speed: float) -> int:
        """Returns the number of source frames that a window of `size` frames takes at `speed`."""
        return math.ceil((size - 1) * speed) + 1

    def apply(self, motion: NDArray[np.float32], draws: Draws, size: int) -> NDArray[np.float32]:
        """Returns a window of `size` frames with the drawn changes.

        Rotations are interpolated on the sphere, the root's positions linearly, so that its velocities fit the speed;
        other columns linearly.

        Args:
            motion: float32 `[frames, C]` in the data's own units, from the window's first frame on: `needed(size,
                speed)` frames, or as many as the clip still has, but at least `size`. If they are too few, the speed is
                lowered to what they allow.

        Returns:
            float32 `[size, C]`, which may be a view of `motion`.

        Raises:
            ValueError: fewer than `size` frames for a window that is not slowed down.
            UserError: six columns that should be a rotation are not one.
        """
        speed = min(draws.speed, (len(motion) - 1) / max(size - 1, 1))
        if len(motion) < min(size, self.needed(size, draws.speed)):
            raise ValueError(f"{len(motion)} frames for a window of {size} at speed {draws.speed:g}")
        window = motion[:size] if size == 1 or _is_one(speed) else self._at_speed(motion, speed, size)
        return self._mirror(window) if draws.mirror and self._mirror else window

    def add_noise(self, normalised: NDArray[np.float32], position: int) -> None:
        """Adds the noise of the sample at `position` to its normalised window, float32 `[size, C]`, in place."""
        if self.config.noise:
            noise = self._generator(position, _NOISE).standard_normal(normalised.shape, np.float32)
            noise *= np.float32(self.config.noise)
            normalised += noise

    def add_offset(self, normalised: NDArray[np.float32], position: int) -> None:
        """Adds one offset per column to the normalised window at `position`, float32 `[size, C]`, in place."""
        if self.config.offset:
            offset = self._generator(position, _OFFSET).standard_normal(normalised.shape[1], np.float32)
            normalised += offset * np.float32(self.config.offset)

    def scale(self, normalised: NDArray[np.float32], position: int) -> None:
        """Multiplies the columns of each part of the normalised window at `position`, `[size, C]`, in place."""
        if self.config.scale:
            drawn = self._generator(position, _SCALE).standard_normal(len(self._parts), np.float32)
            factors = np.exp(np.float32(self.config.scale) * drawn)
            normalised *= np.repeat(factors, [len(columns) for columns in self._parts])

    def mixed_from(
        self, position: int, windows: int, reach: NDArray[np.float64] | None = None
    ) -> list[tuple[int, NDArray[np.int64]]]:
        """Draws the windows from which the sample at `position` takes columns, each with these: int64 `[columns]`.

        The layout's parts form a ring that is cut into `mix_windows` pieces; the sample keeps one piece of its own.

        Args:
            reach: `Groups.reach`, if windows are not to be drawn evenly.
        """
        pieces = min(self.config.mix_windows, len(self._parts))
        if not self.config.mix or pieces < 2:
            return []
        generator = self._generator(position, _MIX)
        if generator.random() >= self.config.mix:
            return []
        ring = np.roll(np.arange(len(self._parts)), -int(generator.integers(len(self._parts))))
        cuts = np.sort(1 + generator.choice(len(ring) - 1, pieces - 1, replace=False))
        return [
            (_draw_window(generator, windows, reach), np.concatenate([self._parts[part] for part in stretch]))
            for stretch in np.split(ring, cuts)[1:]
        ]

    def _generator(self, position: int, what: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(what, position)))

    def _at_speed(self, motion: NDArray[np.float32], speed: float, size: int) -> NDArray[np.float32]:
        motion = motion[: self.needed(size, speed)]
        try:
            window = resample(motion, self._rotations, speed, 1.0)[:size]
        except ValueError as error:
            raise UserError(
                f"rvqvae.data.augment.time_scale: motion cannot be played at another speed: {error}"
            ) from None
        if self._velocities.size:
            velocities = motion[:, self._velocities].astype(np.float64)
            places = np.cumsum(velocities, axis=0)
            times, frames = np.arange(size) * speed, np.arange(len(motion))
            at_times = np.stack([np.interp(times, frames, column) for column in places.T], axis=1)
            window[:, self._velocities] = np.diff(at_times, axis=0, prepend=0)
            window[0, self._velocities] = velocities[0] * speed
        return window


def _draw_window(generator: np.random.Generator, windows: int, reach: NDArray[np.float64] | None) -> int:
    if reach is None:
        return int(generator.integers(windows))
    return int(np.searchsorted(reach, reach[-1] * generator.random(), side="right"))


def _is_one(speed: float) -> bool:
    """Returns whether `resample` would leave the frames as they are."""
    return decimation(speed, 1.0) == 1


class Mirror:
    """The mirror image of motion at an upright plane between left and right; left and right joints change places.

    A rotation R becomes S R S, with S = diag(-1, 1, 1) for the plane x = 0: three of its six columns change sign.

    Args:
        layout: of the columns.
        skeleton: `joint_names`, `parents` and `offsets` of the figure.

    Raises:
        UserError: columns of unknown meaning or of a face, a joint without its partner on the other side, names that
            do not tell the sides, or a figure whose two sides are not mirror images of each other.
    """

    def __init__(self, layout: Layout, skeleton: Mapping[str, Any] | None = None) -> None:
        self._check(layout, skeleton)
        self.axis = 0 if skeleton is None else _side_axis(skeleton)
        """The axis whose sign changes: 0 for x, 2 for z."""
        sides = np.ones(3, np.float32)
        sides[self.axis] = -1
        self.columns = np.empty(layout[-1].stop, np.int64)
        """int64 `[C]`: the column from which each column takes its values."""
        self.signs = np.empty(layout[-1].stop, np.float32)
        """float32 `[C]`, 1 or -1: the factor of each column."""
        for kind in {part.kind for part in layout}:
            parts = {part.name: part for part in layout if part.kind == kind}
            for name, partner in partners(list(parts), _no_partner).items():
                part, source = parts[name], parts[partner]
                self.columns[part.start : part.stop] = np.arange(source.start, source.stop)
                self.signs[part.start : part.stop] = (
                    np.outer(sides[:2], sides).reshape(-1) if kind == "rotation_6d" else sides
                )

    def __call__(self, motion: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns a mirrored copy of `motion [..., C]`, in the data's own units."""
        return motion[..., self.columns] * self.signs

    @staticmethod
    def _check(layout: Layout, skeleton: Mapping[str, Any] | None) -> None:
        for part in layout:
            if part.kind in ("expression", "feature") or (part.kind != "rotation_6d" and part.width != 3):
                raise UserError(
                    f"rvqvae.data.augment.mirror: {part.name} ({part.width} columns of kind {part.kind}) cannot be "
                    "mirrored; choose another body part, or set it to 0"
                )
        joints = [part.name for part in layout if part.kind in MOVING]
        known = set(SMPLX_JOINTS)
        if skeleton is not None and _has_sides(skeleton["joint_names"]):
            known |= set(skeleton["joint_names"])
        if joints and not _has_sides(joints) and not set(joints) <= known:
            raise UserError(
                "rvqvae.data.augment.mirror: the joints' names do not tell left from right: "
                f"{', '.join(joints[:4])}; set it to 0"
            )


def _no_partner(name: str) -> None:
    raise UserError(
        f"rvqvae.data.augment.mirror: {name} has no partner on the other side in the columns in use; choose a body "
        "part that has both, or set it to 0"
    )


def _has_sides(names: Sequence[str]) -> bool:
    return any(name != other for name, other in partners(names).items())


def _side_axis(skeleton: Mapping[str, Any]) -> int:
    """Returns the axis (0: x, 2: z) along which a figure's two sides are opposite each other; raises UserError."""
    names, offsets = list(skeleton["joint_names"]), np.asarray(skeleton["offsets"], np.float64)
    place = {name: index for index, name in enumerate(names)}
    other = np.array([place[partner] for partner in partners(names).values()])
    bones = np.array([parent >= 0 for parent in skeleton["parents"]])  # the root's offset is a position in the world
    here, there = offsets[bones], offsets[other][bones]
    opposite = (np.minimum(np.abs(here), np.abs(there)) * (here * there < 0)).sum(axis=0)
    axis = int(opposite.argmax())
    mirrored = here.copy()
    mirrored[:, axis] *= -1
    asymmetry = np.linalg.norm(mirrored - there, axis=1).sum() / max(np.linalg.norm(here, axis=1).sum(), 1e-12)
    if not opposite[axis] or asymmetry > _LARGEST_ASYMMETRY:
        raise UserError(
            "rvqvae.data.augment.mirror: left and right of this skeleton at rest are not mirror images of each other, "
            "so its rotations cannot be mirrored; set it to 0"
        )
    if axis == 1:
        raise UserError(
            "rvqvae.data.augment.mirror: left and right of this skeleton are opposite along y, the axis that points "
            "up; see rvqvae.data.up_axis"
        )
    return axis
