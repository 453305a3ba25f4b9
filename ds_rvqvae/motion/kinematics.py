"""Rotations and forward kinematics in torch."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.motion import recovery
from ds_rvqvae.motion.layout import Layout, root_channels, rotation_columns
from ds_rvqvae.motion.skeleton import Skeleton, measured_joints, moved_joints

FEET = ("left_foot", "right_foot", "LeftToeBase", "RightToeBase", "LeftToe", "RightToe", "left_toe", "right_toe")
"""Joints at the balls of the feet: SMPL-X's names, those of BVH files, and KIT's."""


class Kinematics:
    """Positions of a skeleton's joints, with one matrix product for all joints of the same depth.

    The positions equal those of `skeleton.joint_places` minus the root's; that function computes them in numpy, joint
    by joint.

    Args:
        layout: of the motion's columns: rotations, angles and slides, or positions relative to the root. Joints that it
            does not name stay at rest.
        skeleton: the skeleton that is moved.
        device: the device of the motion.

    Attributes:
        measured: int64, the joints that the layout names and that its columns move. A rotation moves the joints below
            its own. So the uppermost joint of a layout is not measured, nor a joint that lies on it.
        feet: int64, the joints of `FEET` that move.
        has_root: whether the layout has the root's position.
    """

    floor_is_0 = False
    """Whether the floor is at y = 0."""

    def __init__(self, layout: Layout, skeleton: Skeleton, device: torch.device | str = "cpu") -> None:
        names, parents = skeleton.joint_names, skeleton.parents
        self._device, self.name, self.joint_names = device, skeleton.name, skeleton.joint_names
        turned = [part for part in layout if part.kind == "rotation_6d" and part.name in names]
        self._columns = torch.from_numpy(rotation_columns(tuple(turned))).to(device)
        self._turned = self._indices(names.index(part.name) for part in turned)
        self._offsets = self._floats(skeleton.offsets)
        self._rest = None if skeleton.rotations is None else self._floats(skeleton.rotations)
        self._take_angles(layout, skeleton)
        placed = [part for part in layout if part.kind == "relative_position" and part.name in names]
        self._place_columns = self._indices(column for part in placed for column in range(part.start, part.stop))
        self._placed = self._indices(names.index(part.name) for part in placed)
        self._by_depth = []
        for joints in _depths(parents)[1:]:
            self._by_depth.append((self._indices(joints), self._indices(parents[joint] for joint in joints)))
        self.measured = self._indices(measured_joints(layout, skeleton))
        moved = moved_joints(layout, skeleton)
        self.feet = self._indices(joint for joint, name in enumerate(names) if moved[joint] and name in FEET)
        self._root = root_channels(layout)
        self.has_root = self._root is not None

    def _take_angles(self, layout: Layout, skeleton: Skeleton) -> None:
        """Finds the columns of angles and slides, with their axes."""
        names, axes, slides = skeleton.joint_names, skeleton.axes, skeleton.slides
        parts = [part for part in layout if part.kind == "angle" and part.width == 1 and part.name in names]
        parts = [] if axes is None else parts
        by_joint = {names.index(part.name): part.start for part in parts}
        sliding = [joint for joint in by_joint if slides is not None and slides[joint]]
        hinges = [joint for joint in by_joint if joint not in sliding]
        self._hinges, self._slides = self._indices(hinges), self._indices(sliding)
        self._angle_columns = self._indices(by_joint[joint] for joint in hinges)
        self._slide_columns = self._indices(by_joint[joint] for joint in sliding)
        self._hinge_axes = self._floats([] if axes is None else axes[hinges]).reshape(-1, 3)
        self._slide_axes = self._floats([] if axes is None else axes[sliding]).reshape(-1, 3)

    def _indices(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self._device)

    def _floats(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float64, device=self._device)

    def roots(self, motion: Tensor) -> Tensor:
        """Returns the root's positions, fp64 `[T, 3]` metres, of motion `[T, C]`; velocities start at x = z = 0."""
        if self._root is None:
            raise ValueError("the layout has no columns for the root's position")
        places = motion[:, self._root.start : self._root.stop].double()
        if self._root.kind == "position":
            return places
        x, y, z = places.T
        return torch.stack([x.cumsum(0) - x[0], y, z.cumsum(0) - z[0]], dim=1)

    def places(self, motion: Tensor) -> Tensor:
        """Returns joint positions `[T, J, 3]` in metres, with the root at 0, of motion `[T, C]` in the data's units."""
        if len(self._placed):
            return self._places_as_given(motion)
        frames = len(motion)
        identity = torch.eye(3, dtype=motion.dtype, device=motion.device)
        turns = identity.repeat(frames, len(self._offsets), 1, 1)
        turns[:, self._turned] = matrices_from_6d(motion[:, self._columns])
        if len(self._hinges):
            axes = self._hinge_axes.to(motion.dtype)
            turns[:, self._hinges] = matrices_about(axes, motion[:, self._angle_columns])
        ways = self._offsets.to(motion.dtype).expand(frames, -1, -1)
        if len(self._slides):
            slid = motion[:, self._slide_columns, None] * self._slide_axes.to(motion.dtype)
            if self._rest is not None:
                slid = (self._rest[self._slides].to(motion.dtype) @ slid.unsqueeze(-1)).squeeze(-1)
            ways = ways.index_add(1, self._slides, slid)
        if self._rest is not None:
            turns = self._rest.to(motion.dtype) @ turns
        places = motion.new_zeros(frames, len(self._offsets), 3)
        for joints, parents in self._by_depth:
            above = turns[:, parents]
            places[:, joints] = places[:, parents] + (above @ ways[:, joints].unsqueeze(-1)).squeeze(-1)
            turns[:, joints] = above @ turns[:, joints]
        return places

    def _places_as_given(self, motion: Tensor) -> Tensor:
        """Returns the positions that the motion has; joints without columns keep their rest offset to their parents."""
        places = motion.new_zeros(len(motion), len(self._offsets), 3)
        for joints, parents in self._by_depth:
            places[:, joints] = places[:, parents] + self._offsets[joints].to(motion.dtype)
            given = torch.isin(self._placed, joints)
            own = motion[:, self._place_columns].view(len(motion), -1, 3)
            places[:, self._placed[given]] = own[:, given]
        return places


