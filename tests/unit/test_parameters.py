"""StorageClass parameters are checked strictly, contexts of the Go driver are read leniently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_csi.contexts import parse_volume_context, publish_context
from rds_csi.errors import InvalidArgument
from rds_csi.parameters import ALLOWED, parse_parameters, volume_context
from rds_csi.routeros.options import check_base_path
from rds_records.record import DualAttachPolicy, ObjectReference

BASE = "/storage-pool/metal-csi"
NQN = "nqn.2000-02.com.mikrotik:pvc-1"
PATH = f"{BASE}/pvc-1.img"
TODAY = {"rds_address": "10.0.0.5", "nvme_address": "10.0.1.5", "nvme_port": 4420}


def context(**given: str) -> dict[str, str]:
    return volume_context(parse_parameters(given, base_path=BASE), nqn=NQN, file_path=PATH, **TODAY)  # type: ignore[arg-type]


def test_storage_class_that_says_nothing_gets_the_defaults_of_the_go_driver() -> None:
    parsed = parse_parameters({}, base_path=BASE)
    assert (parsed.volume_path, parsed.nvme_address, parsed.nvme_port) == (BASE, None, None)
    assert (parsed.ctrl_loss_tmo, parsed.reconnect_delay, parsed.keep_alive_tmo) == (-1, 5, 0)
    assert parsed.migration_timeout_seconds is None
    assert parsed.dual_attach_policy is DualAttachPolicy.KUBEVIRT


@pytest.mark.requirement("R10")
@pytest.mark.parametrize("text", ["abc", "5m", "0", "29", "86401", "-1", "1e3", "300 ", "0300", "٣٠٠", "3" * 400, "30.5"])
def test_bad_migration_timeout_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"migrationTimeoutSeconds .* from 30 to 86400"):
        parse_parameters({"migrationTimeoutSeconds": text}, base_path=BASE)


@pytest.mark.requirement("R10")
@pytest.mark.parametrize("seconds", [30, 300, 3601, 86_400])
def test_good_migration_timeout_is_taken_as_it_is(seconds: int) -> None:
    assert parse_parameters({"migrationTimeoutSeconds": str(seconds)}, base_path=BASE).migration_timeout_seconds == seconds


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nvmePort", "44x"),
        ("nvmePort", "0"),
        ("nvmePort", "65536"),
        ("ctrlLossTmo", "-2"),
        ("ctrlLossTmo", "2147483648"),
        ("reconnectDelay", "0"),
        ("keepAliveTmo", "-1"),
        ("nvmeAddress", "storage.example"),
        ("nvmeAddress", "10.0.0.1;x"),
        ("nvmeAddress", "fe80::1%eth0"),
        ("rdsAddress", "a b"),
        ("dualAttachPolicy", "Anything"),
        ("dualAttachPolicy", "kubevirt"),
        ("volumePath", "/etc"),
        ("volumePath", f"{BASE}X"),
        ("volumePath", f"{BASE}/../x"),
        ("volumePath", f"{BASE}/a b"),
        ("volumePath", f"{BASE}//x"),
        ("volumePath", f"{BASE}/"),
        ("volumePath", f"{BASE}/" + "x" * 300),
        ("volumePath", "metal-csi"),
        ("csi.storage.k8s.io/pv/name", "../x"),
    ],
)
def test_bad_value_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"parameter {name} "):
        parse_parameters({name: text}, base_path=BASE)


def test_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="'nvmeAdress' is unknown; allowed are rdsAddress"):
        parse_parameters({"nvmeAdress": "10.0.0.1"}, base_path=BASE)


def test_every_parameter_at_once_is_understood() -> None:
    given = {
        "rdsAddress": "box.example",
        "nvmeAddress": "fd00::5",
        "nvmePort": "4421",
        "volumePath": f"{BASE}/fast",
        "ctrlLossTmo": "600",
        "reconnectDelay": "2",
        "keepAliveTmo": "5",
        "migrationTimeoutSeconds": "900",
        "dualAttachPolicy": "AnyTwoNodes",
        "fsType": "xfs",
        "csi.storage.k8s.io/fstype": "xfs",
        "csi.storage.k8s.io/pv/name": "pvc-1",
        "csi.storage.k8s.io/pvc/name": "disk",
        "csi.storage.k8s.io/pvc/namespace": "vms",
    }
    parsed = parse_parameters(given, base_path=BASE)
    assert set(ALLOWED) <= set(given)
    assert (parsed.volume_path, parsed.nvme_address, parsed.nvme_port) == (f"{BASE}/fast", "fd00::5", 4421)
    assert (parsed.persistent_volume_name, parsed.claim) == ("pvc-1", ObjectReference(namespace="vms", name="disk"))


@pytest.mark.parametrize("missing", ["csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace"])
def test_half_a_claim_is_no_claim(missing: str) -> None:
    given = {"csi.storage.k8s.io/pvc/name": "disk", "csi.storage.k8s.io/pvc/namespace": "vms"}
    assert parse_parameters(given | {missing: ""}, base_path=BASE).claim is None


@pytest.mark.parametrize("namespace", ["a.b", "n" * 64])
def test_what_can_be_no_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(InvalidArgument, match="pvc/namespace"):
        parse_parameters({"csi.storage.k8s.io/pvc/namespace": namespace}, base_path=BASE)


def test_parameters_that_the_go_driver_never_read_are_taken_and_told() -> None:
    assert parse_parameters({"sshPort": "22", "nqnPrefix": "x"}, base_path=BASE).ignored == ("nqnPrefix", "sshPort")


def test_two_different_file_systems_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="differ"):
        parse_parameters({"fsType": "ext4", "csi.storage.k8s.io/fstype": "xfs"}, base_path=BASE)


@given(st.dictionaries(st.one_of(st.sampled_from(ALLOWED), st.text(max_size=20)), st.text(max_size=60), max_size=5))
def test_any_parameters_are_understood_or_refused(given: dict[str, str]) -> None:
    try:
        parsed = parse_parameters(given, base_path=BASE)
    except InvalidArgument:
        return
    assert f"{parsed.volume_path}/".startswith(f"{BASE}/")


def test_volume_context_has_the_keys_of_the_go_driver() -> None:
    assert context(migrationTimeoutSeconds="600") == {
        "rdsAddress": "10.0.0.5",
        "nvmeAddress": "10.0.1.5",
        "nvmePort": "4420",
        "nqn": NQN,
        "volumePath": PATH,
        "ctrlLossTmo": "-1",
        "reconnectDelay": "5",
        "keepAliveTmo": "0",
        "migrationTimeoutSeconds": "600",
    }


def test_volume_context_keeps_quiet_about_what_nobody_chose() -> None:
    assert not {"migrationTimeoutSeconds", "dualAttachPolicy"} & set(context())
    assert context(dualAttachPolicy="AnyTwoNodes")["dualAttachPolicy"] == "AnyTwoNodes"


def test_volume_context_is_read_back() -> None:
    read = parse_volume_context(context(nvmeAddress="10.9.9.9", ctrlLossTmo="60"))
    assert (read.nqn, read.file_path, read.nvme_address, read.nvme_port, read.ctrl_loss_tmo) == (NQN, PATH, "10.9.9.9", 4420, 60)


def test_context_without_nvme_address_falls_back_to_the_box() -> None:
    assert parse_volume_context({"rdsAddress": "10.0.0.5"}).nvme_address == "10.0.0.5"


@given(st.dictionaries(st.sampled_from(["nvmePort", "ctrlLossTmo", "reconnectDelay", "keepAliveTmo"]), st.text(max_size=20)))
def test_nonsense_in_a_context_counts_as_absent(given: dict[str, str]) -> None:
    read = parse_volume_context(given)
    assert read.nvme_port is None or 0 < read.nvme_port < 65_536
    assert read.ctrl_loss_tmo >= -1
    assert read.reconnect_delay >= 1
    assert read.keep_alive_tmo >= 0


@pytest.mark.requirement("R58")
def test_publish_context_says_where_the_volume_is_today() -> None:
    assert publish_context(nvme_address="10.0.1.6", nvme_port=4420, nqn=NQN, fs_type="ext4") == {
        "nvme_address": "10.0.1.6",
        "nvme_port": "4420",
        "nvme_nqn": NQN,
        "fs_type": "ext4",
    }


@pytest.mark.parametrize("path", ["", "/", "relative", "/a/../b", "/a b", "/a/" + "x" * 300])
def test_bad_base_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        check_base_path(path)
