"""``/file``: the images on the pool and their directories."""

from collections.abc import Callable, Iterable, Mapping

from tests.simulator import frame
from tests.simulator.language import ConsoleError
from tests.simulator.menu import Call, Menu, Row, items
from tests.simulator.store import File

NARROW_FROM = (7, 24)


class FileMenu(Menu):
    """Files, directories and mount points by name, without a leading slash."""

    path = "/file"

    @property
    def commands(self) -> Mapping[str, Callable[[Call], str]]:
        """Only ``remove``."""
        return {"remove": self._remove}

    def rows(self) -> list[Row]:
        """The pool's mount point, then everything on it."""
        mount = File(self.store.pool.mount_point, kind="disk")
        files = [mount, *sorted(self.store.files.values(), key=lambda file: file.name)]
        return [_row(number, file) for number, file in enumerate(files)]

    def layout(self, rows: Iterable[Row]) -> str:
        """The frame of the version."""
        return frame.file_answer(items(rows), self.switches.width, narrow=self.switches.release >= NARROW_FROM)

    def _remove(self, call: Call) -> str:
        # What RouterOS does with the image of a live disk is not known; here it is gone, so that a wrong order is seen. That it
        # refuses a directory with something in it, a subvolume and what is read-only is not known either.
        for row in call.targets(call.rest):
            name = row.values["name"]
            if self.store.is_read_only(name):
                raise ConsoleError("failure: read-only file system")
            if self.store.below(name):
                raise ConsoleError("failure: directory not empty")
            if name not in self.store.files or name in map(self.store.directory_of, self.store.subvolumes):
                raise ConsoleError("failure: operation not permitted")
            del self.store.files[name]
        return ""


def _row(number: int, file: File) -> Row:
    suffix = "." + file.name.rsplit(".", 1)[1] if "." in file.name.rsplit("/", 1)[-1] else ""
    kind = f"{suffix} file".lstrip() if file.kind == "file" else file.kind
    values = {"name": file.name, "type": kind, "size": str(file.size)}
    printed = [f"name={file.name}", f"type={kind}"]
    if file.kind == "file":
        printed.append(f"size={frame.rounded(file.size)}")
    printed.append(f"last-modified={file.modified}")
    return Row(file.name, number, values, printed)
