"""Turns figures into SVG: for inside a page, where ids must not clash and colours follow the page, or for a file of its own.

Texts stay texts, so that they can be selected and every script that the reader's machine has is shown. The same figure gives
the same bytes. The style is set for the whole process while a figure is made: for one thread at a time.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

# Source: Okabe and Ito, "Color Universal Design", 2008; told apart with every common kind of colour blindness.
INK, PAPER, GREY = "#24292f", "#fffffe", "#8b949e"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
# In a page each colour is a CSS variable, so that a dark page can name a lighter one.
VARIABLES = {
    INK: "ink",
    PAPER: "paper",
    GREY: "grey",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    RED: "red",
}
# Inches.
BROAD = 6.0
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "grid.alpha": 0.35,
    "grid.color": GREY,
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "toprope",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}
_SPACE = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_LINES = "stroke-linejoin: round; stroke-linecap: butt"


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn figure.

    Attributes:
        name: unique in a report; the stem of the picture's file and the prefix of its ids.
        title: what it shows, for its caption.
        alt: what can be seen in it, for who can't see it.
        inline: an `<svg>` element for a page that defines the variables in `VARIABLES`.
        alone: a whole SVG file on white.
        broad: whether it needs a page's whole width.
    """

    name: str
    title: str
    alt: str
    inline: str
    alone: str
    broad: bool


@contextmanager
def style() -> Iterator[None]:
    """Set how figures look, whatever the user's own matplotlib settings are; figures are made and drawn inside."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The reader's machine draws the text; that the font which measures it lacks a letter does no harm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def draw(figure: Figure, name: str, title: str, alt: str) -> Picture:
    """Return a figure as SVG; call it inside `style`."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 - matplotlib wrote it
    _clean(root, name)
    root.attrib |= {"role": "img", "aria-label": alt, "style": _LINES}
    alone = _alone(root)
    del root.attrib["width"], root.attrib["height"]
    for element in root.iter():
        element.attrib |= {key: _themed(value) for key, value in element.attrib.items() if key in {"style", "fill"}}
    inline = ElementTree.tostring(root, encoding="unicode")
    return Picture(name, title, alt, inline, alone, broad=figure.get_figwidth() > BROAD)


def plain(text: str, longest: int = 28) -> str:
    """Return a name as a picture can show it: without characters that are no sign, and cut."""
    clean = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def _clean(root: ElementTree.Element, name: str) -> None:
    """Drop namespaces and the style sheet, which would hold for the whole page, and make every id the picture's own."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {f"{{{_SPACE}}}style", f"{{{_SPACE}}}metadata"}:
                parent.remove(child)
    used = {part for element in root.iter() for part in _targets(element)}
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SPACE}}}")
        if (identity := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{identity}")
        if (target := element.attrib.pop(_LINK, None)) is not None:
            element.set("href", f"#{name}-{target.removeprefix('#')}")
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{name}-"))


def _targets(element: ElementTree.Element) -> Iterator[str]:
    if _LINK in element.attrib:
        yield element.attrib[_LINK].removeprefix("#")
    if "clip-path" in element.attrib:
        yield element.attrib["clip-path"].removeprefix("url(#").removesuffix(")")


def _alone(root: ElementTree.Element) -> str:
    _, _, width, height = root.attrib["viewBox"].split()
    paper = ElementTree.Element("rect", {"width": width, "height": height, "fill": PAPER})
    root.insert(0, paper)
    root.set("xmlns", _SPACE)
    text = ElementTree.tostring(root, encoding="unicode")
    root.remove(paper)
    del root.attrib["xmlns"]
    return text + "\n"


def _themed(value: str) -> str:
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, f"var(--{variable})")
    return value
