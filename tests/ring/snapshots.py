"""Snapshots of one test's claims, as a user or a backup tool makes them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from tests.ring.api import Object
from tests.ring.cluster import DRIVER, Cluster
from tests.ring.definitions import let_go
from tests.ring.waiting import eventually

SNAPSHOT, CONTENT, CLASS = "VolumeSnapshot", "VolumeSnapshotContent", "VolumeSnapshotClass"
VERSION = "snapshot.storage.k8s.io/v1"


class Snapshots:
    """VolumeSnapshots in the namespace of a test, their classes and contents."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self._classes: list[str] = []

    def make_class(self, parameters: Mapping[str, str] | None = None, *, deletion_policy: str = "Delete") -> str:
        """Make a VolumeSnapshotClass of the driver; return its name."""
        name = self.cluster.name(f"snapshots-{secrets.token_hex(2)}")
        self.api.create(
            {
                "apiVersion": VERSION,
                "kind": CLASS,
                "metadata": {"name": name},
                "driver": DRIVER,
                "deletionPolicy": deletion_policy,
                "parameters": dict(parameters or {}),
            }
        )
        self._classes.append(name)
        return name

    def take(self, claim: str, snapshot_class: str) -> str:
        """Ask for a snapshot of a claim; return its name."""
        name = f"snapshot-{secrets.token_hex(3)}"
        self.api.create(
            {
                "apiVersion": VERSION,
                "kind": SNAPSHOT,
                "metadata": {"name": name, "namespace": self.cluster.namespace},
                "spec": {"volumeSnapshotClassName": snapshot_class, "source": {"persistentVolumeClaimName": claim}},
            }
        )
        return name

    def content_of(self, name: str) -> Object:
        """Return the VolumeSnapshotContent of a snapshot that has one; an AssertionError says that it has none."""
        snapshot = self.api.get(SNAPSHOT, name, self.cluster.namespace)
        content = snapshot.get("status", {}).get("boundVolumeSnapshotContentName")
        assert content, snapshot.get("status")
        return self.api.get(CONTENT, content)

    def wait_ready(self, name: str, *, timeout: float = 60.0) -> Object:
        """Wait until a snapshot is ready to use; return its status."""

        def ready() -> Object | None:
            status: Object = self.api.get(SNAPSHOT, name, self.cluster.namespace).get("status", {})
            assert status.get("readyToUse"), status
            return status

        return eventually(f"snapshot {name} is ready", ready, timeout=timeout)

    def handle_of(self, name: str) -> str:
        """Return the driver's id of a snapshot that is ready."""
        return str(self.content_of(name)["status"]["snapshotHandle"])

    def delete(self, name: str) -> None:
        self.api.delete(SNAPSHOT, name, self.cluster.namespace)

    def wait_gone(self, name: str, content: str, *, timeout: float = 60.0) -> None:
        """Wait until a snapshot and its content are gone, so the driver has deleted it."""

        def gone() -> bool:
            left = self.api.find(CONTENT, content)
            assert left is None, left.get("status")
            return self.api.find(SNAPSHOT, name, self.cluster.namespace) is None

        eventually(f"snapshot {name} is gone", gone, timeout=timeout)

    def clean_up(self) -> None:
        """Remove the snapshots of this test, their contents and classes, finalizers or not."""
        for snapshot in self.api.list(SNAPSHOT, self.cluster.namespace):
            let_go(self.api, snapshot)
        for content in self.api.list(CONTENT):
            if content["spec"]["volumeSnapshotRef"]["namespace"] == self.cluster.namespace:
                let_go(self.api, content)
        for name in self._classes:
            self.api.delete(CLASS, name)
