"""What all pictures of a run share: colours, the size of text, and files.

Drawn with matplotlib's object API on the Agg canvas: no window, no global pyplot state, no fonts but those that
matplotlib ships. Colours are from the palette of Okabe and Ito, which colour-blind readers can tell apart.
"""

import math
from pathlib import Path


BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
DOTS_PER_INCH = 150


def whole_percent(share: float) -> str:
    """Whole percent that never rounds to a false 0 or 100."""
    if not math.isfinite(share):
        return "?"
    if 0 < share < 0.005:
        return "<1"
    if 0.995 <= share < 1:
        return ">99"
    return f"{100 * share:.0f}"


def plain_text(text: str) -> str:
    """One line without matplotlib's mathematics, which a dollar sign would start."""
    return " ".join(str(text).split()).replace("$", r"\$")


def drawable_text(text: str) -> str:
    """A text whose every character matplotlib's default font has; a small square stands for each that it lacks."""
    font = _default_font()
    return "".join(c if c.isspace() or font.get_char_index(ord(c)) else "\N{WHITE SMALL SQUARE}" for c in str(text))


def _default_font():
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties()))


def text_width(text: str, font_size: float) -> float:
    """Width in inches in matplotlib's default font."""
    font = _default_font()
    font.set_size(font_size, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / 72  # 1/64 of a pixel, 72 pixels per inch


def fit_text(name: str, inches: float, font_size: float, suffix: str = "", prefix: str = "") -> str:
    """Cut a name so that the whole text is no wider than `inches`."""
    name = " ".join(str(name).split())
    low, high = 1, len(name)
    if text_width(prefix + name + suffix, font_size) > inches:
        while high - low > 1:
            middle = (low + high) // 2
            fits = text_width(prefix + name[:middle] + "…" + suffix, font_size) <= inches
            low, high = (middle, high) if fits else (low, middle)
        name = name[:low].rstrip() + "…"
    return prefix + plain_text(name) + suffix


def new_figure(width: float, height: float):
    """Make an empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: str | Path) -> Path:
    """Write a figure as a PNG file; its folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The version of matplotlib is left out, so that equal data gives equal files.
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
    return path
