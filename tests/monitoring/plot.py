# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib==3.10.*"]
# ///
"""Plot what ``record.py`` wrote: ``uv run tests/monitoring/plot.py FILE PICTURE.svg``. Not a part of the environment."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found]
import matplotlib.pyplot as plt  # type: ignore[import-not-found]

COLUMNS = 3
MOST_LINES = 7
SCALES = {
    "bytes": (2**30, "GiB"),
    "Bps": (1e6, "MB/s"),
    "percentunit": (0.01, "%"),
    "reqps": (1, "per s"),
    "s": (1, "s"),
    "ms": (1, "ms"),
}


def draw(axes: Any, panel: dict[str, Any]) -> None:
    """Draw one panel."""
    scale, unit = SCALES.get(panel["unit"], (1, ""))
    axes.set_title(panel["title"] + (f" ({unit})" if unit else ""), loc="left", fontsize=8, fontweight="bold")
    lines = sorted(panel["lines"], key=lambda line: -max((abs(value) for _, value in line["points"]), default=0))
    for line in lines[:MOST_LINES]:
        points = [(at, value / scale) for at, value in line["points"] if not math.isnan(value)]
        if points:
            label = line["legend"].replace("/csi.v1.", "")
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.1, drawstyle="steps-post")
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.25)
    axes.set_ylim(bottom=0)
    if axes.get_lines() and any(line["legend"] for line in lines):
        axes.legend(fontsize=5.5, loc="upper left", framealpha=0.6)


def main() -> None:
    """Plot all panels that have something to show over time."""
    recorded, picture = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rds-csi", "font.family": "sans-serif"})
    rows = {title: [panel for panel in row if any(line["points"] for line in panel["lines"])] for title, row in recorded.items()}
    heights = [0 for row in rows.values() for _ in range(math.ceil(len(row) / COLUMNS))]
    figure, grid = plt.subplots(len(heights), COLUMNS, figsize=(12, 1.75 * len(heights)), layout="constrained", sharex=True)
    at = 0
    for title, row in rows.items():
        for number in range(math.ceil(len(row) / COLUMNS) * COLUMNS):
            axes = grid[at + number // COLUMNS][number % COLUMNS]
            if number < len(row):
                draw(axes, row[number])
            else:
                axes.axis("off")
            if number == 0:
                axes.annotate(title, (0, 1.28), xycoords="axes fraction", fontsize=10, fontweight="bold", color="#225588")
        at += math.ceil(len(row) / COLUMNS)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=6)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
