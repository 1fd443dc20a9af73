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
MOST_LINES = 6
SCALES = {
    "bytes": (2**30, "GiB"),
    "Bps": (1e6, "MB/s"),
    "percentunit": (0.01, "%"),
    "reqps": (1, "per s"),
    "s": (1, "s"),
    "ms": (1, "ms"),
    "celsius": (1, "°C"),
    "watt": (1, "W"),
    "rotrpm": (1, "rpm"),
}


def draw(axes: Any, panel: dict[str, Any]) -> None:
    """Draw one panel; of many lines those that are not 0 all the time."""
    scale, unit = SCALES.get(panel["unit"], (1, ""))
    axes.set_title(panel["title"] + (f" ({unit})" if unit else ""), loc="left", fontsize=8)
    lines = sorted(panel["lines"], key=lambda line: -highest(line))
    moved = [line for line in lines if highest(line) > 0]
    shown = (moved if len(lines) > MOST_LINES and moved else lines)[:MOST_LINES]
    for line in shown:
        points = [(at, value / scale) for at, value in line["points"] if not math.isnan(value)]
        label = line["legend"].replace("/csi.v1.", "")
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2, drawstyle="steps-post")
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.25)
    top = max(highest(line) for line in shown) / scale
    axes.set_ylim(0, top * 1.15 if top else 1)
    axes.legend(fontsize=5.5, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=1)


def highest(line: dict[str, Any]) -> float:
    """Return the highest number of a line; no number counts as 0."""
    return max((value for _, value in line["points"] if not math.isnan(value)), default=0.0)


def number(panel: dict[str, Any]) -> str:
    """Return the last number of a panel that shows one."""
    scale, unit = SCALES.get(panel["unit"], (1, ""))
    value = f"{panel['lines'][0]['points'][-1][1] / scale:.3g}"
    return f"{panel['title']}: {value} {unit}".rstrip()


def main() -> None:
    """Plot all panels that have something to show."""
    recorded, picture = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rds-csi", "font.family": "sans-serif"})
    rows = {title: [panel for panel in row if any(line["points"] for line in panel["lines"])] for title, row in recorded.items()}
    figure = plt.figure(figsize=(13, 16), layout="constrained")
    plots = {title: [panel for panel in row if panel["kind"] != "stat"] for title, row in rows.items()}
    heights = [math.ceil(len(row) / COLUMNS) + 0.25 for row in plots.values()]
    for part, (title, row) in zip(figure.subfigures(len(rows), 1, height_ratios=heights), rows.items(), strict=True):
        numbers = "     ".join(number(panel) for panel in row if panel["kind"] == "stat")
        part.suptitle(
            f"{title}\n{numbers}" if numbers else title, x=0.01, ha="left", fontsize=9, fontweight="bold", color="#225588"
        )
        grid = part.subplots(math.ceil(len(plots[title]) / COLUMNS), COLUMNS, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index < len(plots[title]):
                draw(axes, plots[title][index])
            else:
                axes.axis("off")
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
