"""Pictures of a reconstruction: curves beside the original's, and stick figures if the skeleton is known."""

from collections.abc import Iterator, Mapping, Sequence
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
from ds_rvqvae.model.exact import exactly
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.motion.skeleton import Skeleton, builtin_skeleton, has_root, joint_places, slides_of
from ds_rvqvae.tokenizer.scores.evaluation import skeleton_of
from ds_rvqvae.viz.canvas import canvas_of, pixels_on
from ds_rvqvae.viz.curves import Curve, joint_errors, liveliest
from ds_rvqvae.viz.names import name_words
from ds_rvqvae.viz.poses import FOUND, TRUTH, PoseRow, moved_groups

_PICTURE_SECONDS = 10
_MOST_LEVELS, _LONGEST_NAME = 8, 60


def reconstruction_pictures(
    model: RVQVAE,
    data: MotionData,
    splits: tuple[str, ...],
    device: torch.device | str,
    skeleton: Skeleton | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Yields for each split that has clips a figure of the first seconds of its longest clip.

    Args:
        skeleton: of the stick figures; the default is `skeleton_of` the data.
    """
    skeleton = skeleton or skeleton_of(data)
    for split in splits:
        segments = data.segments(split)
        if segments:
            longest = max(segments, key=lambda part: part.stop - part.start)
            name = name_words(longest.name, _LONGEST_NAME)
            title = f"{name} ({split}), all {model.config.num_quantizers} levels"
            motion, *found = _reconstructed(model, data, longest, device)
            errors = [joint_errors(motion, one, data.layout, slides_of(skeleton)) for one in found]
            by_levels = [float(np.mean([*one.values()])) for one in errors if one]
            yield (
                split,
                reconstruction_figure(motion, found[-1], data.layout, data.fps, title, skeleton, by_levels),
            )


def _reconstructed(
    model: RVQVAE, data: MotionData, segment: Segment, device: torch.device | str
) -> list[NDArray[np.float32]]:
    """Returns a clip's first seconds and their reconstructions with 1 … Q levels, each `[T, C]` in the data's units."""
    stride = model.config.code_stride
    frames = min(segment.stop - segment.start, int(_PICTURE_SECONDS * data.fps)) // stride * stride
    motion = torch.from_numpy(data.normalised(segment)[:frames]).to(device)
    with exactly(model):
        codes = model.encode(motion.unsqueeze(0))
        found = [model.decode(codes[..., : level + 1])[0].float().cpu().numpy() for level in range(codes.shape[-1])]
    return [data.frames(segment)[:frames], *(one * data.std + data.mean for one in found)]


_CURVES = 6
_MOST_BARS = 18
_WIDTH, _ROW = 12.0, 2.2
"""Inches: the picture's width, and the height of a row of curves."""


def reconstruction_figure(
    truth: NDArray[np.float32],
    found: NDArray[np.float32],
    layout: Layout,
    fps: float,
    title: str,
    skeleton: Skeleton | None = None,
    by_levels: Sequence[float] = (),
) -> Figure:
    """Draws original and reconstruction of one clip: curves, the error of each joint, and poses.

    Args:
        truth, found: the original and the reconstruction, `[T, C]` in the data's own units.
        layout: of the columns; the curves show those that vary most.
        fps: frames per second, for the time axis.
        skeleton: of the poses (default: the built-in one); if the layout has none of its joints, no poses are drawn.
        by_levels: mean angle error with 1 … Q levels, degrees.
    """
    skeleton = skeleton or builtin_skeleton()
    errors = joint_errors(truth, found, layout, slides_of(skeleton))
    poses = joint_places(truth, layout, skeleton), joint_places(found, layout, skeleton)
    rows: list[PoseRow] = []
    if poses[0] is not None and poses[1] is not None:
        groups = moved_groups(layout, skeleton)
        rows = [PoseRow(poses[0], poses[1], skeleton, group, _WIDTH - 0.4, has_root(layout)) for group in groups]
    heights = [3 * _ROW, *(row.height for row in rows)]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(title, errors, by_levels), fontsize=11, linespacing=1.5)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    top = grid[0].subgridspec(1, 2 if errors else 1, width_ratios=[3, 1] if errors else None)
    curves = top[0].subgridspec(_CURVES // 2, 2)
    seconds = np.arange(len(truth)) / fps
    for index, curve in enumerate(liveliest(truth, found, layout, _CURVES)):
        _draw_curve(figure.add_subplot(curves[index // 2, index % 2]), curve, seconds, index)
    if errors:
        _draw_errors(figure.add_subplot(top[1]), errors)
    for index, row in enumerate(rows):
        row.draw(figure.add_subplot(grid[1 + index]), fps)
    return figure


def _title(title: str, errors: Mapping[str, NDArray[np.float32]], by_levels: Sequence[float]) -> str:
    """Returns the title and below it the mean angle error, also with fewer levels."""
    if not errors:
        return title
    mean = np.mean([error.mean() for error in errors.values()])
    words = f"mean angle error {mean:.2f}°"
    if len(by_levels) > 1:
        shown = [f"{error:.1f}" for error in by_levels]
        shown = shown if len(shown) <= _MOST_LEVELS else [*shown[: _MOST_LEVELS - 1], "…", shown[-1]]
        words += f"; with 1 to {len(by_levels)} levels {', '.join(shown)}"
    return f"{title}\n{words}"


def _draw_curve(axes: Axes, curve: Curve, seconds: NDArray[np.float64], index: int) -> None:
    axes.plot(seconds, curve.truth, color=TRUTH, linewidth=1.6, label="original")
    axes.plot(seconds, curve.found, color=FOUND, linewidth=1.0, label="reconstruction")
    axes.set_title(curve.title, fontsize=9)
    axes.tick_params(labelsize=8)
    if index == 0:
        axes.legend(fontsize=8, loc="best")
    if index >= _CURVES - 2:
        axes.set_xlabel("seconds", fontsize=8)


def _draw_errors(axes: Axes, errors: Mapping[str, NDArray[np.float32]]) -> None:
    """Draws the mean angle error of each joint, the worst at the top."""
    means = sorted(((float(error.mean()), name) for name, error in errors.items()), reverse=True)
    shown = means[:_MOST_BARS]
    places = np.arange(len(shown))
    bars = axes.barh(places, [mean for mean, _ in shown], color=FOUND, height=0.7)
    axes.bar_label(bars, [f"{mean:.1f}" for mean, _ in shown], fontsize=7.5, padding=2)
    axes.set_yticks(places, [name_words(name, 22) for _, name in shown], fontsize=7.5)
    axes.set_ylim(max(len(shown), 6) - 0.4, -0.6)
    axes.margins(x=0.16)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    which = f"{len(shown)} worst of {len(means)} joints" if len(means) > len(shown) else "by joint"
    axes.set_title(f"degrees, {which}", fontsize=9)


def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    """Draws the figure and returns its pixels, uint8 `[height, width, 3]`."""
    canvas = canvas_of(figure)
    canvas.draw()
    return pixels_on(canvas)[..., :3].copy()


def save_figure(figure: Figure, file: Path) -> NDArray[np.uint8]:
    """Writes a PNG, completely or not at all, and returns its pixels, as drawing them again would take time."""
    pixels = pixels_of(figure)
    with whole_file(file) as content:
        imsave(content, pixels, format="png")
    return pixels
