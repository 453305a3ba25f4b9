"""Rotations and forward kinematics in torch."""

import torch
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.motion.layout import Layout, root_channels, rotation_columns
from ds_rvqvae.motion.skeleton import Skeleton, measured_joints, moved_joints

FEET = ("left_foot", "right_foot", "LeftToeBase", "RightToeBase", "LeftToe", "RightToe")
"""Joints at the balls of the feet: SMPL-X's names, and those of BVH files."""


class Kinematics:
    """Positions of a skeleton's joints, with one matrix product for all joints of the same depth.

    The positions equal those of `skeleton.joint_places` minus the root's; that function computes them in numpy, joint
    by joint.

    Args:
        layout: of the motion's columns. Joints that it does not name stay at rest.
        skeleton: the skeleton that is moved.
        device: the device of the motion.

    Attributes:
        measured: int64, the joints that the layout names and that one of its rotations moves. A rotation moves the
            joints below its own. So the uppermost joint of a layout is not measured, nor a joint that lies on it.
        feet: int64, the joints of `FEET` that move.
        has_root: whether the layout has the root's position.
    """

    def __init__(self, layout: Layout, skeleton: Skeleton, device: torch.device | str = "cpu") -> None:
        names, parents = skeleton.joint_names, skeleton.parents
        turned = [part for part in layout if part.kind == "rotation_6d" and part.name in names]
        depths = [0] * len(names)
        for joint, parent in enumerate(parents):
            if parent >= 0:
                depths[joint] = depths[parent] + 1

        def indices(joints: list[int]) -> Tensor:
            return torch.tensor(joints, dtype=torch.int64, device=device)

        self._columns = torch.from_numpy(rotation_columns(tuple(turned))).to(device)
        self._turned = indices([names.index(part.name) for part in turned])
        self._offsets = torch.as_tensor(skeleton.offsets, dtype=torch.float32, device=device)
        self._by_depth = []
        for depth in range(1, max(depths) + 1):
            joints = [joint for joint, its in enumerate(depths) if its == depth]
            self._by_depth.append((indices(joints), indices([parents[joint] for joint in joints])))
        self.measured = indices(measured_joints(layout, skeleton))
        moved = moved_joints(layout, skeleton)
        self.feet = indices([joint for joint, name in enumerate(names) if moved[joint] and name in FEET])
        self._root = root_channels(layout)
        self.has_root = self._root is not None

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
        identity = torch.eye(3, dtype=motion.dtype, device=motion.device)
        turns = identity.repeat(len(motion), len(self._offsets), 1, 1)
        turns[:, self._turned] = matrices_from_6d(motion[:, self._columns])
        places = motion.new_zeros(len(motion), len(self._offsets), 3)
        offsets = self._offsets.to(motion.dtype)
        for joints, parents in self._by_depth:
            above = turns[:, parents]
            places[:, joints] = places[:, parents] + (above @ offsets[joints].unsqueeze(-1)).squeeze(-1)
            turns[:, joints] = above @ turns[:, joints]
        return places


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
