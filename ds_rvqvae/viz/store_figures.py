"""Five figures of a store from two sides, in metres; or five clips as heat maps if the columns are not a figure."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Page
from matplotlib.gridspec import GridSpecBase, SubplotSpec
from matplotlib.patches import Circle
from numpy.typing import NDArray

from ds_rvqvae.data.look import SAMPLE_CLIPS, Look
from ds_rvqvae.data.store.figures import Figure
from ds_rvqvae.viz.names import short_names

_LEFT, _RIGHT, _MIDDLE, _NOT_USED = "#1f77b4", "#d9541e", "#3a3a3a", "#cccccc"
PAGE_WIDTH = 15.0
"""Inches."""
_LARGE_ENOUGH = 2.4
_HEAD_SHARE = 0.06
"""Radius of the head's ring, as a fraction of the figure's height."""
_NEAR_GROUND = 0.1
"""A fraction of the figure's height: if the feet are no further from y = 0, the ground is drawn at y = 0."""
_FLOOR_FRAMES = 64
"""The number of a clip's frames that are searched for the lowest joint."""
_HEAT_SECONDS = 20.0
_MOST_ROWS = 400


class _Pose(NamedTuple):
    clip: str
    seconds: float
    across: NDArray[np.float64]
    """`[joints]` metres from the figure's middle to its left."""
    ahead: NDArray[np.float64]
    """`[joints]` metres from the figure's middle to its front."""
    up: NDArray[np.float64]
    floor: float
    """Height of the clip's lowest joint, metres."""


class FigureDrawing:
    """Five figures from the front and from their right side.

    Attributes:
        grid: rows and columns of the two views, which are side by side if they are large enough then.
        row_heights: height of each row on the page, inches.
    """

    def __init__(self, look: Look) -> None:
        assert look.figure is not None
        self._look = look
        self._poses = _poses(look, look.figure)
        lows, highs = [pose.up.min() for pose in self._poses], [pose.up.max() for pose in self._poses]
        self._tall = max(high - low for low, high in zip(lows, highs, strict=True))
        floor = float(np.median([pose.floor for pose in self._poses]))
        self._ground = 0.0 if abs(floor) <= _NEAR_GROUND * self._tall else floor
        width = max(np.ptp(values) for pose in self._poses for values in (pose.across, pose.ahead))
        self._spacing = max(1.12 * width, 0.6 * self._tall, 1e-3)
        low, high = min(self._ground, *lows), max(self._ground, *highs)
        margin = 0.05 * (high - low)
        self._limits = low - 2 * margin, high + (_HEAD_SHARE * 2) * self._tall + margin
        shape = (self._limits[1] - self._limits[0]) / (len(self._poses) * self._spacing)
        half, whole = (shape * (share * PAGE_WIDTH - 0.8) for share in (0.5, 1.0))
        self.grid = (1, 2) if half >= _LARGE_ENOUGH else (2, 1)
        inches = half if self.grid == (1, 2) else whole
        self.row_heights = [float(np.clip(inches, 1.2, 5.0)) + 0.7] * self.grid[0]

    def draw(self, page: Page, grid: GridSpecBase) -> None:
        """Draws the two views into the cells of `grid`."""
        views = (("front: the figure's left is blue", "across"), ("side: figures face right", "ahead"))
        for place, (title, name) in enumerate(views):
            axes = page.add_subplot(grid[place])
            for index, pose in enumerate(self._poses):
                _draw_figure(axes, self._look, getattr(pose, name) + index * self._spacing, pose.up, self._tall)
            self._frame(axes, title)

    def _frame(self, axes: Axes, title: str) -> None:
        """Draws the ground, a scale in metres, and names."""
        spacing, ground, (low, high) = self._spacing, self._ground, self._limits
        axes.set_xlim(-spacing * 0.55, spacing * (len(self._poses) - 0.45))
        axes.set_ylim(low, high)
        axes.axhline(ground, color="black", linewidth=1.2)
        words = "" if ground == 0 else f"floor at the lowest joints, y = {ground:.2f} m"
        if self._look.root is None:
            words = "no columns for the root's position: figures stay in place"
        axes.text(1.0, ground, words, transform=axes.get_yaxis_transform(), ha="right", va="top", fontsize=8)
        metre = 10.0 ** np.floor(np.log10(spacing * 1.5))
        left = -spacing * 0.52
        axes.plot([left, left + metre], [low] * 2, color="black", linewidth=4, solid_capstyle="butt", clip_on=False)
        axes.text(left + metre, low, f" {metre:g} m", ha="left", va="bottom", fontsize=8)
        axes.set_aspect("equal")
        axes.set_ylabel("y, up (m)", fontsize=9)
        names = short_names([pose.clip for pose in self._poses], 18)
        labels = [f"{name}\n{pose.seconds:.1f} s" for name, pose in zip(names, self._poses, strict=True)]
        axes.set_xticks(spacing * np.arange(len(self._poses)), labels, linespacing=1.5)
        axes.tick_params(labelsize=8)
        axes.tick_params(axis="x", length=0, pad=9)
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_title(title, fontsize=10, loc="left", fontweight="bold")


