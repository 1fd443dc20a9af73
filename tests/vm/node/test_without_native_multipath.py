"""The same on a kernel without native NVMe multipath, where the disk lies below its controller."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm.guests import Guest
from tests.vm.node.client import Node
from tests.vm.node.conftest import serving
from tests.vm.node.test_faults import (
    test_a_session_that_went_away_under_a_mount_is_made_anew_and_reported as test_a_session_that_went_away,
)
from tests.vm.node.test_volumes import (
    test_a_block_device_that_a_process_of_another_mount_namespace_has_open_is_not_taken_away as test_a_device_in_use,
)
from tests.vm.node.test_volumes import (
    test_a_device_that_got_another_number_is_not_the_one_that_the_pod_before_had as test_another_number,
)
from tests.vm.node.test_volumes import (
    test_a_volume_grows_while_it_is_used as test_growth,
)
from tests.vm.node.test_volumes import (
    test_a_volume_is_staged_published_and_taken_away_and_every_call_may_be_repeated as test_every_call_twice,
)

pytestmark = pytest.mark.long

__all__ = [
    "test_a_device_in_use",
    "test_a_session_that_went_away",
    "test_another_number",
    "test_every_call_twice",
    "test_growth",
]


@pytest.fixture(scope="session")
def node(guests: dict[str, Guest]) -> Iterator[Node]:
    """The Node service of an initiator without native multipath."""
    yield from serving(guests["node-c"])


def test_the_disk_lies_below_its_controller(node: Node) -> None:
    assert node.guest.sh("cat /sys/module/nvme_core/parameters/multipath") == "N\n"
