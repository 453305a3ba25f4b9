"""Pictures of a reconstruction: curves against the truth, and a stick figure where the skeleton is known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.splits import Segment
from ds_rvqvae.files import whole_file
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.motion.skeleton import Skeleton, builtin_skeleton, joint_places
from ds_rvqvae.tokenizer.evaluation import skeleton_of
from ds_rvqvae.viz.canvas import canvas_of, pixels_on
from ds_rvqvae.viz.stick_figure import HEAD_RADIUS, Camera, StickFigure

_PICTURE_SECONDS = 10


def reconstruction_pictures(
    model: RVQVAE,
    data: MotionData,
    splits: tuple[str, ...],
    device: torch.device | str,
    skeleton: Skeleton | None = None,
) -> Iterator[tuple[str, Figure]]:
    """A figure of the longest clip's first seconds for each split that has clips.

    Args:
        skeleton: of the stick figures; without it `skeleton_of` the data.
    """
    skeleton = skeleton or skeleton_of(data)
    for split in splits:
        segments = data.segments(split)
        if segments:
            longest = max(segments, key=lambda part: part.stop - part.start)
            title = f"{longest.name} ({split}), all {model.config.num_quantizers} levels"
            motion, found = _reconstructed(model, data, longest, device)
            yield split, reconstruction_figure(motion, found, data.layout, data.fps, title, skeleton)


@torch.no_grad()
def _reconstructed(
    model: RVQVAE, data: MotionData, segment: Segment, device: torch.device | str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A segment's first seconds and their reconstruction, `[T, C]` each, in the data's own units."""
    stride = model.config.code_stride
    frames = min(segment.stop - segment.start, int(_PICTURE_SECONDS * data.fps)) // stride * stride
    motion = torch.from_numpy(data.normalised(segment)[:frames]).to(device)
    found = model.decode(model.encode(motion.unsqueeze(0)))[0].float().cpu().numpy()
    return data.frames(segment)[:frames], found * data.std + data.mean


_CURVES = 6
_POSES = 5
_POSE_SPACING = 2.0
_TRUTH, _FOUND = "#222222", "#e6550d"


def reconstruction_figure(
    truth: NDArray[np.float32],
    found: NDArray[np.float32],
    layout: Layout,
    fps: float,
    title: str,
    skeleton: Skeleton | None = None,
) -> Figure:
    """Truth and reconstruction of one clip.

    Args:
        truth, found: `[T, C]` in the data's own units.
        layout: of the columns; curves show those that move most, one a joint.
        fps: frames a second, for the time axis.
        skeleton: of the stick figures (default: the built-in one); without a joint of it in the layout there are none.
    """
    skeleton = skeleton or builtin_skeleton()
    poses = joint_places(truth, layout, skeleton), joint_places(found, layout, skeleton)
    rows = _CURVES // 2 + (poses[0] is not None)
    figure = Figure(figsize=(12, 2.2 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.add_gridspec(rows, 2)
    seconds = np.arange(len(truth)) / fps
    for index, (column, name) in enumerate(_moving_columns(truth, layout)):
        axes = figure.add_subplot(grid[index // 2, index % 2])
        axes.plot(seconds, truth[:, column], color=_TRUTH, linewidth=1.6, label="truth")
        axes.plot(seconds, found[:, column], color=_FOUND, linewidth=1.0, label="reconstruction")
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
        if index == 0:
            axes.legend(fontsize=8, loc="best")
        if index >= _CURVES - 2:
            axes.set_xlabel("seconds", fontsize=8)
    if poses[0] is not None and poses[1] is not None:
        _draw_poses(figure.add_subplot(grid[rows - 1, :]), poses[0], poses[1], skeleton, fps)
    return figure


def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    """The figure as `[height, width, 3]` uint8."""
    canvas = canvas_of(figure)
    canvas.draw()
    return pixels_on(canvas)[..., :3].copy()


def save_figure(figure: Figure, file: Path) -> NDArray[np.uint8]:
    """Writes a PNG, which is whole or not there, and gives its pixels; drawing them is what takes time."""
    pixels = pixels_of(figure)
    with whole_file(file) as content:
        imsave(content, pixels, format="png")
    return pixels


def _moving_columns(truth: NDArray[np.float32], layout: Layout) -> list[tuple[int, str]]:
    """The column that moves most of each part of the layout, the liveliest parts first; or of all columns."""
    spread = truth.std(axis=0)
    if len(layout) >= _CURVES:
        best = [part.start + int(spread[part.start : part.stop].argmax()) for part in layout]
    else:
        best = list(range(truth.shape[1]))
    best = sorted(best, key=lambda column: -spread[column])[:_CURVES]
    names = [(part, column) for column in best for part in layout if part.start <= column < part.stop]
    return [(column, f"{part.name}, {part.kind} [{column - part.start}]") for part, column in names]


def _draw_poses(
    axes: Axes, truth: NDArray[np.float64], found: NDArray[np.float64], skeleton: Skeleton, fps: float
) -> None:
    """A row of poses `[T, joints, 3]` from the front, the reconstruction over the truth."""
    camera = Camera.before(truth, skeleton)
    frames = np.linspace(0, len(truth) - 1, _POSES).round().astype(int)
    # Each pose's root stands in its own column, however far the figure walked.
    centres = truth[frames, :1] * [1.0, 0.0, 1.0]
    columns = _POSE_SPACING * np.arange(_POSES)[:, None, None] * [1.0, 0.0, 0.0]
    behind, before = (camera.project(places[frames], centres) + columns for places in (truth, found))
    bottom, top = behind[..., 1].min() - 0.15, max(behind[..., 1].max(), before[..., 1].max())
    for pose, frame in enumerate(frames):
        for joints, color, width in ((behind[pose], _TRUTH, 2.4), (before[pose], _FOUND, 1.2)):
            StickFigure(axes, skeleton, color, width).place(joints)
        axes.text(columns[pose, 0, 0], bottom, f"{frame / fps:.1f} s", ha="center", va="top", fontsize=8)
    axes.set_xlim(-_POSE_SPACING / 2, _POSE_SPACING * (_POSES - 0.5))
    axes.set_ylim(bottom - 0.2, top + 2 * HEAD_RADIUS + 0.05)
    axes.set_aspect("equal")
    axes.set_axis_off()
