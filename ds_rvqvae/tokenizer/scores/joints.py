"""Errors of joint positions, in millimetres and metres, as papers print them.

All are means over frames, so long clips weigh more than short ones. Positions are those of `motion.kinematics`.

- `mpjpe_mm`: distance of joints from their original positions, with aligned roots. Ionescu et al. 2014 (Human3.6M);
  for 263 and 251 columns as in MoMask's evaluation: over all joints, the root with its error of 0 among them, at
  positions that `recover_from_ric` gives; for 272 columns the same at those of `recover_from_local_position`. For other
  columns it is over the joints that the layout names and can move.
- `mpjpe_global_mm`: the same without alignment, in the world; the root is among the joints.
- `pa_mpjpe_mm`: the same after the rotation, scale and shift that bring each frame nearest to the original: Procrustes
  alignment (Gower 1975; Umeyama 1991), "protocol 2" of Human3.6M, as in Kanazawa et al. 2018.
- `root_error_mm`: distance of the root from its original position. In columns with velocities both start at the same
  position and the errors of velocity add up, so it grows with a clip's length. `root_drift_mm_per_s`: this distance in
  a clip's last frame divided by the clip's seconds, mean over clips weighted by their seconds.
- `joint_jerk`, `joint_jerk_truth`: length of the third derivative of joint positions in the world, over joints, in
  m/s³ (Flash and Hogan 1985; the "jitter" of Yi et al. 2021, TransPose, in their 10² m/s³).
- `foot_sliding`, `foot_sliding_truth`: horizontal speed of a foot while the original foot stands: at most 5 cm above
  its lowest position in the clip and slower than 15 cm/s; in cm/s. The height is from Karunratanakul et al. 2023 (GMD);
  the limit on speed is our own, so the original's speed is always below it.
- `foot_skating`, `foot_skating_truth`: fraction of steps between frames in which a foot skates by the rule of GMD's
  `calculate_skating_ratio`: below 5 cm in both frames, and faster than 50 cm/s in this step and in the mean of five.
  The floor is at 0 for 263, 251 and 272 columns, as there, else at the lowest position of the original feet in the
  clip. GMD has 20 fps; at another rate five steps are another time.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.motion.kinematics import Kinematics, RecoveredJoints

STANDING_HEIGHT = 0.05
"""Metres: a standing foot is at most this much above its lowest position in the clip."""
STANDING_SPEED = 0.15
"""Metres per second: a standing foot is horizontally slower than this."""
_FEWEST_TO_ALIGN = 3
"""Joints: two are always aligned without an error."""
_LOW, _FAST, _STEPS = 0.05, 0.5, 5
"""GMD's rule: metres, metres per second, and steps of the mean."""
KEYS = (
    *("mpjpe_global_mm", "pa_mpjpe_mm", "root_error_mm", "root_drift_mm_per_s"),
    *("joint_jerk", "joint_jerk_truth", "foot_sliding", "foot_sliding_truth", "foot_skating", "foot_skating_truth"),
)
"""The scores that are measured with all levels only."""
_SUMS = (
    *("pa", "world", "root", "jerk", "jerk_truth", "drift", "standing", "sliding", "sliding_truth"),
    *("skating", "skating_truth", "steps", "jerk_steps", "drift_steps"),
)


