"""Command lines of nvme-cli, and which subsystems are ours to connect and disconnect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_csi.contexts import publish_context
from rds_csi.errors import FailedPrecondition, InvalidArgument, Rejected
from rds_csi.node.commands import Output
from rds_csi.node.nvme import (
    DEFAULT_MANAGED_PREFIX,
    ConnectOutcome,
    Target,
    check_managed_prefix,
    connect,
    connect_outcome,
    connected_elsewhere,
    disconnect,
    foreign_host_names,
    is_managed,
    target_for,
)
from rds_csi.node.sysfs import find_session
from rds_records.names import host_id_for, host_nqn_for
from tests.unit.node.fake_sysfs import NQN, FakeSysfs

VOLUME = {
    "nqn": NQN,
    "nvmeAddress": "10.0.0.1",
    "nvmePort": "4420",
    "ctrlLossTmo": "600",
    "reconnectDelay": "7",
    "keepAliveTmo": "9",
}
TODAY = publish_context(nvme_address="10.0.0.2", nvme_port=4421, nqn=NQN)


def target(volume: dict[str, str] = VOLUME, today: dict[str, str] = TODAY) -> Target:
    return target_for("pvc-one", volume, today, prefix=DEFAULT_MANAGED_PREFIX)


def test_the_publish_context_says_where_the_volume_is_and_the_volume_context_how_it_reconnects() -> None:
    assert target() == Target(NQN, "10.0.0.2", 4421, 600, 7, 9)


def test_without_a_publish_context_the_volume_context_is_enough() -> None:
    assert target(today={}) == Target(NQN, "10.0.0.1", 4420, 600, 7, 9)


def test_a_volume_context_of_the_other_driver_with_its_fallback_address_is_understood() -> None:
    assert target({"rdsAddress": "10.0.0.3"}, {}) == Target(NQN, "10.0.0.3", 4420, -1, 5, 0)


@pytest.mark.parametrize(
    ("volume", "today", "match"),
    [
        ({}, {}, "neither publish context nor volume context has an NVMe address"),
        (VOLUME, {**TODAY, "nvme_nqn": NQN + "x"}, "publish context says NQN"),
        (VOLUME, {**TODAY, "nvme_address": "box.example"}, "no IPv4 or IPv6 address"),
        (VOLUME, {**TODAY, "nvme_address": "10.0.0.1 --dump-config"}, "no IPv4 or IPv6 address"),
        (VOLUME, {**TODAY, "nvme_port": "0"}, "NVMe port '0'"),
        (VOLUME, {**TODAY, "nvme_port": "65536"}, "NVMe port '65536'"),
        (VOLUME, {**TODAY, "nvme_port": "44 20"}, "NVMe port '44 20'"),
        ({"nqn": f"{NQN} -q x"}, {"nvme_address": "10.0.0.1"}, "no NVMe qualified name"),
        ({"nqn": f"{NQN},x"}, {"nvme_address": "10.0.0.1"}, "no NVMe qualified name"),
        ({"nqn": f"{NQN}{'x' * 223}"}, {"nvme_address": "10.0.0.1"}, "no NVMe qualified name"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused_by_name(volume: dict[str, str], today: dict[str, str], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        target(volume, today)


@given(st.dictionaries(st.sampled_from([*VOLUME, "rdsAddress"]), st.text()), st.dictionaries(st.sampled_from([*TODAY]), st.text()))
def test_whatever_the_contexts_say_no_word_of_the_command_is_more_than_one_option(
    volume: dict[str, str], today: dict[str, str]
) -> None:
    try:
        words = connect(target({**VOLUME, **volume}, {**TODAY, **today}), "node-a").words
    except Rejected:
        return
    assert words[:2] == ("nvme", "connect")
    assert all(word.startswith("--") and word.count("=") == 1 and not set(word) & set(" ,\n\0") for word in words[2:])


def test_a_node_connects_under_its_own_name() -> None:
    assert connect(target(), "node-a").words == (
        "nvme",
        "connect",
        "--transport=tcp",
        "--traddr=10.0.0.2",
        "--trsvcid=4421",
        f"--nqn={NQN}",
        f"--hostnqn={host_nqn_for('node-a')}",
        f"--hostid={host_id_for('node-a')}",
        "--ctrl-loss-tmo=600",
        "--reconnect-delay=7",
        "--keep-alive-tmo=9",
    )


def test_the_kernel_chooses_the_keep_alive_where_nobody_did() -> None:
    words = connect(target({"nqn": NQN}), "node-a").words
    assert words[-2:] == ("--ctrl-loss-tmo=-1", "--reconnect-delay=5")


def test_the_host_name_of_a_node_never_changes_for_boxes_have_it_in_their_lists() -> None:
    assert host_id_for("node-a") == "5c703b3d-d894-5ca7-b15e-1bb05d2032c7"
    assert host_nqn_for("node-a") == f"nqn.2014-08.org.nvmexpress:uuid:{host_id_for('node-a')}"
    assert host_nqn_for("node-b") != host_nqn_for("node-a")
    with pytest.raises(ValueError, match="not the name of a Kubernetes Node"):
        host_nqn_for("Node A")


@pytest.mark.parametrize(
    ("output", "outcome"),
    [
        (Output(0, "", ""), ConnectOutcome.CONNECTED),
        (Output(1, "", "already connected\n"), ConnectOutcome.ALREADY_CONNECTED),
        (
            Output(
                1,
                "",
                "Failed to write to /dev/nvme-fabrics: Input/output error\n"
                "could not add new controller: failed to write to nvme-fabrics device\n",
            ),
            ConnectOutcome.REFUSED,
        ),
        (
            Output(
                1,
                "",
                "Failed to write to /dev/nvme-fabrics: Connection refused\ncould not add new controller: connection refused\n",
            ),
            ConnectOutcome.UNREACHABLE,
        ),
        (Output(1, "", "Failed to write to /dev/nvme-fabrics: Connection timed out\n"), ConnectOutcome.UNREACHABLE),
        (Output(1, "", ""), ConnectOutcome.UNREACHABLE),
    ],
)
def test_how_a_connect_ended_is_read_from_its_words(output: Output, outcome: ConnectOutcome) -> None:
    assert connect_outcome(output) is outcome


def test_only_subsystems_with_our_prefix_are_connected_and_disconnected() -> None:
    boot = "nqn.2000-02.com.mikrotik:nixos-node-a"
    assert disconnect(NQN, prefix=DEFAULT_MANAGED_PREFIX).words == ("nvme", "disconnect", f"--nqn={NQN}")
    with pytest.raises(FailedPrecondition, match="CSI_MANAGED_NQN_PREFIX"):
        disconnect(boot, prefix=DEFAULT_MANAGED_PREFIX)
    with pytest.raises(FailedPrecondition, match="CSI_MANAGED_NQN_PREFIX"):
        target({"nqn": boot}, {"nvme_address": "10.0.0.1"})
    assert not is_managed(DEFAULT_MANAGED_PREFIX, DEFAULT_MANAGED_PREFIX)
    assert not is_managed("", DEFAULT_MANAGED_PREFIX)


@pytest.mark.parametrize("prefix", ["", "nqn.", "pvc-", "iqn.2000-02.com.mikrotik:pvc-", "nqn.2000-02.com:" + "x" * 220])
def test_a_prefix_that_would_make_foreign_disks_ours_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="CSI_MANAGED_NQN_PREFIX"):
        check_managed_prefix(prefix)


def test_the_usual_prefix_is_taken() -> None:
    assert check_managed_prefix(DEFAULT_MANAGED_PREFIX) == DEFAULT_MANAGED_PREFIX


def test_a_session_that_another_driver_made_is_seen(sysfs: FakeSysfs) -> None:
    sysfs.connect(host_nqn=host_nqn_for("node-a"))
    session = find_session(sysfs.root, NQN)
    assert session is not None
    assert foreign_host_names(session, "node-a") == ()
    assert foreign_host_names(session, "node-b") == (host_nqn_for("node-a"),)


def test_a_session_at_an_address_where_the_box_was_is_seen(sysfs: FakeSysfs) -> None:
    sysfs.connect(address="10.0.0.1", port=4421)
    session = find_session(sysfs.root, NQN)
    assert session is not None
    assert connected_elsewhere(session, target())
    sysfs.connect(controller=1, address="10.0.0.2", port=4421)
    session = find_session(sysfs.root, NQN)
    assert session is not None
    assert not connected_elsewhere(session, target())
