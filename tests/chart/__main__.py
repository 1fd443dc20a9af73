"""Make the templates of ``manifests/chart/`` anew from ``manifests/base``, ``manifests/monitoring`` and ``crds``."""

from __future__ import annotations

from tests.chart.templates import made

if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text)
        print(path)
