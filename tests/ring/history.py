"""Every version that a record ever had, as the API server's watch tells it: nothing between two looks can be missed."""

from __future__ import annotations

from collections.abc import Iterator

from rds_records.names import record_name
from tests.ring.api import Api, Object, path_of
from tests.ring.cluster import RECORD


def version_now(api: Api) -> str:
    """Return the version of all records now, to start from."""
    return str(api.request("GET", path_of(RECORD), query={"limit": 1})["metadata"]["resourceVersion"])


def versions(api: Api, handle: str, since: str) -> Iterator[Object]:
    """Yield every version of a volume's record after ``since``, until the one that is there now.

    The API server remembers at least the last 75 s; it refuses to tell an incomplete history (410, ApiError).
    """
    name = record_name(handle)
    last = api.get(RECORD, name)["metadata"]["resourceVersion"]
    if int(last) <= int(since):
        return
    for event in api.watch(RECORD, resource_version=since, seconds=30, fieldSelector=f"metadata.name={name}"):
        if event["type"] != "BOOKMARK":
            yield event["object"]
        if event["object"]["metadata"]["resourceVersion"] == last:
            return
    raise AssertionError(f"the watch ended before version {last} of record {name}")


def nodes_of(record: Object) -> list[str]:
    """Return the names of the attached nodes."""
    return [entry["nodeName"] for entry in record.get("status", {}).get("attachments", [])]
