"""``/disk/btrfs/subvolume``: RouterOS 7.18 and newer with rose-storage (MikroTik's manual, page "Btrfs subvolumes and snapshots").

Its ``print`` is documented nowhere and is not here. Not known, and chosen here: every text behind ``failure:`` but "already have
such entry"; what ``fullname`` and ``path`` look like; which of two subvolumes with the same last name ``parent=`` means (here the
first); that one with subvolumes in it is not removed (Btrfs itself refuses).
"""

import uuid
from collections.abc import Callable, Mapping

from tests.simulator.language import ConsoleError
from tests.simulator.menu import Call, Menu, Row, read_yes_no, yes_no
from tests.simulator.store import File, Subvolume

FIRST_RELEASE = (7, 18)
ARGUMENTS = {"name", "fs", "parent", "read-only"}


class SubvolumeMenu(Menu):
    """The subvolumes of the pool, found by their last name."""

    path = "/disk/btrfs/subvolume"
    can_print = False

    @property
    def is_there(self) -> bool:
        """Only new versions with the storage package."""
        return self.switches.rose_storage and self.switches.release >= FIRST_RELEASE

    @property
    def commands(self) -> Mapping[str, Callable[[Call], str]]:
        """``add`` and ``remove``."""
        return {"add": self._add, "remove": self._remove}

    def rows(self) -> list[Row]:
        """One row a subvolume, in the order in which they were made."""
        return [
            Row(
                each.id,
                number,
                {
                    "name": each.last_name,
                    "fs": self.store.pool.label,
                    "fullname": each.name,
                    "path": "/" + self.store.directory_of(each),
                    "creation-time": each.created,
                    "uuid": each.uuid,
                    "subvolume-id": str(each.id),
                    "read-only": yes_no(each.read_only),
                },
            )
            for number, each in enumerate(self.store.subvolumes)
        ]

    def _add(self, call: Call) -> str:
        values = call.arguments(ARGUMENTS)
        for key in ("fs", "name"):
            if not values.get(key, "").strip("/"):
                raise ConsoleError(f"missing ={key}=")
        pool = self.store.pool
        if pool.fs != "btrfs" or values["fs"] != pool.label:
            raise ConsoleError("input does not match any value of fs")
        read_only = read_yes_no("read-only", values.get("read-only", "no"))
        source = self._parent(values["parent"]) if "parent" in values else None
        name = values["name"].strip("/")
        directory = f"{pool.mount_point}/{name}"
        if directory in self.store.files:
            raise ConsoleError("failure: already have such entry")
        if self.store.is_read_only(directory):
            raise ConsoleError("failure: read-only file system")
        above = directory.rpartition("/")[0]
        above_is_there = above == pool.mount_point or getattr(self.store.files.get(above), "kind", "") == "directory"
        if not above_is_there and self.switches.missing_parent == "refuse":
            raise ConsoleError("failure: no such directory")
        self.machine.take_space(0)
        # The bytes come first: a kill before the state is kept leaves files that no row names, and they are swept away.
        files = self._copies(source, directory) if source else []
        self.store.make_directories(directory)
        self.store.files.update({file.name: file for file in files})
        fresh = Subvolume(self.store.new_id(), name, str(uuid.uuid4()), self.machine.now(), read_only)
        self.store.subvolumes.append(fresh)
        return ""

    def _parent(self, last_name: str) -> Subvolume:
        for each in self.store.subvolumes:
            if each.last_name == last_name:
                return each
        raise ConsoleError("input does not match any value of parent")

    def _copies(self, source: Subvolume, directory: str) -> list[File]:
        """What a snapshot holds: everything in the source but what lies in subvolumes of its own; those are empty directories."""
        old = self.store.directory_of(source)
        copies = []
        for file in self.store.below(old):
            if self.store.subvolume_around(file.name) is not source:
                continue
            copy = File(directory + file.name.removeprefix(old), file.kind, file.size, file.modified)
            if file.kind == "file":
                copy.image, copy.origin = self.store.new_id(), file.origin
                self.machine.copy_image(file.image, copy.image)
            copies.append(copy)
        return copies

    def _remove(self, call: Call) -> str:
        # A disk on a file in it stays without its file, as in /file: so a wrong order is seen.
        keys = {row.key for row in call.targets(call.rest)}
        for each in [each for each in self.store.subvolumes if each.id in keys]:
            directory = self.store.directory_of(each)
            if any(other.name.startswith(each.name + "/") for other in self.store.subvolumes):
                raise ConsoleError("failure: subvolume has subvolumes in it")
            for file in [*self.store.below(directory), self.store.files[directory]]:
                del self.store.files[file.name]
            self.store.subvolumes.remove(each)
        return ""