class RecoveredJoints:
    """Positions of the joints of 263, 251 or 272 columns (`ds_rvqvae.motion.recovery`), with the interface of
    `Kinematics`.

    Args:
        width: number of columns.
        device: the device of the motion.

    Attributes:
        measured: int64, all joints, also the root, as in MoMask's evaluation.
    """

    floor_is_0 = True
    has_root = True

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self._width, self._joints = width, recovery.JOINTS[width]
        self.name = recovery.NAMES[width]
        self.joint_names = recovery.JOINT_NAMES[width]
        self.measured = torch.arange(self._joints, device=device)
        feet = [joint for joint, name in enumerate(self.joint_names) if name in FEET]
        self.feet = torch.tensor(feet, dtype=torch.int64, device=device)

    def roots(self, motion: Tensor) -> Tensor:
        """Returns the root's positions, fp64 `[T, 3]` metres, of motion `[T, C]`.

        They start at x = z = 0; those of 272 columns start at the first frame's step, as in the published code.
        """
        return self._world(motion)[:, 0]

    def places(self, motion: Tensor) -> Tensor:
        """Returns joint positions `[T, J, 3]` in metres, with the root at 0, of motion `[T, C]` in the data's units."""
        world = self._world(motion)
        return (world - world[:, :1]).to(motion.dtype)

    def _world(self, motion: Tensor) -> Tensor:
        """Returns joint positions in the world, fp64 `[T, J, 3]` metres."""
        motion, zero = motion.double(), motion.new_zeros(len(motion), dtype=torch.float64)
        if self._width == recovery.HUMANML3D_272:
            turns = _products(matrices_from_6d(motion[:, 2:8]))
            steps = torch.stack([motion[:, 0], zero, motion[:, 1]], dim=1)
            path = torch.cat([steps[:1], (steps[1:, None] @ turns[:-1])[:, 0]]).cumsum(0)
            local = motion[:, 8 : 8 + 3 * self._joints].view(len(motion), -1, 3)
            return local @ turns + path[:, None] * path.new_tensor([1.0, 0.0, 1.0])
        before = functional.pad(motion[:-1, :3], (0, 0, 1, 0))
        turns = matrices_about(motion.new_tensor([[0.0, 1.0, 0.0]]), 2 * before[:, :1].cumsum(0))[:, 0]
        steps = torch.stack([before[:, 1], zero, before[:, 2]], dim=1)
        path = (steps[:, None] @ turns)[:, 0].cumsum(0)
        local = motion[:, 4 : 4 + 3 * (self._joints - 1)].view(len(motion), -1, 3)
        root = torch.stack([path[:, 0], motion[:, 3], path[:, 2]], dim=1)
        world = torch.cat([root[:, None], local @ turns + path[:, None]], dim=1)
        return recovery.METRES[self._width] * world


