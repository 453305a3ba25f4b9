"""Drawing a skeleton as a stick figure, as seen by a fixed camera."""

from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle
from numpy.typing import NDArray

from ds_rvqvae.motion.sides import sides_of
from ds_rvqvae.motion.skeleton import Skeleton

LEFT, RIGHT, MIDDLE = "#1f77b4", "#d9541e", "#3a3a3a"
_FINGER = 0.055
HEAD_RADIUS = 0.10
_TURN, _TILT, _DISTANCE = np.radians(25.0), np.radians(8.0), 6.0


@dataclass(frozen=True)
class Camera:
    """A camera in front of the figure, slightly to the side and above.

    Attributes:
        azimuth: direction of the camera, radians about y from z towards x.
    """

    azimuth: float

    @classmethod
    def before(cls, places: NDArray[np.float64], skeleton: Skeleton) -> "Camera":
        """Returns a camera in front of a moving figure `[frames, joints, 3]`, by the mean direction that it faces."""
        sides = sides_of(skeleton)
        if not (sides > 0).any() or not (sides < 0).any():
            return cls(_TURN)
        left = (places[:, sides > 0].mean(axis=1) - places[:, sides < 0].mean(axis=1)).mean(axis=0)
        return cls(float(np.arctan2(-left[2], left[0])) + _TURN)

    def project(self, places: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
        """Projects positions `[..., 3]` to the picture: to the right, up, and towards the camera, `[..., 3]`.

        Args:
            centre: `[..., 3]` or `[3]`, the point that the camera faces; there one metre is one unit.
        """
        x, y, z = np.moveaxis(places - centre, -1, 0)
        sine, cosine = np.sin(self.azimuth), np.cos(self.azimuth)
        x, z = x * cosine - z * sine, x * sine + z * cosine
        y, z = y * np.cos(_TILT) - z * np.sin(_TILT), y * np.sin(_TILT) + z * np.cos(_TILT)
        nearness = _DISTANCE / np.maximum(_DISTANCE - z, 0.1)
        return np.stack([x * nearness, y * nearness, z], axis=-1)


class StickFigure:
    """One figure in an Axes: bones coloured by side, and a ring for the joint called head and its children.

    Args:
        axes: in the units of `Camera.project`.
        color: of all bones; by default left, right and middle bones have one colour each.
        width: of bones in points; fingers are half as wide.
        animated: whether the caller draws the artists itself, over a background.
        joints: int64, the lower ends of the bones to draw; all by default.
    """

    def __init__(
        self,
        axes: Axes,
        skeleton: Skeleton,
        color: str | None = None,
        width: float = 2.5,
        animated: bool = False,
        joints: NDArray[np.int64] | None = None,
    ) -> None:
        names, parents = [name.lower() for name in skeleton.joint_names], np.asarray(skeleton.parents)
        drawn = np.isin(np.arange(len(parents)), np.arange(len(parents)) if joints is None else joints)
        self._head = names.index("head") if "head" in names[1:] and drawn[names.index("head")] else None
        # Jaw and eyes would only clutter the ring.
        clutter = np.zeros_like(drawn) if self._head is None else parents == self._head
        self._joints = np.flatnonzero(drawn & (parents >= 0) & ~clutter)
        self._parents = parents[self._joints]
        sides = sides_of(skeleton)[self._joints]
        self._colors = np.where(sides > 0, LEFT, np.where(sides < 0, RIGHT, MIDDLE)) if color is None else color
        lengths = np.linalg.norm(skeleton.offsets[self._joints], axis=1)
        self._widths = np.where(lengths < _FINGER, width / 2, width)
        self._bones = LineCollection([], capstyle="round", animated=animated)
        axes.add_collection(self._bones, autolim=False)
        self.artists: list[Artist] = [self._bones]
        if self._head is not None:
            self._neck = skeleton.parents[self._head]
            self._ring = Circle((0, 0), HEAD_RADIUS, fill=False, linewidth=width, animated=animated)
            self._ring.set_edgecolor(color or MIDDLE)
            axes.add_patch(self._ring)
            self.artists.append(self._ring)

    def place(self, joints: NDArray[np.float64], colors: NDArray[np.float64] | None = None) -> None:
        """Moves the joints to `[joints, 3]` of `Camera.project`; `colors` `[joints, 4]` colours each joint's bone."""
        bones = np.stack([joints[self._parents], joints[self._joints]], axis=1)
        far_to_near = bones[..., 2].mean(axis=1).argsort()
        self._bones.set_segments([*bones[far_to_near, :, :2]])
        self._bones.set_linewidth(self._widths[far_to_near])
        if colors is not None:
            self._bones.set_color(colors[self._joints[far_to_near]])
        else:
            self._bones.set_color(self._colors if isinstance(self._colors, str) else self._colors[far_to_near])
        if self._head is not None:
            self._place_head(self._head, joints, colors)

    def _place_head(self, head: int, joints: NDArray[np.float64], colors: NDArray[np.float64] | None) -> None:
        place = joints[head, :2]
        way = place - joints[self._neck, :2]
        x, y = (place + way / max(float(np.linalg.norm(way)), 1e-6) * HEAD_RADIUS).tolist()
        self._ring.set_center((x, y))
        if colors is not None:
            self._ring.set_edgecolor(colors[head])
