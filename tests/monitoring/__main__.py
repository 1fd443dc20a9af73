"""Make the objects of ``manifests/monitoring/`` anew from what they are made of."""

from __future__ import annotations

from tests.monitoring.files import made

if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text)
        print(path)
