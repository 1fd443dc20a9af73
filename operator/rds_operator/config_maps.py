"""ConfigMaps of the operator's own, in its namespace: only the active operator writes, and over whatever is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rds_records.kubernetes_api import ObjectNotFound


class ObjectApi(Protocol):
    """What is needed of the API server (``KubernetesApi`` has it)."""

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return an object."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object at the version that was read."""
        ...


@dataclass(frozen=True, slots=True)
class OwnConfigMap:
    """One of them, by its name."""

    api: ObjectApi
    namespace: str
    name: str

    async def read(self) -> dict[str, Any] | None:
        """Return the ConfigMap; None where there is none. Raises ApiError."""
        try:
            return await self.api.get(self._path)
        except ObjectNotFound:
            return None

    async def write(self, data: Mapping[str, str]) -> None:
        """Make this its data. Raises ApiError: WriteConflict where another operator has just written; try again next time."""
        body = await self.read()
        if body is not None:
            await self.api.replace(self._path, {**body, "data": dict(data)})
            return
        metadata = {"name": self.name, "namespace": self.namespace, "labels": {"app.kubernetes.io/part-of": "rds-csi"}}
        await self.api.create(self._collection, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)})

    @property
    def _collection(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    @property
    def _path(self) -> str:
        return f"{self._collection}/{self.name}"
