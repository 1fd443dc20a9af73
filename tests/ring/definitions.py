"""Kinds of other projects, installed and removed as their own installation would: from files with CustomResourceDefinitions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import yaml

from tests.ring.api import Api, ApiError, Object, path_of
from tests.ring.waiting import eventually

DEFINITION = "CustomResourceDefinition"


def install_definitions(api: Api, file: Path) -> None:
    """Install every definition of the file and wait until its kind is served."""
    bodies = list(yaml.safe_load_all(file.read_text()))
    for body in bodies:
        api.apply(body)
    for body in bodies:
        eventually(f"{body['metadata']['name']} is established", partial(_established, api, body["metadata"]["name"]))
        eventually(f"{body['spec']['names']['kind']} is served", partial(_served, api, body["spec"]["names"]["kind"]))


def remove_definitions(api: Api, file: Path) -> None:
    """Remove the definitions of the file with every object of their kinds, finalizers or not."""
    for body in yaml.safe_load_all(file.read_text()):
        name = body["metadata"]["name"]
        if api.find(DEFINITION, name) is None:
            continue
        for left in api.list(body["spec"]["names"]["kind"]):
            let_go(api, left)
        api.delete(DEFINITION, name)
        eventually(f"{name} is gone", partial(_gone, api, name))


def let_go(api: Api, body: Object) -> None:
    """Remove an object, finalizers or not."""
    metadata = body["metadata"]
    place = (body["kind"], metadata["name"], metadata.get("namespace"))
    api.delete(*place)
    if api.find(*place) is not None:
        api.patch(body["kind"], metadata["name"], {"metadata": {"finalizers": None}}, metadata.get("namespace"))


def _established(api: Api, name: str) -> bool:
    conditions = api.get(DEFINITION, name).get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def _served(api: Api, kind: str) -> bool:
    """Return whether a kind is listed; to the first who asks the API server says for a moment that it is not ready (429)."""
    try:
        api.request("GET", path_of(kind))
    except ApiError as error:
        if error.status in {404, 429, 503}:
            return False
        raise
    return True


def _gone(api: Api, name: str) -> bool:
    return api.find(DEFINITION, name) is None
