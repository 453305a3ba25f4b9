"""Pictures of a video: original, reconstruction and difference as stick figures, with the error over time below."""

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from ds_rvqvae.viz.canvas import canvas_of, pixels_on, set_names_as_text
from ds_rvqvae.viz.comparison import Comparison
from ds_rvqvae.viz.names import name_words
from ds_rvqvae.viz.stick_figure import HEAD_RADIUS, LEFT, MIDDLE, RIGHT, Camera, StickFigure

_GHOST, _GROUND = "#c9c9c9", "#e4e4e4"
_ERRORS = LinearSegmentedColormap.from_list("error", ["#3a3a3a", "#8c2981", "#de4968", "#fe9f6d"])
_TILE, _TILES = 0.5, 4
_MARGIN = 0.12
_PANEL_BOTTOM, _PANEL_TOP = 0.26, 0.88
"""Fractions of the picture's height. Titles and scales are above the panels, where no figure is drawn."""
_CODES, _AROUND = 0.3, 2.0
"""Height of the codes, as a fraction of the rest of the picture; seconds before and after now that they show."""


class Animation:
    """The pictures of a comparison, one after the other.

    The background is drawn once; each frame draws only bones, ground, numbers and the marker on the curve over it.

    Args:
        comparison: the clip and its reconstruction to show.
        fps: pictures per second, at most the comparison's own.
        size: width and height in pixels.
        with_codes: whether the codes around the frame pass by below the figures.

    Attributes:
        frames: int64, the frames of the comparison that are shown.
    """

    def __init__(self, comparison: Comparison, fps: float, size: tuple[int, int], with_codes: bool = False) -> None:
        self.comparison, self.fps, self.size = comparison, fps, size
        count = max(int(len(comparison.truth) * fps / comparison.fps + 1e-9), 1)
        self.frames = np.minimum(
            (np.arange(count) * comparison.fps / fps + 0.5).astype(np.int64), len(comparison.truth) - 1
        )
        self._distance_mm = comparison.mean_distance_mm
        self._curve = self._distance_mm if comparison.mean_angle is None else comparison.angle_error
        self._project()
        self._height = 1.0 + (_CODES if with_codes else 0.0)
        self._panels = (self._from_top(_PANEL_BOTTOM), self._from_top(_PANEL_TOP))
        dpi = 100.0 * size[1] / 480 / self._height
        # Slightly larger, because the canvas cuts fractions of a pixel off.
        self._figure = Figure(figsize=((size[0] + 0.01) / dpi, (size[1] + 0.01) / dpi), dpi=dpi, facecolor="white")
        self._canvas = canvas_of(self._figure)
        self._moving: list[tuple[Axes, Artist]] = []
        self._draw_panels()
        self._draw_curve()
        self._codes: Axes | None = None
        if with_codes:
            self._draw_codes()

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yields each picture, uint8 `[height, width, 4]` RGBA: a view that the next picture overwrites."""
        set_names_as_text(self._figure)
        self._canvas.draw()
        background = self._canvas.copy_from_bbox(self._figure.bbox)
        for frame in self.frames.tolist():
            self._canvas.restore_region(background)
            self._show(frame)
            for axes, artist in self._moving:
                axes.draw_artist(artist)
            yield pixels_on(self._canvas)

    def _from_top(self, place: float) -> float:
        """Returns where a height of the picture without codes is here, at the same distance from the top."""
        return 1.0 - (1.0 - place) / self._height

    def _project(self) -> None:
        """Projects joints and ground into the view of a camera that follows the original's root over the ground."""
        shown = self.comparison
        camera = Camera.before(shown.truth, shown.skeleton)
        ground = np.array([0.0, np.percentile(shown.truth[..., 1].min(axis=1), 5), 0.0])
        smoothing = max(round(shown.fps), 1)
        follow = uniform_filter1d(shown.truth[:, 0], smoothing, axis=0, mode="nearest") * [1.0, 0.0, 1.0] + ground
        self._truth, self._found = (camera.project(places, follow[:, None]) for places in (shown.truth, shown.found))
        # Ground lines are fixed in the world, one per tile, so that they move past below a walking figure.
        steps = _TILE * np.arange(-_TILES, _TILES + 1)
        edge = steps[-1]
        lines = [[[step, 0.0, -edge], [step, 0.0, edge]] for step in steps]
        lines += [[[-edge, 0.0, step], [edge, 0.0, step]] for step in steps]
        nearest = np.round(follow / _TILE) * _TILE * [1.0, 0.0, 1.0] + ground
        world = np.asarray(lines)[None] + nearest[:, None, None]
        self._ground = camera.project(world, follow[:, None, None])[..., :2]

    def _draw_panels(self) -> None:
        shown = self.comparison
        titles = ("original", f"reconstruction, {shown.levels_text}", "difference")
        points = np.concatenate([self._truth, self._found], axis=1)[..., :2]
        low, high = np.percentile(points.min(axis=1), 1, axis=0), np.percentile(points.max(axis=1), 99, axis=0)
        self._grounds, self._figures = [], []
        for index, title in enumerate(titles):
            axes = self._figure.add_axes((index / 3, self._panels[0], 1 / 3, self._panels[1] - self._panels[0]))
            axes.set_axis_off()
            self._figure.text((index + 0.5) / 3, self._from_top(0.985), title, ha="center", va="top", fontsize=11)
            self._set_limits(axes, low, high)
            ground = LineCollection([], colors=_GROUND, linewidths=0.8, animated=True)
            axes.add_collection(ground, autolim=False)
            self._grounds.append(ground)
            self._moving.append((axes, ground))
            figures = [StickFigure(axes, shown.skeleton, animated=True)]
            if index == 2:
                figures = [StickFigure(axes, shown.skeleton, _GHOST, 3.0, animated=True), *figures]
            for figure in figures:
                self._moving += [(axes, artist) for artist in figure.artists]
            self._figures += figures
        for place, side, color in ((-0.09, "left", LEFT), (0.0, "right", RIGHT), (0.09, "middle", MIDDLE)):
            top = self._from_top(0.935)
            self._figure.text(0.5 / 3 + place, top, side, color=color, ha="center", va="top", fontsize=8.5)
        self._draw_color_bar()

    def _set_limits(self, axes: Axes, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        """Sets the limits so that both directions have the same scale and the complete motion fits."""
        width, height = self.size[0] / 3, (self._panels[1] - self._panels[0]) * self.size[1]
        low, high = low - _MARGIN, high + np.array([_MARGIN, 2 * HEAD_RADIUS + _MARGIN])
        metre = min(width / (high[0] - low[0]), height / (high[1] - low[1]))
        middle = (low[0] + high[0]) / 2
        axes.set_xlim(middle - width / metre / 2, middle + width / metre / 2)
        axes.set_ylim(low[1], low[1] + height / metre)

    def _draw_color_bar(self) -> None:
        errors = 1000.0 * self.comparison.joint_error[:, self.comparison.measured]
        top = max(math.ceil(float(np.percentile(errors, 99)) / 10) * 10, 10)
        self._color_of = ScalarMappable(Normalize(0, top), _ERRORS)
        place = self._figure.add_axes((2.2 / 3, self._from_top(0.922), 0.6 / 3, 0.016 / self._height))
        bar = self._figure.colorbar(self._color_of, cax=place, orientation="horizontal", ticks=[0, top / 2, top])
        bar.ax.tick_params(labelsize=8, length=2, pad=1)
        bar.ax.spines["outline"].set_visible(False)
        bar.ax.text(1.04, 0.5, "mm", transform=bar.ax.transAxes, fontsize=8, va="center")

    def _draw_curve(self) -> None:
        shown = self.comparison
        self._seconds = shown.start + np.arange(len(shown.truth)) / shown.fps
        axes = self._figure.add_axes((0.055, 0.085 / self._height, 0.925, 0.125 / self._height))
        axes.plot(self._seconds, self._curve, color=MIDDLE, linewidth=1.0)
        axes.axhline(self._curve.mean(), color=_GHOST, linewidth=0.8, zorder=0)
        axes.set_xlim(self._seconds[0], max(self._seconds[-1], self._seconds[0] + 1 / shown.fps))
        axes.set_ylim(0, max(1.15 * float(self._curve.max()), 1e-3))
        axes.tick_params(labelsize=8, length=2, pad=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        heading = f"joint distance, mm; mean {self._distance_mm.mean():.0f} mm"
        if shown.mean_angle is not None:
            heading = f"angle error, degrees; mean {shown.mean_angle:.2f}°, {self._distance_mm.mean():.0f} mm"
        axes.text(0.0, 1.06, heading, transform=axes.transAxes, fontsize=8.5, va="bottom")
        axes.text(
            1.0,
            -0.42,
            f"{name_words(shown.title, 60)}, seconds",
            transform=axes.transAxes,
            fontsize=8,
            ha="right",
            va="center",
        )
        (self._cursor,) = axes.plot([], [], color=RIGHT, linewidth=1.0, animated=True)
        (self._dot,) = axes.plot([], [], "o", color=RIGHT, markersize=3.5, animated=True)
        self._clock = axes.text(
            1.0, 1.06, "", transform=axes.transAxes, fontsize=8.5, ha="right", va="bottom", animated=True
        )
        self._moving += [(axes, self._cursor), (axes, self._dot), (axes, self._clock)]

    def _draw_codes(self) -> None:
        """Draws rows of coloured codes, one per level; the axes show the seconds around now."""
        shown, height = self.comparison, self._height
        self._codes = axes = self._figure.add_axes((0.055, 0.31 / height, 0.925, 0.19 / height))
        rows, names = 0, list[tuple[float, str]]()
        for part in shown.codes:
            levels, count = part.shades.shape
            # Not an image, which matplotlib draws into the background even if it is animated.
            columns, lines = np.arange(count + 1) * part.seconds, np.arange(levels + 1) + rows
            mesh = axes.pcolormesh(columns, lines, part.shades, cmap="viridis", norm=Normalize(0, 1), animated=True)
            self._moving.append((axes, mesh))
            names += [(rows + level + 0.5, str(level + 1)) for level in range(levels)]
            if len(shown.codes) > 1:
                names[-levels:] = [(rows + levels / 2, part.part)]
            rows += levels
        axes.set_ylim(rows, 0)
        axes.set_yticks([place for place, _ in names], [name for _, name in names], fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=0, pad=3)
        axes.spines[:].set_visible(False)
        between = axes.hlines(range(1, rows), 0, 1, "white", linewidth=1.0, transform=axes.get_yaxis_transform())
        (now,) = axes.plot([0.5, 0.5], [-0.03, 1.03], color=RIGHT, linewidth=1.6, transform=axes.transAxes)
        now.set_clip_on(False)
        for artist in (between, now):
            artist.set_animated(True)
            self._moving.append((axes, artist))
        what = "level" if len(shown.codes) == 1 else "body part and level"
        heading = f"codes, one row per {what}; near colours stand for near code vectors"
        axes.text(0.0, 1.06, heading, transform=axes.transAxes, fontsize=8.5, va="bottom")
        for place, text in ((0.0, f"-{_AROUND:g} s"), (0.5, "now"), (1.0, f"+{_AROUND:g} s")):
            axes.text(place, -0.07, text, transform=axes.transAxes, fontsize=8, ha="center", va="top")

    def _show(self, frame: int) -> None:
        shown = self.comparison
        for ground in self._grounds:
            ground.set_segments(self._ground[frame])
        truth, found, ghost, difference = self._figures
        truth.place(self._truth[frame])
        found.place(self._found[frame])
        ghost.place(self._truth[frame])
        difference.place(self._found[frame], self._color_of.to_rgba(1000.0 * shown.joint_error[frame]))
        second, error = self._seconds[frame], self._curve[frame]
        if self._codes is not None:
            self._codes.set_xlim(second - _AROUND, second + _AROUND)
        self._cursor.set_data([second, second], [0, error])
        self._dot.set_data([second], [error])
        angle = "" if shown.mean_angle is None else f"{error:.1f}°   "
        self._clock.set_text(f"{second:.2f} s   {angle}{self._distance_mm[frame]:.0f} mm")
