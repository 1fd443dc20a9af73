"""CSI calls as tests make them, in the place of the sidecars: one line each, errors as status codes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from rds_csi.spec import csi_pb2, csi_pb2_grpc

GIB = 2**30


def block(mode: str = "MULTI_NODE_MULTI_WRITER") -> csi_pb2.VolumeCapability:
    """Return the capability of a raw block volume; ReadWriteMany unless said otherwise."""
    return csi_pb2.VolumeCapability(
        block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode)
    )


def mount(mode: str = "SINGLE_NODE_WRITER", fs_type: str = "ext4") -> csi_pb2.VolumeCapability:
    """Return the capability of a volume with a filesystem; ReadWriteOnce unless said otherwise."""
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type),
        access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode),
    )


RWX = block()
RWO = block("SINGLE_NODE_WRITER")


class Refused(Exception):
    """An RPC that ended with another status than OK; ``code`` is the status's name."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code: str = error.code().name
        self.message: str = error.details() or ""
        super().__init__(f"{self.code}: {self.message}")


class Csi:
    """A client of one shim; every call ends within ``timeout`` seconds. Safe to use from several threads."""

    def __init__(self, endpoint: str, *, timeout: float = 20.0) -> None:
        self.timeout = timeout
        self._channel = grpc.insecure_channel(
            endpoint,
            options=[
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )
        self.controller = csi_pb2_grpc.ControllerStub(self._channel)
        self.identity = csi_pb2_grpc.IdentityStub(self._channel)
        self.node = csi_pb2_grpc.NodeStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()

    def call(self, method: Any, request: Any, *, timeout: float | None = None) -> Any:
        """Make a call; raises Refused."""
        try:
            return method(request, timeout=timeout or self.timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Refused(error) from error

    def create(
        self,
        name: str,
        *,
        size: int = GIB,
        limit: int = 0,
        capability: csi_pb2.VolumeCapability = RWX,
        parameters: Mapping[str, str] | None = None,
        snapshot: str = "",
        clone: str = "",
        timeout: float | None = None,
    ) -> Any:
        """CreateVolume, empty or from a snapshot or volume; returns the Volume. ``AnyTwoNodes`` unless parameters are given."""
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size, limit_bytes=limit),
            volume_capabilities=[capability],
            parameters={"dualAttachPolicy": "AnyTwoNodes"} if parameters is None else dict(parameters),
            volume_content_source=content_source(snapshot, clone),
        )
        return self.call(self.controller.CreateVolume, request, timeout=timeout).volume

    def delete(self, handle: str, *, timeout: float | None = None) -> None:
        """DeleteVolume."""
        self.call(self.controller.DeleteVolume, csi_pb2.DeleteVolumeRequest(volume_id=handle), timeout=timeout)

    def expand(
        self,
        handle: str,
        size: int,
        *,
        limit: int = 0,
        capability: csi_pb2.VolumeCapability | None = None,
        timeout: float | None = None,
    ) -> tuple[int, bool]:
        """ControllerExpandVolume; returns the size, and whether nodes have their part to do."""
        request = csi_pb2.ControllerExpandVolumeRequest(
            volume_id=handle,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size, limit_bytes=limit),
            volume_capability=capability,
        )
        answer = self.call(self.controller.ControllerExpandVolume, request, timeout=timeout)
        return answer.capacity_bytes, answer.node_expansion_required

    def snapshot(self, name: str, source: str, *, timeout: float | None = None) -> Any:
        """CreateSnapshot; returns the Snapshot."""
        request = csi_pb2.CreateSnapshotRequest(name=name, source_volume_id=source)
        return self.call(self.controller.CreateSnapshot, request, timeout=timeout).snapshot

    def delete_snapshot(self, snapshot: str) -> None:
        """DeleteSnapshot."""
        self.call(self.controller.DeleteSnapshot, csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot))

    def snapshots(self, **asked: Any) -> tuple[list[Any], str]:
        """ListSnapshots with these fields; returns the Snapshots of one page and the token of the next."""
        answer = self.call(self.controller.ListSnapshots, csi_pb2.ListSnapshotsRequest(**asked))
        return [entry.snapshot for entry in answer.entries], answer.next_token

    def capabilities(self) -> set[str]:
        """ControllerGetCapabilities; returns the names of the RPCs."""
        answer = self.call(self.controller.ControllerGetCapabilities, csi_pb2.ControllerGetCapabilitiesRequest())
        return {csi_pb2.ControllerServiceCapability.RPC.Type.Name(one.rpc.type) for one in answer.capabilities}

    def publish(
        self,
        handle: str,
        node: str,
        capability: csi_pb2.VolumeCapability = RWX,
        *,
        context: Mapping[str, str] | None = None,
        readonly: bool = False,
        timeout: float | None = None,
    ) -> dict[str, str]:
        """ControllerPublishVolume; returns the publish context."""
        request = csi_pb2.ControllerPublishVolumeRequest(
            volume_id=handle,
            node_id=node,
            volume_capability=capability,
            volume_context=dict(context or {}),
            readonly=readonly,
        )
        return dict(self.call(self.controller.ControllerPublishVolume, request, timeout=timeout).publish_context)

    def unpublish(self, handle: str, node: str = "", *, timeout: float | None = None) -> None:
        """ControllerUnpublishVolume; from all nodes where none is named."""
        request = csi_pb2.ControllerUnpublishVolumeRequest(volume_id=handle, node_id=node)
        self.call(self.controller.ControllerUnpublishVolume, request, timeout=timeout)

    def publish_code(self, handle: str, node: str, capability: csi_pb2.VolumeCapability = RWX) -> str:
        """Publish, and return the status code's name."""
        return code_of(lambda: self.publish(handle, node, capability))


def content_source(snapshot: str, clone: str) -> csi_pb2.VolumeContentSource | None:
    """Return what a volume is to be made from, if anything."""
    if snapshot:
        return csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot))
    return csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=clone)) if clone else None


def code_of(call: Any) -> str:
    """Return the name of the status code with which a call ends."""
    try:
        call()
    except Refused as error:
        return error.code
    return "OK"


def at_once(calls: list[Any]) -> list[str]:
    """Make all calls at the same time; return their status codes in order."""
    with ThreadPoolExecutor(max_workers=len(calls)) as pool:
        return list(pool.map(code_of, calls))
