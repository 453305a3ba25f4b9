"""The methods we use of matplotlib's Agg canvas, typed, since matplotlib does not type them; and drawing of figures."""

from functools import cache
from typing import Any, BinaryIO, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import BboxBase
from numpy.typing import NDArray

from ds_rvqvae.errors import text_of

_WIDE_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Source Han Sans", "IPAexGothic"),
    *("IPAGothic", "TakaoGothic", "VL Gothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Yu Gothic", "MS Gothic", "Microsoft YaHei", "SimHei", "Malgun Gothic", "Hiragino Sans", "PingFang SC"),
    *("Apple SD Gothic Neo", "Arial Unicode MS", "Unifont"),
)
"""Fonts with Chinese, Japanese and Korean characters; a machine may have one of them."""


class Canvas(Protocol):
    """Draws a figure into memory."""

    def draw(self) -> object:
        """Draws all artists that are not animated."""
        ...

    def copy_from_bbox(self, bbox: BboxBase) -> Any:
        """Returns a copy of the pixels in a rectangle, for `restore_region`."""
        ...

    def restore_region(self, region: Any) -> object:
        """Puts a copy from `copy_from_bbox` back."""
        ...

    def buffer_rgba(self) -> memoryview:
        """Returns the pixels themselves, uint8 `[height, width, 4]`."""
        ...


def canvas_of(figure: Figure) -> Canvas:
    """Makes a canvas for a figure and attaches it to the figure."""
    set_names_as_text(figure)
    return FigureCanvasAgg(figure)


def pixels_on(canvas: Canvas) -> NDArray[np.uint8]:
    """Returns a view of the drawn pixels, `[height, width, 4]` RGBA; the next drawing overwrites them."""
    return np.asarray(canvas.buffer_rgba())


def write_png(figure: Figure, file: BinaryIO, dpi: float) -> None:
    """Draws a figure as PNG."""
    set_names_as_text(figure)
    figure.savefig(file, dpi=dpi, format="png")


def set_names_as_text(figure: Figure) -> None:
    """Makes matplotlib draw all text of a figure literally; call it when the figure is complete.

    Names may hold dollar signs, which matplotlib would read as mathematics, and characters that the default font lacks.
    Characters that no font has become question marks, because matplotlib would warn of each.
    """
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    for axis in axes:
        if isinstance(axis.get_major_locator(), FixedLocator):  # fixed labels, which each drawing sets again
            axis.set_ticklabels([_as_drawn(label.get_text()) for label in axis.get_majorticklabels()])
    powers = {id(label) for axis in axes if axis.get_scale() == "log" for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in powers:
            text.set_parse_math(False)
            text.set_text(_as_drawn(text.get_text()))
            if any(ord(letter) > 0x2FF and not _has("", letter) for letter in text.get_text()):
                text.set_fontfamily([*text.get_fontfamily(), *_wide_fonts()])


def _as_drawn(text: str) -> str:
    drawn = text_of(text.split("\n"))
    return "".join(letter if ord(letter) <= 0x2FF or _is_drawn(letter) else "?" for letter in drawn)


@cache
def _wide_fonts() -> list[str]:
    """Returns the fonts of `_WIDE_FONTS` that are installed."""
    there = {font.name for font in fontManager.ttflist}
    return [name for name in _WIDE_FONTS if name in there]


@cache
def _is_drawn(letter: str) -> bool:
    """Returns whether any font has a character."""
    return any(_has(family, letter) for family in ("", *_wide_fonts()))


@cache
def _has(family: str, letter: str) -> bool:
    """Returns whether the font of a family has a character; an empty family means the default font."""
    font = get_font(findfont(FontProperties(family=family or None)))
    return font.get_char_index(ord(letter)) != 0