def _poses(look: Look, figure: Figure) -> list[_Pose]:
    """Returns frames from different clips and times, each turned about y to face the front."""
    clips = look.sample.clips
    poses = []
    for index in range(SAMPLE_CLIPS):
        name = clips[index * len(clips) // SAMPLE_CLIPS]
        first, stop = look.store.rows(name)
        frame = (2 * index + 1) * (stop - first) // (2 * SAMPLE_CLIPS)
        places = figure.places(look.store.read(first + frame, first + frame + 1))
        (ahead_x, ahead_z), joints = figure.front(places)[0], places[0]
        across = joints[:, 0] * ahead_z - joints[:, 2] * ahead_x
        ahead = joints[:, 0] * ahead_x + joints[:, 2] * ahead_z
        across, ahead = (values - (values.max() + values.min()) / 2 for values in (across, ahead))
        floor = _floor(figure, look.store.read(first, stop))
        poses.append(_Pose(name, frame / look.store.fps, across, ahead, joints[:, 1], floor))
    return poses


def _floor(figure: Figure, motion: NDArray[np.float32]) -> float:
    """Returns the height of the lowest joint in a clip `[frames, columns]`, ignoring the lowest frames (5 %)."""
    shown = motion[np.linspace(0, len(motion) - 1, min(len(motion), _FLOOR_FRAMES)).astype(np.int64)]
    return float(np.percentile(figure.places(shown)[..., 1].min(axis=1), 5))


def _draw_figure(axes: Axes, look: Look, across: NDArray[np.float64], up: NDArray[np.float64], tall: float) -> None:
    figure = look.figure
    assert figure is not None
    parents, head = np.array(figure.parents), figure.head
    # The head's children, such as jaw and eyes, would only clutter the ring.
    joints = np.flatnonzero((parents >= 0) & ((parents != head) if head is not None else True))
    points = np.stack([across, up], axis=1)
    colors = np.where(figure.sides > 0, _LEFT, np.where(figure.sides < 0, _RIGHT, _MIDDLE))
    if look.facts["body_part"] is not None and look.layout is not look.store.layout:
        used = {part.name for part in look.layout}
        colors = np.where([name in used for name in figure.joint_names], colors, _NOT_USED)
    lengths = np.linalg.norm(points[joints] - points[parents[joints]], axis=1)
    widths = np.where(lengths < 0.035 * tall, 1.2, 2.4)
    bones = np.stack([points[parents[joints]], points[joints]], axis=1)
    axes.add_collection(LineCollection([*bones], colors=colors[joints], linewidths=widths, capstyle="round"))
    if head is not None and parents[head] >= 0:
        way = points[head] - points[parents[head]]
        radius = _HEAD_SHARE * tall
        centre = points[head] + way / max(float(np.linalg.norm(way)), 1e-6) * radius
        axes.add_patch(Circle(centre, radius, fill=False, linewidth=2.0, edgecolor=colors[head]))


def draw_heat_maps(page: Page, place: SubplotSpec, look: Look) -> None:
    """Draws the columns of each sample clip over time, normalised by mean and std."""
    clips = look.sample.clips
    panels = place.subgridspec(1, len(clips))
    frames = int(_HEAT_SECONDS * look.store.fps)
    shown = None
    for index, (name, title) in enumerate(zip(clips, short_names(clips, 26), strict=True)):
        axes = page.add_subplot(panels[index])
        first, stop = look.store.rows(name)
        motion = look.store.read(first, min(stop, first + frames))[:, look.columns]
        values = (motion - look.mean) / np.where(look.std > 0, look.std, 1)
        values = values[:: -(-len(values) // _MOST_ROWS)]
        seconds = min(stop - first, frames) / look.store.fps
        shown = axes.imshow(
            values.T,
            aspect="auto",
            cmap="RdBu_r",
            vmin=-3,
            vmax=3,
            interpolation="nearest",
            extent=(0, seconds, len(look.columns), 0),
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("seconds", fontsize=9)
        axes.tick_params(labelsize=8)
        if index:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("column", fontsize=9)
    if shown is not None:
        bar = page.colorbar(shown, ax=page.axes[-len(clips) :], pad=0.01, aspect=30)
        bar.set_label("standard deviations from the mean", fontsize=9)
        bar.ax.tick_params(labelsize=8)
