"""The ring is what it claims to be; tests that use it may rest on that."""

from __future__ import annotations

import pytest

from tests.ring.api import ApiError
from tests.ring.controlplane import ControlPlane


def test_a_service_account_without_a_role_is_refused(control_plane: ControlPlane) -> None:
    nobody = control_plane.api_for("rds-csi", "nobody")
    with pytest.raises(ApiError, match='User "system:serviceaccount:rds-csi:nobody" cannot list resource "nodes"'):
        nobody.list("Node")


def test_a_killed_api_server_comes_back_on_its_port_with_its_data(control_plane: ControlPlane) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept", "namespace": "default"}, "data": {"a": "b"}}
    uid = control_plane.api.create(body)["metadata"]["uid"]
    control_plane.apiserver.restart()
    assert control_plane.api.get("ConfigMap", "kept", "default")["metadata"]["uid"] == uid
