"""Keys of a mounted Secret that change under the running controller and operator."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import asyncssh
import pytest

from tests.mounted_secret import MountedSecret
from tests.ring.api import Object
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator, Served, Shim
from tests.ring.rpc import Csi
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox


@pytest.fixture
def own_box(tmp_path: Path) -> Iterator[SimulatedBox]:
    """A box whose keys the test may change."""
    with SimulatedBox(tmp_path / "box") as box:
        yield box


def keys_of(box: SimulatedBox) -> dict[str, bytes | str]:
    return {"id_rsa": box.private_key.read_bytes(), "rds-host-key": box.host_key}


def box_of(program: Served) -> str:
    """Return what a program says of its link to the box."""
    return str(json.loads(program.get("/readyz")[1])["box"])


def errors_of(program: Served) -> list[str]:
    """Return the reasons that it logged as errors."""
    logged = [json.loads(line) for line in program.output().splitlines() if line.startswith("{")]
    return [line.get("reason", line["message"]) for line in logged if line["level"] in {"error", "critical"}]


def audit_of(program: Served) -> list[Object]:
    """Return the entries of its audit log."""
    return [json.loads(line) for line in program.output().splitlines() if '"logger": "rds.audit"' in line]


@pytest.mark.requirement("R59")
def test_controller_and_operator_take_up_a_secret_that_changes_and_refuse_one_that_does_not_fit(
    installed: ControlPlane, own_box: SimulatedBox, tmp_path: Path
) -> None:
    secret = MountedSecret(tmp_path / "secret", keys_of(own_box))
    box = dataclasses.replace(reach(own_box), key_file=secret / "id_rsa", host_key_file=secret / "rds-host-key")
    with ExitStack() as ends:
        shim = ends.enter_context(Shim(installed, tmp_path / "shim", box))
        both: tuple[Served, ...] = (shim, ends.enter_context(Operator(installed, tmp_path / "operator", box=box)))
        lives = [program.pid for program in both]
        eventually("both reach the box", lambda: [box_of(program) for program in both] == ["ok", "ok"])

        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        secret.put({**keys_of(own_box), "rds-host-key": other})
        eventually("both refuse the box", lambda: all("presents host key" in box_of(program) for program in both))
        for program in both:
            eventually("it is said loudly", lambda program=program: any("presents host key" in said for said in errors_of(program)))  # type: ignore[misc]

        own_box.renew_keys()
        secret.put(keys_of(own_box))
        eventually("both reach the box with its new keys", lambda: [box_of(program) for program in both] == ["ok", "ok"])
        with Csi(shim.endpoint) as csi:
            handle = csi.create(f"pvc-{uuid4()}").volume_id
            assert handle in own_box.disks()
            csi.delete(handle)
        assert {"call.admitted", "box.changed", "host_key.refused"} <= {line["audit"] for line in audit_of(shim)}
        assert {line["method"] for line in audit_of(shim) if line["audit"] == "call.admitted"} == {"CreateVolume", "DeleteVolume"}
        changed = [line["command"] for line in audit_of(shim) if line["audit"] == "box.changed"]
        assert all(
            any(handle in command and command.startswith(verb) for command in changed) for verb in ("/disk add", "/disk remove")
        )
        assert {line["audit"] for line in audit_of(both[1])} == {"host_key.refused"}

        assert [program.pid for program in both] == lives
        assert all(program.running for program in both)
        assert not any("PRIVATE KEY" in program.output() for program in both)
