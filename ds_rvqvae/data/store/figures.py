"""The figure of a store: joint positions and the root's path in metres, for all kinds of columns."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import to_say
from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.joints.skeletons import KIT_JOINTS, KIT_METRES, KIT_PARENTS
from ds_rvqvae.data.store.store import TABLE, Store
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import MOVING, SMPLX_JOINTS, SMPLX_PARENTS, Channels, Layout, root_channels
from ds_rvqvae.motion.rotations import translation_positions
from ds_rvqvae.motion.sides import sides_by_name, sides_of
from ds_rvqvae.motion.skeleton import Skeleton, builtin_skeleton, joint_places, skeleton_from_json

HUMANML3D_COLUMNS, KIT_COLUMNS = 263, 251
LYING = 0.6
"""Below this vertical fraction of the line from feet to head, a figure is lying down."""
AXES = "xyz"
LOOKED_AT, _LOOKED_AGAIN, _FRAMES = 9, 45, 16
"""Clips that are checked before packing, clips that are checked if one of the first lies, and frames of each."""
_MANY_LIE = 0.2
"""In fewer clips than this fraction, figures that lie on the floor are normal."""
_BODY_JOINTS, _BODY_SIZE = 12, 1.0
"""Smallest number of joints, and size in metres, of a body whose head or feet have no known names."""
_HIP, _FOOT, _TOE = r"hip(?!s)|upleg|thigh|upperleg|femur", r"ankle|foot|toe|heel", r"toe|foot|ball"


@dataclass(frozen=True, eq=False)
class Figure:
    """The figure that a store's columns move.

    Attributes:
        name: its source, in words.
        joint_names, parents: of all joints; the parent of the root is -1.
        sides: int64 `[joints]`, 1 on the figure's left, -1 on its right, 0 in the middle.
        places: gives joint positions for motion `[frames, columns]`, float64 `[frames, joints, 3]` in metres, y up.
    """

    name: str
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    sides: NDArray[np.int64]
    places: Callable[[NDArray[Any]], NDArray[np.float64]]

    @property
    def head(self) -> int | None:
        """Index of the joint that is called head, or whose name contains it."""
        names = [name.lower() for name in self.joint_names]
        return (
            names.index("head")
            if "head" in names
            else next((i for i, name in enumerate(names) if "head" in name), None)
        )

    def joints(self, pattern: str) -> NDArray[np.int64]:
        """Returns the indices of the joints whose names match, int64."""
        return np.flatnonzero([bool(re.search(pattern, name.lower())) for name in self.joint_names])

    @property
    def feet(self) -> NDArray[np.int64]:
        """Indices of the joints of the feet, int64."""
        return self.joints(_FOOT)

    def line(self, places: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Returns the vector from the feet's middle to the head, metres `[frames, 3]`; None if names tell neither."""
        feet = [joint for joint in self.feet.tolist() if joint != 0]
        return None if self.head is None or not feet else places[:, self.head] - places[:, feet].mean(axis=1)

    def front(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the direction that the figure faces, from its left and right: unit vectors in x and z, `[frames, 2]`.

        It is the z axis if left and right are one above the other, or not known.
        """
        hips = np.isin(np.arange(len(self.sides)), self.joints(_HIP))
        chosen = hips if (hips & (self.sides > 0)).any() and (hips & (self.sides < 0)).any() else np.ones_like(hips)
        left, right = chosen & (self.sides > 0), chosen & (self.sides < 0)
        front = np.tile([0.0, 1.0], (len(places), 1))
        if left.any() and right.any():
            x, _, z = np.moveaxis(places[:, left].mean(axis=1) - places[:, right].mean(axis=1), -1, 0)
            length = np.hypot(x, z)
            known = length > 1e-6
            front[known] = np.stack([-z, x], axis=1)[known] / length[known, None]
        return front

    def toes_ahead(self, places: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Returns how far the toes are in front of their parent joints, metres `[frames]`; None without such joints."""
        feet = set(self.feet.tolist())
        toes = [joint for joint in self.joints(_TOE).tolist() if self.parents[joint] in feet]
        if not toes:
            return None
        ahead = (places[:, toes] - places[:, [self.parents[toe] for toe in toes]])[..., [0, 2]].mean(axis=1)
        forward: NDArray[np.float64] = (ahead * self.front(places)).sum(axis=1)
        return forward


def figure_of(store: Store) -> Figure | None:
    """Returns a store's figure, by its own skeleton, the built-in one for SMPL-X, or HumanML3D's or KIT's positions."""
    if any(part.kind in MOVING for part in store.layout):
        try:
            return _of_rotations(store.layout, store.skeleton, store.folder.name)
        except ClipError as error:
            raise UserError(f"{store.folder / TABLE}: not a skeleton: {error}") from None
    width = len(store.mean)
    if width == HUMANML3D_COLUMNS:
        names = SMPLX_JOINTS[:22]
        return Figure(
            "HumanML3D's joint positions",
            names,
            SMPLX_PARENTS[:22],
            sides_by_name(names),
            lambda motion: _placed(motion, 22),
        )
    if width == KIT_COLUMNS:
        return Figure(
            "KIT's joint positions, in millimetres",
            KIT_JOINTS,
            KIT_PARENTS,
            sides_by_name(KIT_JOINTS),
            lambda motion: KIT_METRES * _placed(motion, 21),
        )
    return None


def _of_rotations(layout: Layout, skeleton: dict[str, Any] | None, name: str) -> Figure | None:
    """Returns a figure moved by its joints' columns; raises ClipError if the files' own skeleton is not valid."""
    if skeleton is not None:
        return _turned(layout, skeleton_from_json(skeleton, name), "the files' own skeleton")
    if {part.name for part in layout} >= set(SMPLX_JOINTS[:22]):
        return _turned(layout, builtin_skeleton(), "the built-in skeleton of 1.75 m")
    return None


def _turned(layout: Layout, skeleton: Skeleton, name: str) -> Figure | None:
    if not {part.name for part in layout if part.kind in MOVING} & set(skeleton.joint_names):
        return None

    def places(motion: NDArray[Any]) -> NDArray[np.float64]:
        found = joint_places(motion, layout, skeleton)
        assert found is not None
        return found

    return Figure(name, skeleton.joint_names, skeleton.parents, sides_of(skeleton), places)


def _placed(motion: NDArray[Any], joints: int) -> NDArray[np.float64]:
    """Returns HumanML3D's joint positions `[frames, joints, 3]`: the root over the origin, facing z in all frames."""
    places = np.zeros((len(motion), joints, 3))
    places[:, 0, 1] = motion[:, 3]
    places[:, 1:] = motion[:, 4 : 4 + 3 * (joints - 1)].reshape(len(motion), joints - 1, 3)
    return places


@dataclass(frozen=True, eq=False)
class Root:
    """The root's path: `path` gives metres, float64 `[frames, 3]`, for motion `[frames, columns]`, from x = z = 0."""

    name: str
    path: Callable[[NDArray[Any]], NDArray[np.float64]]


def root_of(store: Store) -> Root | None:
    """Returns how to compute the root's path from a store's columns; None if they do not have it."""
    part = root_channels(store.layout)
    if part is not None:
        return Root(part.name, lambda motion: _path(motion, part))
    if not any(part.kind in MOVING for part in store.layout):
        unit = {HUMANML3D_COLUMNS: 1.0, KIT_COLUMNS: KIT_METRES}.get(len(store.mean))
        if unit is not None:
            return Root("columns 0 to 3", lambda motion: unit * _integrated(motion))
    return None


def _path(motion: NDArray[Any], part: Channels) -> NDArray[np.float64]:
    columns = motion[:, part.start : part.stop].astype(np.float64)
    if part.kind == "translation":
        return translation_positions(columns)
    return columns - columns[:1] * [1.0, 0.0, 1.0]


def _integrated(motion: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the root's path from HumanML3D features: half the rotation about y per frame, and the root's own step."""
    turn, x, z = np.zeros((3, len(motion)))
    turn[1:] = 2 * np.cumsum(motion[:-1, 0], dtype=np.float64)
    x[1:], z[1:] = motion[:-1, 1], motion[:-1, 2]
    sine, cosine = np.sin(turn), np.cos(turn)
    # The features are rotated to face z; this rotates them back about y.
    x, z = x * cosine - z * sine, x * sine + z * cosine
    return np.stack([np.cumsum(x), motion[:, 3].astype(np.float64), np.cumsum(z)], axis=1)


class Posture(NamedTuple):
    """How a figure stands."""

    tall: float
    """Metres from the feet to the head, or the largest extent of a body whose head or feet have no known names."""
    shares: tuple[float, float, float]
    """The fraction of `tall` along each axis."""
    clip: str = ""
    is_upside_down: bool = False

    @property
    def lies(self) -> bool:
        """Whether the figure lies, or stands on its head."""
        return self.shares[1] < LYING or self.is_upside_down

    @property
    def axis(self) -> str:
        """The axis along which the figure is longest."""
        return "-y" if self.is_upside_down else AXES[max(range(3), key=self.shares.__getitem__)]

    @property
    def words(self) -> str:
        """Its lengths along that axis and along y, in words."""
        if self.is_upside_down:
            return f"{self.shares[1] * self.tall:.2f} m along -y"
        return f"{max(self.shares) * self.tall:.2f} m along {self.axis} and {self.shares[1] * self.tall:.2f} m along y"


def posture_of(take: Take) -> Posture | None:
    """Returns how a take's figure stands, as the median of some frames; None without a figure or finite frames."""
    motion = take.motion[np.linspace(0, len(take.motion) - 1, min(len(take.motion), _FRAMES)).astype(np.int64)]
    motion = motion[np.isfinite(motion).all(axis=1)]
    try:
        figure = _of_rotations(take.layout, take.skeleton, take.name) if len(motion) else None
    except ClipError:
        return None
    if figure is None:
        return None
    places = figure.places(motion)
    line = figure.line(places)
    if line is not None:
        return posture_along(line)._replace(clip=take.name)
    spread = np.median(np.ptp(places, axis=1), axis=0)
    if len(figure.joint_names) < _BODY_JOINTS or spread.max() < _BODY_SIZE:
        return None
    x, y, z = (spread / spread.max()).tolist()
    return Posture(float(spread.max()), (x, y, z), take.name)


def posture_along(line: NDArray[np.float64]) -> Posture:
    """Returns the posture for a vector from the feet to the head, `[frames, 3]`."""
    tall = float(np.median(np.linalg.norm(line, axis=1)))
    x, y, z = (np.median(np.abs(line), axis=0) / max(tall, 1e-9)).tolist()
    return Posture(tall, (x, y, z), is_upside_down=bool(y >= LYING and np.median(line[:, 1]) < 0))


def check_upright(reader: Reader, names: Sequence[str], first: Sequence[Posture] | None = None) -> None:
    """Checks in a sample of clips whether figures lie.

    If most lie and `rvqvae.data.up_axis` does not say which axis points up, that is an error. It is only a note if many
    but not most lie, if z was turned up, if the format is never turned, and by the rules of versions up to 0.2.

    Args:
        first: the postures of some clips, if they have been read already.

    Raises:
        UserError: most figures lie.
    """
    config = reader.config
    before = config.reading_version == 1
    if config.up_axis == "y" and not before:
        return
    if config.up_axis == "z" and not reader.has_up_axis:
        reader.notes += (f"rvqvae.data.up_axis z has no effect on {reader.format}",)
    seen = _postures(reader, names, LOOKED_AT) if first is None else first
    if len(names) > LOOKED_AT and any(posture.lies for posture in seen):
        seen = _postures(reader, names, _LOOKED_AGAIN)
    lying = [posture for posture in seen if posture.lies]
    if not lying or len(lying) < _MANY_LIE * len(seen):
        return
    said = _lying_words(lying, len(seen))
    if before:
        again = "prepare again with reading_version 2 to choose the axis"
        reader.notes += (f"{said}; read by the rules of version 0.2 and earlier; {again}",)
    elif not reader.has_up_axis:
        reader.notes += (f"{said}; rvqvae.data.up_axis has no effect on {reader.format}",)
    elif config.up_axis == "z":
        reader.notes += (f"{said}; this is after turning them by rvqvae.data.up_axis z",)
    elif 2 * len(lying) <= len(seen):
        first_of = ", ".join(posture.clip for posture in lying[:3])
        reader.notes += (f"{said}, as in {first_of}: does another axis point up in some files?",)
    else:
        axis = _usual_axis(lying)
        turn = f"{to_say('up_axis', 'z')} turns z up, " if axis == "z" else f"no setting turns {axis} up, "
        as_it_is = f"{to_say('up_axis', 'y')} reads them as they are"
        raise UserError(f"{reader.path}: {said}; the files do not say which axis points up: {turn}{as_it_is}")


def lying_note(reader: Reader, take: Take) -> str | None:
    """Returns a note if the figure of a single file lies and `rvqvae.data.up_axis` is not y."""
    config = reader.config
    if not reader.has_up_axis or config.up_axis == "y":
        return None
    posture = posture_of(take)
    if posture is None or not posture.lies:
        return None
    turned = (
        "this is after turning it by rvqvae.data.up_axis z" if config.up_axis == "z" else "does another axis point up?"
    )
    how = "stands on its head" if posture.is_upside_down else f"lies along {posture.axis}"
    return f"the figure {how}; y should be up: {turned}"


def _usual_axis(lying: Sequence[Posture]) -> str:
    return Counter(posture.axis for posture in lying).most_common(1)[0][0]


def _lying_words(lying: Sequence[Posture], looked_at: int) -> str:
    axis = _usual_axis(lying)
    words = next(posture for posture in lying if posture.axis == axis).words
    of = f"{len(lying)} of {looked_at} checked clips"
    how = "stand on their heads" if axis == "-y" else "lie"
    return f"figures {how}: in {of}, they extend {words} from feet to head; y should be up"


def _postures(reader: Reader, names: Sequence[str], most: int) -> list[Posture]:
    """Returns postures of a sample of clips, of those that can be read and have a figure."""
    found = []
    for name in names[:: -(-len(names) // most)] if names else ():
        with suppress(ClipError):
            found.append(posture_of(reader.take(name)))
    return [posture for posture in found if posture is not None]