def joints_of(
    layout: Layout, skeleton: Skeleton | None, device: torch.device | str = "cpu"
) -> Kinematics | RecoveredJoints | None:
    """Returns how to compute joint positions from a layout's columns; None if they have no joints.

    Args:
        skeleton: moved by columns of joints; published columns without names need none.
    """
    width = recovery.recovered_width(layout)
    if width is not None:
        return RecoveredJoints(width, device)
    kinematics = Kinematics(layout, skeleton, device) if skeleton else None
    return kinematics if kinematics is not None and len(kinematics.measured) else None


def _products(matrices: Tensor) -> Tensor:
    """Returns for each t the product of `[T, 3, 3]` from the t-th back to the first, in log2(T) steps."""
    found, reach = matrices, 1
    while reach < len(found):
        found = torch.cat([found[:reach], found[reach:] @ found[:-reach]])
        reach *= 2
    return found


def _depths(parents: Sequence[int]) -> list[list[int]]:
    """Returns the joints by their number of ancestors."""
    depths = [0] * len(parents)
    for joint, parent in enumerate(parents):
        if parent >= 0:
            depths[joint] = depths[parent] + 1
    return [[joint for joint, its in enumerate(depths) if its == depth] for depth in range(max(depths) + 1)]


def matrices_about(axes: Tensor, angles: Tensor) -> Tensor:
    """Returns rotation matrices `[..., J, 3, 3]` about unit vectors `[J, 3]` by angles `[..., J]` in radians.

    Source: Rodrigues' formula, I + sin(angle) K + (1 - cos(angle)) K K, where K v is the cross product of axis and v.
    """
    x, y, z = axes.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    identity = torch.eye(3, dtype=axes.dtype, device=axes.device)
    sine, versed = angles.sin()[..., None, None], (1 - angles.cos())[..., None, None]
    return identity + sine * cross + versed * (cross @ cross)


def matrices_from_6d(rotation_6d: Tensor) -> Tensor:
    """Returns rotation matrices `[..., 3, 3]` from their first two rows `[..., 6]`, made orthonormal by Gram-Schmidt.

    Source: Zhou et al. 2019, "On the continuity of rotation representations in neural networks".
    """
    first, second = rotation_6d[..., :3], rotation_6d[..., 3:]
    x = functional.normalize(first, dim=-1)
    y = functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-2)


def angle_between(first_6d: Tensor, second_6d: Tensor) -> Tensor:
    """Returns the geodesic angle `[...]` in degrees between rotations `[..., 6]`.

    It is computed from the chord, |A - B| = 2 sqrt(2) sin(angle / 2): this keeps its precision at small angles, where
    the arc cosine of the trace loses it.
    """
    chord = torch.linalg.matrix_norm(matrices_from_6d(first_6d) - matrices_from_6d(second_6d))
    return torch.rad2deg(2.0 * torch.asin((chord / 8.0**0.5).clamp(max=1.0)))
