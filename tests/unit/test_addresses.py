"""Which address nodes connect to."""

from __future__ import annotations

import pytest

from rds_csi.parameters import parse_parameters

BASE = "/storage-pool/metal-csi"


@pytest.mark.requirement("R58")
def test_a_storage_class_that_names_only_the_box_means_its_address_for_nvme_too() -> None:
    assert parse_parameters({"rdsAddress": "10.0.0.5"}, base_path=BASE).nvme_address == "10.0.0.5"


@pytest.mark.requirement("R58")
def test_a_box_named_by_a_dns_name_leaves_the_nvme_address_to_the_driver() -> None:
    assert parse_parameters({"rdsAddress": "rds.example"}, base_path=BASE).nvme_address is None


@pytest.mark.requirement("R58")
def test_an_nvme_address_of_its_own_wins() -> None:
    assert parse_parameters({"rdsAddress": "10.0.0.5", "nvmeAddress": "10.0.1.5"}, base_path=BASE).nvme_address == "10.0.1.5"
