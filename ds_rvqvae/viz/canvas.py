"""What is used of matplotlib's Agg canvas, with the types that matplotlib leaves out; figures as they are drawn."""

from typing import Any, BinaryIO, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import BboxBase
from numpy.typing import NDArray

from ds_rvqvae.errors import text_of


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
    set_names_as_text(figure)
    return FigureCanvasAgg(figure)


def pixels_on(canvas: Canvas) -> NDArray[np.uint8]:
    """A view of what was drawn, `[height, width, 4]` RGBA, which the next drawing overwrites."""
    return np.asarray(canvas.buffer_rgba())


def write_png(figure: Figure, file: BinaryIO, dpi: float) -> None:
    """Draws a figure as PNG."""
    set_names_as_text(figure)
    figure.savefig(file, dpi=dpi, format="png")


def set_names_as_text(figure: Figure) -> None:
    """Has what is written in a figure drawn as it is: names hold dollars, which would make mathematics of them, and
    characters that no font has. To be called once all is in place."""
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    for axis in axes:
        if isinstance(axis.get_major_locator(), FixedLocator):  # its labels are given, and set at each drawing
            axis.set_ticklabels([_as_drawn(label.get_text()) for label in axis.get_majorticklabels()])
    powers = {id(label) for axis in axes if axis.get_scale() == "log" for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in powers:
            text.set_parse_math(False)
            text.set_text(_as_drawn(text.get_text()))


def _as_drawn(text: str) -> str:
    return text_of(text.split("\n"))
