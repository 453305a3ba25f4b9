"""Rows of poses: the bones that a body part moves, with the original and the reconstruction on top of each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ds_rvqvae.motion.layout import MOVING, Layout
from ds_rvqvae.motion.skeleton import Skeleton
from ds_rvqvae.viz.names import name_words
from ds_rvqvae.viz.stick_figure import HEAD_RADIUS, Camera, StickFigure

TRUTH, FOUND = "#222222", "#e6550d"
_MOST_ROWS, _FEWEST, _MOST = 2, 5, 11
_HEIGHT = 3.0
"""The largest height of a row, in inches; the number of poses side by side follows from it."""
_SMALL = 0.6
"""Metres: a smaller group without the root is drawn from its flat side, as a hand from its back."""
_STILL = 1e-6
_OF_FEET = ("foot", "toe", "ankle")


@dataclass(frozen=True, eq=False)
class Group:
    """Connected bones.

    Attributes:
        joints: int64, the lower ends of the bones.
        top: the joint above all of them.
        centre: the joint where the bones first branch; original and reconstruction are aligned at it.
    """

    joints: NDArray[np.int64]
    top: int
    centre: int


def moved_groups(layout: Layout, skeleton: Skeleton) -> list[Group]:
    """Returns the bones that a layout's columns turn and those that lead to its joints, in the two largest groups.

    A group without any turned bone is dropped.
    """
    names = {part.name for part in layout if part.kind in MOVING}
    covered = [name in names for name in skeleton.joint_names]
    turned = [
        parent >= 0 and covered[parent] and bool(offset.any())
        for parent, offset in zip(skeleton.parents, skeleton.offsets, strict=True)
    ]
    top_of: dict[int, int] = {}
    bones: dict[int, list[int]] = {}
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0 and (covered[parent] or covered[joint]):
            top = top_of.setdefault(parent, parent)
            top_of[joint] = top
            bones.setdefault(top, []).append(joint)
    groups = []
    for top, joints in sorted(bones.items(), key=lambda item: -len(item[1]))[:_MOST_ROWS]:
        parents = [skeleton.parents[joint] for joint in joints]
        if any(turned[joint] for joint in joints):
            centre = next((joint for joint in [top, *joints] if parents.count(joint) > 1), top)
            groups.append(Group(np.array(joints, np.int64), top, centre))
    return sorted(groups, key=lambda group: group.top)


class PoseRow:
    """Poses of one group of bones, side by side.

    Args:
        truth, found: joint positions `[T, J, 3]` in metres, of the original and of the reconstruction.
        width: of the row, in inches.
        has_root: whether the layout has the root's position; without it the root stays at the skeleton's offset.

    Attributes:
        height: of the row, in inches.
    """

    def __init__(
        self,
        truth: NDArray[np.float64],
        found: NDArray[np.float64],
        skeleton: Skeleton,
        group: Group,
        width: float,
        has_root: bool,
    ) -> None:
        self._skeleton, self._group = skeleton, group
        self._is_whole = group.top == 0
        self._root_is_still = has_root and bool((np.ptp(truth[:, 0], axis=0) <= _STILL).all())
        self._has_ground = self._is_whole and (has_root or self._has_feet())
        together = found + truth[:, [group.centre]] - found[:, [group.centre]]
        self._truth, self._found = self._seen(truth, together)
        shown = np.append(group.joints, group.top)
        both = np.concatenate([self._truth[:, shown], self._found[:, shown]], axis=1)[..., :2]
        self._spacing, self._low, self._high = self._extent(both)
        # Sized by the original alone, so that pictures of one clip at several steps have the same size.
        spacing, low, high = self._extent(self._truth[:, shown, :2])
        tall = 1.3 * (high - low) / spacing
        self._count = int(np.clip(round(width * tall / _HEIGHT), _FEWEST, _MOST))
        self.height = float(min(width * tall / self._count, _HEIGHT)) + 0.3
        self._middles = (both[..., 0].min(axis=1) + both[..., 0].max(axis=1)) / 2

    def draw(self, axes: Axes, fps: float) -> None:
        """Draws the poses, each with its time in seconds below."""
        frames = np.linspace(0, len(self._truth) - 1, self._count).round().astype(int)
        margin = 0.04 * (self._high - self._low)
        size = 2.0 if self._is_whole else 3.0
        if self._has_ground:
            axes.axhline(self._low, color="#cccccc", linewidth=1.0, zorder=0)
        for pose, frame in enumerate(frames):
            column = pose * self._spacing
            move = np.array([column - self._middles[frame], 0.0, 0.0])
            for joints, color, width in ((self._truth, TRUTH, 1.2 * size), (self._found, FOUND, 0.6 * size)):
                StickFigure(axes, self._skeleton, color, width, joints=self._group.joints).place(joints[frame] + move)
            axes.text(column, self._low - 2 * margin, f"{frame / fps:.1f} s", ha="center", va="top", fontsize=8)
        axes.set_xlim(-self._spacing / 2, self._spacing * (self._count - 0.5))
        axes.set_ylim(self._low - 6 * margin, self._high + margin)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title(self._title(), fontsize=9, loc="left")

    def _title(self) -> str:
        names = self._skeleton.joint_names
        centre = name_words(names[self._group.centre], 30)
        if not self._is_whole:
            return f"below {name_words(names[self._group.top], 30)}, aligned at {centre}"
        ground = "; the line is at the lowest joint" if self._has_ground else ""
        still = "; the root does not move" if self._root_is_still else ""
        return f"poses, aligned at {centre}{ground}{still}"

    def _extent(self, points: NDArray[np.float64]) -> tuple[float, float, float]:
        """Returns for points `[T, joints, 2]` the metres between poses, and the lowest and the highest height."""
        low, high = float(points[..., 1].min()), float(points[..., 1].max())
        high += 2 * HEAD_RADIUS if self._has_head() else 0.0
        return max(1.15 * float(np.ptp(points[..., 0], axis=1).max()), 0.3 * (high - low), 1e-3), low, high

    def _has_feet(self) -> bool:
        names = [self._skeleton.joint_names[joint].lower() for joint in self._group.joints]
        return any(word in name for name in names for word in _OF_FEET)

    def _has_head(self) -> bool:
        names = [name.lower() for name in self._skeleton.joint_names]
        return "head" in names[1:] and names.index("head") in self._group.joints

    def _seen(self, *both: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
        """Returns joint positions to the right, up and towards the viewer, metres `[T, J, 3]` each."""
        group, truth = self._group, both[0]
        centre = truth[:, [group.centre]]
        relative = truth[:, group.joints] - centre
        if self._is_whole or np.ptp(relative, axis=1).max() > _SMALL:
            camera = Camera.before(truth, self._skeleton)
            return [camera.project(places, centre * [1.0, 0.0, 1.0]) for places in both]
        points = relative.reshape(-1, 3)
        depth, _, longest = np.linalg.eigh(points.T @ points)[1].T
        depth = depth if depth[1] >= 0 else -depth
        up = points.mean(axis=0)
        up = up - (up @ depth) * depth
        up = up / np.linalg.norm(up) if np.linalg.norm(up) > 1e-6 else longest
        view = np.stack([np.cross(up, depth), up, depth])
        return [(places - centre) @ view.T for places in both]
