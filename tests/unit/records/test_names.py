"""Names that follow from a volume handle."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_records.names import (
    MAX_HANDLE_LENGTH,
    SlotNames,
    attacher_finalizer,
    check_handle,
    check_node_name,
    file_path_for,
    handle_for,
    is_dns_name,
    nqn_for,
    record_name,
    slot_for,
    volume_attachment_name,
)
from tests.unit.records.crd import SPEC
from tests.unit.records.volumes import HANDLE

handles = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,126}[A-Za-z0-9])?", fullmatch=True)
uuids = st.uuids().map(lambda value: f"pvc-{value}")
target = SPEC["properties"]["target"]["properties"]


def fits(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern.removesuffix("$"), text) is not None


@given(uuids)
def test_the_handle_of_a_provisioned_volume_is_its_csi_name(name: str) -> None:
    assert handle_for(name) == name
    assert record_name(name) == name


@given(st.text(min_size=1, max_size=200))
def test_any_other_csi_name_gets_a_handle_derived_from_it(name: str) -> None:
    handle = handle_for(name)
    assert check_handle(handle) == handle
    assert handle_for(name) == handle
    assert handle_for(handle) == handle


def test_a_handle_derived_from_a_name_is_a_uuid_of_version_5() -> None:
    assert handle_for("a-claim") == "pvc-250d8935-998c-520b-bb6e-c12093003fd5"


@given(handles)
def test_what_is_a_handle_is_one_for_the_crd_too(handle: str) -> None:
    assert check_handle(handle) == handle
    assert fits(SPEC["properties"]["volumeHandle"]["pattern"], handle)
    assert SPEC["properties"]["volumeHandle"]["maxLength"] == MAX_HANDLE_LENGTH


@given(st.text(max_size=200))
def test_every_text_is_a_handle_for_both_or_for_neither(text: str) -> None:
    schema = SPEC["properties"]["volumeHandle"]
    wanted = fits(schema["pattern"], text) and schema["minLength"] <= len(text) <= schema["maxLength"]
    try:
        check_handle(text)
    except ValueError:
        assert not wanted
    else:
        assert wanted


@pytest.mark.parametrize("handle", ["", "-a", "a-", "a b", "a/b", "a\n", "ä", "a;b", 'a"', "a" * 129, "..", "a.b", "a_b"])
def test_a_bad_handle_is_named_in_the_error(handle: str) -> None:
    with pytest.raises(ValueError, match=r"volume id .* is not valid"):
        check_handle(handle)


@given(handles)
def test_a_record_can_have_its_name(handle: str) -> None:
    name = record_name(handle)
    assert is_dns_name(name)
    assert name == handle or re.fullmatch(r"var-[0-9a-f]{40}", name)


def test_a_handle_that_is_no_dns_name_is_hashed() -> None:
    assert record_name("Upper-Case") == "var-808b0c8fc1412af41df7a4356f22dd7ac2c5f5a6"


@given(st.lists(handles, min_size=2, max_size=6, unique=True))
def test_two_volumes_never_share_a_record(some: list[str]) -> None:
    assert len({record_name(handle) for handle in some}) == len(some)


@given(handles)
def test_names_on_the_box_are_names_for_the_crd(handle: str) -> None:
    for names in SlotNames:
        slot = slot_for(handle, names)
        assert fits(target["slot"]["pattern"], slot)
        assert len(slot) <= target["slot"]["maxLength"]
        assert fits(target["filePath"]["pattern"], file_path_for("/storage-pool/metal-csi", slot))
    assert fits(target["nqn"]["pattern"], nqn_for(handle))
    assert len(nqn_for(handle)) <= target["nqn"]["maxLength"]


@given(handles)
def test_a_short_slot_fits_a_box_that_keeps_32_characters(handle: str) -> None:
    assert re.fullmatch(r"pvc-[0-9a-f]{28}", slot_for(handle, SlotNames.SHORT))


def test_names_on_the_box_are_those_of_the_go_driver() -> None:
    assert slot_for(HANDLE) == HANDLE
    assert slot_for(HANDLE, SlotNames.SHORT) == "pvc-0000000000004000800000000000"
    assert nqn_for(HANDLE) == f"nqn.2000-02.com.mikrotik:{HANDLE}"
    assert nqn_for("Upper-Case") == "nqn.2000-02.com.mikrotik:upper-case"
    assert file_path_for("/storage-pool/metal-csi/", HANDLE) == f"/storage-pool/metal-csi/{HANDLE}.img"


def test_a_volume_attachment_has_the_name_that_kubernetes_gives_it() -> None:
    # printf %s HANDLE rds.csi.srvlab.io node-a | sha256sum
    assert volume_attachment_name(HANDLE, "node-a") == "csi-6057a7ba5d79f999d7b1dbb2d866918449f637d95fc61199d62022065fac0946"


def test_the_finalizer_of_csi_attacher_is_spelled_as_it_spells_it() -> None:
    assert attacher_finalizer() == "external-attacher/rds-csi-srvlab-io"


@pytest.mark.parametrize("node", ["node-a", "a", "node.example.com", "0", "a" * 253])
def test_names_of_nodes_are_taken_as_they_are(node: str) -> None:
    assert check_node_name(node) == node


@pytest.mark.parametrize("node", ["", "Node", "-a", "a-", "a..b", "a b", "a\n", "a" * 254, "ä"])
def test_what_cannot_be_a_node_is_refused(node: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a Kubernetes Node"):
        check_node_name(node)
