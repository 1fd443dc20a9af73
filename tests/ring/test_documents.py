"""What the documentation tells people to apply is taken by a real API server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rds_csi.parameters import parse_parameters
from tests.ring.api import Object, path_of
from tests.ring.cluster import DRIVER, Cluster
from tests.ring.stack import BASE_PATH

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def objects() -> dict[str, Object]:
    """Return every object in a YAML block of a document."""
    blocks = [(path.name, block) for path in DOCUMENTS for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)]
    bodies = [(name, body) for name, block in blocks for body in yaml.safe_load_all(block)]
    return {f"{name}: {body['kind']} {body['metadata']['name']}": body for name, body in bodies}


@pytest.mark.requirement("R57")
@pytest.mark.parametrize("name", sorted(objects()))
def test_the_api_server_takes(name: str, cluster: Cluster) -> None:
    body = objects()[name]
    path = path_of(body["kind"], body["metadata"]["name"], cluster.namespace)
    taken = cluster.api.request(
        "PATCH",
        path,
        body,
        query={"fieldManager": "reader", "dryRun": "All", "fieldValidation": "Strict"},
        content_type="application/apply-patch+yaml",
    )
    assert taken["metadata"]["name"] == body["metadata"]["name"]


@pytest.mark.requirement("R57")
def test_storage_classes_in_documents_name_this_driver_and_its_parameters() -> None:
    classes = [body for body in objects().values() if body["kind"] == "StorageClass"]
    assert classes
    for body in classes:
        assert body["provisioner"] == DRIVER
        parse_parameters(body["parameters"], base_path=BASE_PATH)
