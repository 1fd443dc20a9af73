"""Kubernetes Events, under names that make a second try find the first.

core/v1 Events rather than events.k8s.io: ``kubectl describe`` and ``kubectl get events`` show both, and these are repeated by
raising ``count``, without the rules of a series. An Event must live in the namespace of the object that it is about, and in
``default`` where that has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Protocol

from rds_records.kubernetes_api import ObjectNotFound, RequestRefused, WriteConflict
from rds_records.record import ObjectReference

MAX_MESSAGE: Final = 1024
MAX_INSTANCE: Final = 128
"""Characters of ``reportingInstance`` (kubernetes, pkg/apis/core/validation/events.go)."""

CLUSTER_SCOPED: Final = "default"
"""Namespace of Events on objects that have none (kubernetes, pkg/apis/core/validation/events.go)."""

_NAME_PREFIX: Final = 200
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403


class Reason(StrEnum):
    """Why an Event is posted; each process has its own, and says which of them somebody should look at."""

    @property
    def warns(self) -> bool:
        """Whether somebody should look."""
        raise NotImplementedError

    @property
    def type(self) -> str:
        """``Warning`` where somebody should look, else ``Normal``."""
        return "Warning" if self.warns else "Normal"


@dataclass(frozen=True, slots=True)
class Notice:
    """One Event to be; ``count`` and ``last`` grow where the same thing happens again."""

    name: str
    reason: Reason
    message: str
    first: datetime
    last: datetime
    count: int = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that an Event is about."""

    api_version: str
    kind: str
    reference: ObjectReference
    """Its namespace is empty for an object that has none."""

    @property
    def namespace(self) -> str:
        """Where Events about it live."""
        return self.reference.namespace or CLUSTER_SCOPED


def claim_subject(claim: ObjectReference) -> Subject:
    """Return a PersistentVolumeClaim as the subject of Events."""
    return Subject("v1", "PersistentVolumeClaim", claim)


def vmi_subject(vmi: ObjectReference) -> Subject:
    """Return a VirtualMachineInstance as the subject of Events."""
    return Subject("kubevirt.io/v1", "VirtualMachineInstance", vmi)


def node_subject(name: str, uid: str | None) -> Subject:
    """Return a Node as the subject of Events."""
    return Subject("v1", "Node", ObjectReference(namespace="", name=name, uid=uid))


class Posted(StrEnum):
    """What became of a Notice."""

    CREATED = "Created"
    EXISTED = "Existed"
    """An Event of that name was there: posted before, by whichever life of the operator."""

    REFUSED = "Refused"
    """For good: nobody will ever take it (namespace gone or terminating, or the API server calls it invalid)."""


def event_name(prefix: str, *identity: str) -> str:
    """Return the name of the Event for a transition: a DNS name, the same for the same identity, in whichever life."""
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
    return f"{prefix[:_NAME_PREFIX].rstrip('.-')}.{digest}"


def event_body(notice: Notice, subject: Subject, component: str, instance: str) -> dict[str, Any]:
    """Return the Event as the API server takes it; ``component`` is the reporter's name, ``instance`` says which of them."""
    about = subject.reference
    known = {"namespace": about.namespace, "name": about.name, "uid": about.uid}
    involved = {"apiVersion": subject.api_version, "kind": subject.kind, **{key: value for key, value in known.items() if value}}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": subject.namespace, "name": notice.name},
        "involvedObject": involved,
        "type": notice.reason.type,
        "reason": notice.reason,
        "message": _shorten(notice.message),
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": instance[:MAX_INSTANCE],
        "firstTimestamp": _seconds(notice.first),
        "lastTimestamp": _seconds(notice.last),
        "count": notice.count,
    }


class EventApi(Protocol):
    """What the recorder needs of the API server (``KubernetesApi`` has it)."""

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a JSON merge patch."""
        ...


@dataclass(frozen=True, slots=True)
class EventRecorder:
    """Posts Events; ``component`` is who reports, ``instance`` which life of it."""

    api: EventApi
    component: str
    instance: str

    async def post(self, notice: Notice, subject: Subject) -> Posted:
        """Make sure that the Event exists. Raises ApiUnavailable where nobody knows whether it does: try again."""
        try:
            await self.api.create(_collection(subject), event_body(notice, subject, self.component, self.instance))
        except WriteConflict:
            return Posted.EXISTED
        except ObjectNotFound:
            return Posted.REFUSED
        except RequestRefused as error:
            if not _for_good(error):
                raise
            return Posted.REFUSED
        return Posted.CREATED

    async def repeat(self, notice: Notice, subject: Subject) -> Posted:
        """Make sure that the Event exists and shows how often it happened; errors as in ``post``."""
        posted = await self.post(notice, subject)
        if posted is not Posted.EXISTED:
            return posted
        body = {"count": notice.count, "lastTimestamp": _seconds(notice.last), "message": _shorten(notice.message)}
        try:
            await self.api.patch(f"{_collection(subject)}/{notice.name}", body)
        except ObjectNotFound:
            return await self.post(notice, subject)
        except RequestRefused as error:
            if not _for_good(error):
                raise
            return Posted.REFUSED
        return Posted.EXISTED


def _for_good(error: RequestRefused) -> bool:
    """Tell whether the same request will never be taken.

    An API server that has just started answers 403 to everybody until it has read its roles, and a missing role can be granted; of
    the 403s only a namespace that is going stays (kubernetes, plugin/pkg/admission/namespace/lifecycle, "being terminated").
    """
    if error.status == _FORBIDDEN:
        return "being terminated" in str(error)
    return error.status != _UNAUTHORIZED


def _collection(subject: Subject) -> str:
    return f"/api/v1/namespaces/{subject.namespace}/events"


def _shorten(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"


def _seconds(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
