"""Pictures of a reconstruction: curves against the truth, and a stick figure where the skeleton is known."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ds_rvqvae.data.layout import SMPLX_JOINTS, SMPLX_PARENTS, Layout
from ds_rvqvae.data.skeleton import forward_kinematics, rest_offsets
from ds_rvqvae.tokenizer.geometry import matrices_from_6d

_CURVES = 6
_POSES = 5
_TRUTH, _FOUND = "#222222", "#e6550d"


def reconstruction_figure(truth: np.ndarray, found: np.ndarray, layout: Layout, fps: float, title: str) -> Figure:
    """Truth and reconstruction of one clip.

    Args:
        truth, found: `[T, C]` in the data's own units.
        layout: of the columns; curves show those that move most, one a joint.
        fps: frames a second, for the time axis.
    """
    poses = _joint_places(truth, layout), _joint_places(found, layout)
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
        _draw_poses(figure.add_subplot(grid[rows - 1, :]), poses[0], poses[1], fps)
    return figure


def pixels_of(figure: Figure) -> np.ndarray:
    """The figure as `[height, width, 3]` uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, file: Path) -> None:
    """Writes a PNG; it is whole or it is not there."""
    unfinished = file.with_name(f".unfinished-{file.name}")
    figure.savefig(unfinished, dpi=100, format="png")
    unfinished.replace(file)


def _moving_columns(truth: np.ndarray, layout: Layout) -> list[tuple[int, str]]:
    """The column that moves most of each part of the layout, the liveliest parts first; or of all columns."""
    spread = truth.std(axis=0)
    if len(layout) >= _CURVES:
        best = [part.start + int(spread[part.start : part.stop].argmax()) for part in layout]
    else:
        best = list(range(truth.shape[1]))
    best = sorted(best, key=lambda column: -spread[column])[:_CURVES]
    names = [(part, column) for column in best for part in layout if part.start <= column < part.stop]
    return [(column, f"{part.name}, {part.kind} [{column - part.start}]") for part, column in names]


def _joint_places(motion: np.ndarray, layout: Layout) -> np.ndarray | None:
    """Joint places `[T, 55, 3]` metres where the layout names SMPL-X joints; joints it leaves out stay at rest."""
    parts = [part for part in layout if part.kind == "rotation_6d" and part.name in SMPLX_JOINTS]
    if not parts:
        return None
    rotations = np.broadcast_to(np.eye(3), (len(motion), len(SMPLX_JOINTS), 3, 3)).copy()
    for part in parts:
        columns = torch.from_numpy(np.ascontiguousarray(motion[:, part.start : part.stop], dtype=np.float64))
        rotations[:, SMPLX_JOINTS.index(part.name)] = matrices_from_6d(columns).numpy()
    return forward_kinematics(rotations, rest_offsets())


def _draw_poses(axes: Axes, truth: np.ndarray, found: np.ndarray, fps: float) -> None:
    """A row of poses from the front, truth behind reconstruction."""
    chosen = np.linspace(0, len(truth) - 1, _POSES).round().astype(int)
    for place, frame in enumerate(chosen):
        for joints, color, width in ((truth[frame], _TRUTH, 2.4), (found[frame], _FOUND, 1.2)):
            for joint, parent in enumerate(SMPLX_PARENTS):
                if parent >= 0:
                    bone = joints[[parent, joint]]
                    axes.plot(bone[:, 0] + 2.0 * place, bone[:, 1], color=color, linewidth=width)
        axes.text(2.0 * place, -0.35, f"{frame / fps:.1f} s", ha="center", fontsize=8)
    axes.set_aspect("equal")
    axes.set_axis_off()