class JointErrors:
    """Sums of the errors of joints over complete clips, with all levels.

    Args:
        joints: gives the positions.
        fps: frame rate.
        sums: `[JointErrors.SIZE]` fp64, the place where the sums are kept.
    """

    SIZE = len(_SUMS)

    def __init__(self, joints: Kinematics | RecoveredJoints, fps: float, sums: Tensor) -> None:
        self.joints, self.fps = joints, fps
        self._sums = dict(zip(_SUMS, sums.unbind(), strict=True))

    def add(self, truth: Tensor, found: Tensor, places: Tensor, found_places: Tensor) -> None:
        """Adds a clip.

        Args:
            truth, found: `[T, C]` in the data's own units.
            places, found_places: `[T, J, 3]` metres, with the root at 0.
        """
        sums, measured = self._sums, self.joints.measured
        pair = [own[:, measured].double() for own in (found_places, places)]
        sums["pa"] += procrustes_distances(*pair).mean(dim=1).sum()
        if not self.joints.has_root:
            return
        roots = [self.joints.roots(motion) for motion in (truth, found)]
        apart = (roots[1] - roots[0]).norm(dim=1)
        sums["root"] += apart.sum()
        sums["drift"] += apart[-1]
        sums["drift_steps"] += len(truth) - 1
        with_root = torch.cat([measured.new_zeros(1), measured[measured != 0]])
        world = [
            own[:, with_root].double() + root[:, None] for own, root in zip((places, found_places), roots, strict=True)
        ]
        sums["world"] += (world[1] - world[0]).norm(dim=-1).mean(dim=1).sum()
        jerks = [own.diff(n=3, dim=0).norm(dim=-1).mean(dim=1).sum() * self.fps**3 for own in world]
        sums["jerk_truth"] += jerks[0]
        sums["jerk"] += jerks[1]
        sums["jerk_steps"] += max(len(truth) - 3, 0)
        if len(self.joints.feet):
            both = zip((places, found_places), roots, strict=True)
            self._add_feet(*(own[:, self.joints.feet].double() + root[:, None] for own, root in both))

    def _add_feet(self, truth: Tensor, found: Tensor) -> None:
        """Adds the feet of a clip, `[T, feet, 3]` metres in the world."""
        sums, height = self._sums, truth[..., 1]
        is_low = height <= height.amin(dim=0) + STANDING_HEIGHT
        speeds = [feet.diff(dim=0)[..., [0, 2]].norm(dim=-1) * self.fps for feet in (truth, found)]
        stands = is_low[1:] & is_low[:-1] & (speeds[0] < STANDING_SPEED)
        sums["standing"] += stands.sum()
        sums["sliding_truth"] += speeds[0][stands].sum()
        sums["sliding"] += speeds[1][stands].sum()
        floor = truth.new_zeros(()) if self.joints.floor_is_0 else height.amin()
        sums["steps"] += len(truth) - 1
        for key, feet, speed in zip(("skating_truth", "skating"), (truth, found), speeds, strict=True):
            sums[key] += _skates(feet[..., 1] - floor, speed).sum()

    def ratios(self, frames: float) -> dict[str, tuple[float, float]]:
        """Returns total and count of each score of `KEYS` that these joints have; the score is total / count."""
        sums = {key: value.item() for key, value in self._sums.items()}
        found = {
            "mpjpe_global_mm": (1000 * sums["world"], frames),
            "pa_mpjpe_mm": (1000 * sums["pa"], frames),
            "root_error_mm": (1000 * sums["root"], frames),
            "root_drift_mm_per_s": (1000 * sums["drift"], sums["drift_steps"] / self.fps),
            "joint_jerk": (sums["jerk"], sums["jerk_steps"]),
            "joint_jerk_truth": (sums["jerk_truth"], sums["jerk_steps"]),
            "foot_sliding": (100 * sums["sliding"], sums["standing"]),
            "foot_sliding_truth": (100 * sums["sliding_truth"], sums["standing"]),
            "foot_skating": (sums["skating"], sums["steps"]),
            "foot_skating_truth": (sums["skating_truth"], sums["steps"]),
        }
        if len(self.joints.measured) < _FEWEST_TO_ALIGN:
            del found["pa_mpjpe_mm"]
        return found if self.joints.has_root else {key: found[key] for key in ("pa_mpjpe_mm",) if key in found}


def procrustes_distances(found: Tensor, truth: Tensor) -> Tensor:
    """Returns distances `[T, J]` after each frame of `found` is aligned to that of `truth`, both `[T, J, 3]`.

    The alignment is the rotation, scale and shift with the smallest squared distance (Umeyama 1991). A figure whose
    joints are all in one place is only shifted. A frame with NaN or infinite positions has NaN.
    """
    finite = torch.isfinite(found).all(dim=2).all(dim=1) & torch.isfinite(truth).all(dim=2).all(dim=1)
    found, truth = (torch.where(finite[:, None, None], own, 0.0) for own in (found, truth))
    found = found - found.mean(dim=1, keepdim=True)
    truth = truth - truth.mean(dim=1, keepdim=True)
    left, values, right = torch.linalg.svd(truth.transpose(1, 2) @ found)
    signs = torch.ones_like(values)
    signs[:, 2] = torch.linalg.det(left @ right).sign()
    size = found.square().sum(dim=(1, 2))
    scale = torch.where(size > 0, (values * signs).sum(dim=1) / size.clamp(min=1e-30), 1.0)
    turn = left @ (signs.unsqueeze(-1) * right)
    aligned: Tensor = scale[:, None, None] * (found @ turn.transpose(1, 2))
    return torch.where(finite[:, None], (aligned - truth).square().sum(dim=-1).sqrt(), torch.nan)


def _skates(height: Tensor, speed: Tensor) -> Tensor:
    """Returns bool `[T - 1]`: whether a foot skates; `height` is `[T, feet]` metres above the floor, `speed`
    `[T - 1, feet]`."""
    low = (height[:-1] < _LOW) & (height[1:] < _LOW)
    mean = functional.avg_pool1d(speed.T.unsqueeze(1), _STEPS, 1, _STEPS // 2).squeeze(1).T
    return (low & (speed > _FAST) & (mean > _FAST)).any(dim=1)
