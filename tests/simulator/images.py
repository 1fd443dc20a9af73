"""The bytes of the image files: one sparse file each, in a directory beside the state, made only when somebody asks for it.

An image without a file here reads as zeros, so that thousands of images and those of 16 TiB cost nothing. Files are named by
the image's number, which is never given twice; what no row of the state names is swept away.
"""

import errno
import fcntl
import os
from collections.abc import Collection
from pathlib import Path

FICLONE = 0x40049409  # linux/fs.h
CHUNK = 1 << 20


class Images:
    """The directory with the images' bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def beside(cls, state: Path) -> "Images":
        """The images of the box whose state is kept at ``state``."""
        return cls(state.with_name(state.name + ".images"))

    def path(self, image: int) -> Path:
        """Where the bytes of an image lie, if it has a file yet."""
        return self.directory / str(image)

    def make(self, image: int, size: int) -> Path:
        """A real sparse file of ``size`` bytes; one that exists keeps its bytes."""
        path = self.path(image)
        self.directory.mkdir(exist_ok=True)
        path.touch()
        _grow(path, size)
        keep(path)
        return path

    def grow(self, image: int, size: int) -> None:
        """Make an image that has a file longer."""
        if self.path(image).exists():
            _grow(self.path(image), size)
            keep(self.path(image))

    def copy(self, source: int, target: int) -> None:
        """Copy an image's bytes, sharing them where the file system can. Where it cannot, a write meanwhile is seen or not."""
        if not self.path(source).exists():
            return
        with self.path(source).open("rb") as old, self.path(target).open("wb") as new:
            try:
                fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
            except OSError:
                _copy_data(old.fileno(), new.fileno())
        keep(self.path(target))

    def sweep(self, named: Collection[int]) -> None:
        """Remove the files of images that are not among ``named``."""
        if not self.directory.exists():
            return
        for path in self.directory.iterdir():
            if int(path.name) not in named:
                path.unlink()


def _grow(path: Path, size: int) -> None:
    try:
        if path.stat().st_size < size:
            os.truncate(path, size)
    except OSError as error:
        if error.errno != errno.EFBIG:  # ext4 ends 4 KiB below 16 TiB; nobody writes there
            raise


def keep(path: Path) -> None:
    """Have a file and its name written out, so that a power cut leaves them."""
    for each in (path, path.parent):
        file = os.open(each, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _copy_data(old: int, new: int) -> None:
    """Copy what is not a hole."""
    size = os.fstat(old).st_size
    os.truncate(new, size)
    at = _next_data(old, 0)
    while at is not None:
        end = os.lseek(old, at, os.SEEK_HOLE)
        while at < end:
            at += os.pwrite(new, os.pread(old, min(CHUNK, end - at), at), at)
        at = _next_data(old, end)


def _next_data(file: int, at: int) -> int | None:
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
