"""A Secret as the kubelet mounts it: all files change at once, by one symlink that is renamed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path


class MountedSecret:
    """The kubelet's ``AtomicWriter``: ``FILE`` leads to ``..data/FILE``, and ``..data`` to a folder of the newest contents."""

    def __init__(self, folder: Path, files: Mapping[str, bytes | str]) -> None:
        self.folder = folder
        self._generations = count(1)
        folder.mkdir(parents=True)
        self.put(files)
        for name in files:
            (folder / name).symlink_to(Path("..data") / name)

    def __truediv__(self, name: str) -> Path:
        """Return the path that a process is given."""
        return self.folder / name

    def put(self, files: Mapping[str, bytes | str]) -> None:
        """Change the contents as the kubelet does when the Secret changed."""
        fresh = self.folder / f"..2026_01_01_{next(self._generations):06}"
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).write_bytes(content.encode() if isinstance(content, str) else content)
        data, swapped = self.folder / "..data", self.folder / "..data_tmp"
        old = data.resolve() if data.is_symlink() else None
        swapped.symlink_to(fresh.name)
        swapped.replace(data)
        if old is not None:
            shutil.rmtree(old)
