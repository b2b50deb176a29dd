"""The picture that ``--plot`` writes."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import FunnelError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class PictureError(FunnelError):
    """A picture cannot be written; the message says why and what to do."""


def check_picture(path: Path | None) -> None:
    """Check, before a long run, that a picture can be written.

    Raises:
        PictureError: matplotlib is not installed, or does not know the kind of file, or the
            folder cannot be written.
    """
    if path is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise PictureError("--plot needs matplotlib: pip install 'funnel-stream[experiments]'")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in kinds:
        raise PictureError(f"--plot {path}: a picture ends in .{', .'.join(sorted(kinds))}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise PictureError(f"--plot {path}: no file can be written there")


def set_title(axes: "Axes", title: str) -> None:
    """Set a title that may contain the name of any file: no formula, and all of it text."""
    axes.set_title(title.encode("utf-8", "replace").decode("utf-8"), parse_math=False)


def save(figure: "Figure", path: Path) -> None:
    """Write a picture; a ``$`` in a name begins no formula.

    Raises:
        PictureError: it cannot be written.
    """
    for axes in figure.axes:
        legend = axes.get_legend()
        for text in (axes.title, *axes.texts, *(legend.get_texts() if legend else ())):
            text.set_parse_math(False)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise PictureError(f"--plot {path} cannot be written: {error}") from error
