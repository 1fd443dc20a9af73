"""Play, and write down what the dashboard's panels showed: ``python -m tests.monitoring.record FILE``, for ``plot.py``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from tests.monitoring.dashboard import ROWS, Panel
from tests.monitoring.play import Played, filled_in, played
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.installation import install
from tests.ring.kubelet import Kubelet
from tests.ring.kubevirt import install_kinds
from tests.ring.waiting import eventually

LOOK = 15.0
"""Seconds that the processes are looked at after the play."""


def shown(play: Played, panel: Panel, start: float, end: float) -> dict[str, object]:
    """Return the lines of a panel, with the legends that Grafana would make."""
    lines = []
    for legend, query in panel.queries.items():
        for line in play.server.over_time(filled_in(query, play.volume), start=start, end=end):
            text = legend
            for name, value in line.labels.items():
                text = text.replace(f"{{{{{name}}}}}", value)
            lines.append({"legend": text, "points": [(round(at - start, 1), value) for at, value in line.points]})
    return {"title": panel.title, "unit": panel.unit, "kind": panel.kind, "lines": lines}


def main() -> None:
    """Play once."""
    file = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="rds-play-") as folder, ControlPlane(Path(folder) / "plane") as plane:
        install(plane)
        install_kinds(plane.api)
        with Kubelet(plane.api) as kubelet:
            cluster, start = Cluster(plane.api, kubelet), time.time()
            with played(plane, cluster, Path(folder) / "play") as play:
                enough = time.time() + LOOK
                eventually("it was looked at long enough", lambda: time.time() > enough, timeout=2 * LOOK)
                rows = {title: [shown(play, panel, start, time.time()) for panel in row] for title, row in ROWS.items()}
                file.write_text(json.dumps({title.replace("$volume", play.volume): row for title, row in rows.items()}))


if __name__ == "__main__":
    main()
