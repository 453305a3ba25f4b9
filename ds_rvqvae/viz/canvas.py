"""What is used of matplotlib's Agg canvas, with the types that matplotlib leaves out."""

from typing import Any, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import BboxBase
from numpy.typing import NDArray


class Canvas(Protocol):
    """Draws a figure into memory."""

    def draw(self) -> object:
        """Draws all artists that are not animated."""
        ...

    def copy_from_bbox(self, bbox: BboxBase) -> Any:
        """A copy of the pixels in a rectangle, for `restore_region`."""
        ...

    def restore_region(self, region: Any) -> object:
        """Puts such a copy back."""
        ...

    def buffer_rgba(self) -> memoryview:
        """The pixels themselves, uint8 `[height, width, 4]`."""
        ...


def canvas_of(figure: Figure) -> Canvas:
    """A canvas of a figure, which becomes the figure's own."""
    return FigureCanvasAgg(figure)


def pixels_on(canvas: Canvas) -> NDArray[np.uint8]:
    """A view of what was drawn, `[height, width, 4]` RGBA, which the next drawing overwrites."""
    return np.asarray(canvas.buffer_rgba())
