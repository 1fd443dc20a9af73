"""The kopf handlers, which only declare, and the settings under which kopf leaves no trace on any object.

``on.event`` adds nothing to objects. Handlers return None: kopf writes what they return into ``status``.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import kopf
from kubernetes.aio.client import Configuration

from rds_operator.active import ActiveOperator
from rds_records.names import API_GROUP, API_VERSION, PLURAL

NETWORK_TIMEOUT_SECONDS: Final = 30.0


class _NoDiffs(kopf.DiffBaseStorage):
    """Nothing here asks what changed on an object; kopf would copy every object that the watch brings in order to know."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.networking.request_timeout = NETWORK_TIMEOUT_SECONDS
    # A watch that ends now and then is started anew by kopf; one that falls silent is given up after 70 s (kopf's default).
    chosen.watching.server_timeout = 300  # seconds, a whole number for the API server
    chosen.watching.connect_timeout = NETWORK_TIMEOUT_SECONDS
    return chosen


def registry(active: ActiveOperator, configuration: Configuration) -> kopf.OperatorRegistry:
    """Return the handlers of the active replica."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection(configuration)

    @kopf.on.event(API_GROUP, API_VERSION, PLURAL, registry=handlers)
    async def record(event: Any, **_: Any) -> None:
        active.record_changed(event["object"], deleted=event["type"] == "DELETED")

    return handlers


async def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return what kopf needs to reach the API server; read anew at each login, because tokens rotate."""
    words = (await configuration.get_api_key_with_prefix("BearerToken") or "").split()
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=words[-1] if words else None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


def quiet() -> None:
    """Keep kopf's running commentary out of the log: it says of every event that it was handled."""
    for name in ("kopf", "kopf.objects", "kopf.activities"):
        logging.getLogger(name).setLevel(logging.WARNING)
