"""What the kubelet has, from the files that it keeps; whatever cannot be told is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rds_csi.node.kubelet_volumes import KubeletUnreadable, kubelet_volumes

DRIVER, OTHER = "rds.csi.srvlab.io", "ebs.csi.aws.com"
PLACES = {
    "a staged file system": f"plugins/kubernetes.io/csi/{DRIVER}/0123abcd",
    "a staged file system of kubelets before 1.24": "plugins/kubernetes.io/csi/pv/pvc-one",
    "a block device": "plugins/kubernetes.io/csi/volumeDevices/pvc-one/data",
    "a pod's volume": "pods/0a1b/volumes/kubernetes.io~csi/pvc-one",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "plugins/kubernetes.io/csi").mkdir(parents=True)
    return tmp_path


def put(directory: Path, handle: str = "handle-one", driver: str = DRIVER) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "vol_data.json"
    file.write_text(json.dumps({"volumeHandle": handle, "driverName": driver}))
    return file


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_finds(root: Path, place: str) -> None:
    put(root / place)
    assert kubelet_volumes(root, DRIVER) == {"handle-one"}


def test_all_places_count(root: Path) -> None:
    for number, place in enumerate(PLACES.values()):
        put(root / place, f"handle-{number}")
    assert kubelet_volumes(root, DRIVER) == {"handle-0", "handle-1", "handle-2", "handle-3"}


def test_volumes_of_other_drivers_are_not_ours(root: Path) -> None:
    put(root / "plugins/kubernetes.io/csi/volumeDevices/x/data", driver=OTHER)
    put(root / f"plugins/kubernetes.io/csi/{OTHER}/x", driver=OTHER)
    assert kubelet_volumes(root, DRIVER) == frozenset()


def test_a_file_without_a_drivers_name_counts_as_ours(root: Path) -> None:
    put(root / PLACES["a block device"]).write_text('{"volumeHandle": "handle-one"}')
    assert kubelet_volumes(root, DRIVER) == {"handle-one"}


def test_a_kubelet_that_never_had_a_csi_volume_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(KubeletUnreadable, match="--kubelet-root-dir"):
        kubelet_volumes(tmp_path, DRIVER)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"volumeHandle": 1}'])
def test_a_file_that_is_half_written_makes_everything_unknown(root: Path, text: str) -> None:
    put(root / PLACES["a block device"]).write_text(text)
    with pytest.raises(KubeletUnreadable, match=r"vol_data\.json"):
        kubelet_volumes(root, DRIVER)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_what_cannot_be_read_makes_everything_unknown(root: Path, place: str) -> None:
    (root / place / "vol_data.json").mkdir(parents=True)
    with pytest.raises(KubeletUnreadable, match="Is a directory"):
        kubelet_volumes(root, DRIVER)


def test_a_directory_that_cannot_be_listed_makes_everything_unknown(root: Path) -> None:
    loop = root / "pods"
    loop.symlink_to(loop)
    with pytest.raises(KubeletUnreadable, match="symbolic links"):
        kubelet_volumes(root, DRIVER)


def test_a_published_device_that_no_file_explains_makes_everything_unknown(root: Path) -> None:
    (root / "plugins/kubernetes.io/csi/volumeDevices/publish/pvc-one").mkdir(parents=True)
    assert kubelet_volumes(root, DRIVER) == frozenset()
    (root / "plugins/kubernetes.io/csi/volumeDevices/publish/pvc-one/pod-uid").touch()
    with pytest.raises(KubeletUnreadable, match="nothing says of which volume"):
        kubelet_volumes(root, DRIVER)
    put(root / PLACES["a block device"])
    assert kubelet_volumes(root, DRIVER) == {"handle-one"}


def test_directories_without_a_file_are_no_volumes(root: Path) -> None:
    (root / PLACES["a pod's volume"]).mkdir(parents=True)
    (root / "plugins/kubernetes.io/csi/volumeDevices/staging/pvc-one").mkdir(parents=True)
    assert kubelet_volumes(root, DRIVER) == frozenset()
