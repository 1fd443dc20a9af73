"""JSON over HTTP with the API server: typed errors, a timeout on every request, and the server's time from every answer."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import yaml
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.config_exception import ConfigException

from rds_records.clock import ServerClock

MERGE_PATCH: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_PAGE: Final = 500


class ApiError(Exception):
    """The API server did not do what was asked.

    ``ApiError`` ── ``ObjectNotFound`` (404), ``WriteConflict`` (409), ``RequestRefused`` (400, 401, 403, 405, 422) and
    ``ApiUnavailable`` (no answer in time, 429, 5xx), the only one after which a write may have been applied all the same.
    """

    def __init__(self, message: str, status: int | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class ObjectNotFound(ApiError):
    """The API server says that there is no such object: positive evidence of absence."""


class WriteConflict(ApiError):
    """The object changed since it was read, or one of that name exists already."""


class RequestRefused(ApiError):
    """The API server will not do this: invalid, forbidden, or refused by a rule of the CRD."""


class ApiUnavailable(ApiError):
    """Nobody knows: the API server cannot be reached, did not answer in time, or failed; a write may have been applied."""


class UnusableConfiguration(ValueError):
    """What says how to reach the API server cannot be used; the message is one line, without anything that stands in a key."""


class KubernetesApi:
    """A connection to one API server; paths are those of its REST API (``/api/v1/nodes/NAME``)."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        clock: ServerClock | None = None,
        timeout: float = 10.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``timeout`` is in seconds and for each request; ``headers`` go with every one."""
        # aiohttp sends a GET or PUT again by itself after a dropped connection, as far as it can; every writer of this project
        # copes with a write that was applied although it looked refused.
        configuration.retries = None
        configuration.connection_pool_maxsize = 128
        # With trust_env aiohttp looks for a ~/.netrc at every request, in a worker thread.
        configuration.client_session_kwargs = {"trust_env": False}
        self.clock = clock or ServerClock()
        self._client = ApiClient(configuration)
        for name, value in (headers or {}).items():
            self._client.set_default_header(name, value)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return an object, or a list as the API server pages it."""
        return await self._request("GET", path, params=params)

    async def get_metadata(self, path: str) -> dict[str, Any]:
        """Return an object's ``metadata`` alone; a Node's status is long."""
        metadata: dict[str, Any] = (await self._request("GET", path, accept=_METADATA))["metadata"]
        return metadata

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """Return all items of a collection, over all its pages at one consistent resourceVersion, and that version."""
        items: list[dict[str, Any]] = []
        query = {"limit": str(_PAGE), **(params or {})}
        while True:
            page = await self._request("GET", path, params=query)
            items.extend(page["items"])
            token = page["metadata"].get("continue")
            if not token:
                return items, page["metadata"].get("resourceVersion", "")
            query["continue"] = token

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; raises WriteConflict where one of that name exists."""
        return await self._request("POST", path, body=body)

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object; raises WriteConflict where its resourceVersion is not the newest."""
        return await self._request("PUT", path, body=body)

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a JSON merge patch (RFC 7386)."""
        return await self._request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def delete(
        self, path: str, *, resource_version: str | None = None, uid: str | None = None, dry_run: bool = False
    ) -> dict[str, Any]:
        """Delete an object; with preconditions, raises WriteConflict where they do not hold. ``dry_run``: only check and ask."""
        preconditions = {key: value for key, value in (("resourceVersion", resource_version), ("uid", uid)) if value}
        body = {**({"preconditions": preconditions} if preconditions else {}), **({"dryRun": ["All"]} if dry_run else {})}
        return await self._request("DELETE", path, body=body or None)

    async def watch(
        self, path: str, resource_version: str, params: Mapping[str, str] | None = None, *, seconds: int = 300
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield watch events from that version on, until the server ends the watch; raises ApiError when it breaks."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
            **(params or {}),
        }
        try:
            response = await self._send("GET", path, query, None, _JSON, seconds + self._timeout)
            async with response.response as stream:
                if stream.status >= 400:
                    raise _error("GET", path, stream.status, await stream.read())
                async for line in stream.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise _error("GET", path, status.get("code", 500), json.dumps(status).encode())
                    yield event
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiUnavailable(f"watch of {path}: {_describe(error)}") from error

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> dict[str, Any]:
        sent = time.monotonic()
        try:
            # aiohttp's timeout is over the whole answer, its body included.
            response = await self._send(method, path, params, body, content_type, self._timeout, accept)
            data = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiUnavailable(f"{method} {path}: {_describe(error)}") from error
        self.clock.observe(response.headers.get("Date"), sent, time.monotonic())
        if response.status >= 400:
            raise _error(method, path, response.status, data)
        answer: dict[str, Any] = json.loads(data)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        timeout: float,
        accept: str = _JSON,
    ) -> Any:
        verb, url, headers, _, _ = await self._client.param_serialize(
            method,
            path,
            query_params=list(params.items()) if params else None,
            header_params={"Accept": accept, "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        return await self._client.rest_client.request(
            verb, url, headers=headers, body=body, _request_timeout=aiohttp.ClientTimeout(total=timeout)
        )


def _error(method: str, path: str, status: int, data: bytes) -> ApiError:
    try:
        answer = json.loads(data)
        message, reason = str(answer.get("message", "")), str(answer.get("reason", ""))
    except (ValueError, AttributeError):
        message, reason = data.decode(errors="replace")[:200], ""
    text = f"{method} {path}: {status} {message}"
    kind: type[ApiError]
    match status:
        case 404:
            kind = ObjectNotFound
        case 409:
            kind = WriteConflict
        case 400 | 401 | 403 | 405 | 410 | 422:
            kind = RequestRefused
        case _:
            kind = ApiUnavailable
    return kind(text, status, reason)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def load_configuration(kubeconfig: str | None) -> Configuration:
    """Return how to reach the API server: from a kubeconfig file, or as a pod does where none is named.

    Raises UnusableConfiguration.
    """
    configuration = Configuration()
    with one_line_for_bad_configuration(f"kubeconfig {kubeconfig}" if kubeconfig else "a pod's service account"):
        if kubeconfig:
            # The loader takes a file that is not there for an empty one.
            if not any_exists(kubeconfig):
                raise UnusableConfiguration("there is no such file")
            await kubernetes_config.load_kube_config(config_file=str(Path(kubeconfig)), client_configuration=configuration)
        else:
            kubernetes_config.load_incluster_config(client_configuration=configuration)
        check_certificates(configuration)
    return configuration


def any_exists(paths: str) -> bool:
    """Whether there is one of the files, which are separated as in KUBECONFIG."""
    return any(Path(path).expanduser().exists() for path in paths.split(os.pathsep) if path)


@contextlib.contextmanager
def one_line_for_bad_configuration(source: str) -> Iterator[None]:
    """Turn all that the loader raises into UnusableConfiguration, which names the source.

    For a file of another shape than expected that is whatever Python raises where the loader looks into it.
    """
    try:
        yield
    except (ConfigException, UnusableConfiguration, OSError) as error:
        why = str(error)
    except yaml.MarkedYAMLError as error:
        # Its text may show what stands there.
        why = f"it is no YAML: line {error.problem_mark.line + 1}" if error.problem_mark else "it is no YAML"
    except (yaml.YAMLError, UnicodeDecodeError):
        why = "it is no YAML"
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        why = f"it has not the form of a kubeconfig ({type(error).__name__})"
    else:
        return
    raise UnusableConfiguration(f"no way to reach the API server from {source}: {' '.join(why.split())}")


def check_certificates(configuration: Configuration) -> None:
    """Read what TLS will need, as the client will when it is made; raises OSError."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)


__all__ = [
    "MERGE_PATCH",
    "ApiError",
    "ApiUnavailable",
    "KubernetesApi",
    "ObjectNotFound",
    "RequestRefused",
    "UnusableConfiguration",
    "WriteConflict",
    "any_exists",
    "check_certificates",
    "load_configuration",
    "one_line_for_bad_configuration",
]
