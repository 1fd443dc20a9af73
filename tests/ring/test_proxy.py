"""Each switch of the API proxy does what it says."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import urllib3
import yaml

from tests.ring.api import Api, ApiError, Object, Unreachable
from tests.ring.controlplane import ControlPlane
from tests.ring.proxy import Proxy
from tests.ring.waiting import eventually


@pytest.fixture(scope="module")
def _editors(control_plane: ControlPlane) -> None:
    control_plane.make_service_account("default", "editor")
    metadata = {"name": "editor", "namespace": "default"}
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]
    control_plane.api.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules})
    control_plane.api.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "editor"},
            "subjects": [{"kind": "ServiceAccount", "name": "editor", "namespace": "default"}],
        }
    )


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, proxy: Proxy, _editors: None) -> Path:
    return control_plane.kubeconfig_for("default", "editor", through=proxy)


@pytest.fixture
def api(kubeconfig: Path) -> Api:
    """A client that reaches the API server only through the proxy."""
    return Api.from_kubeconfig(kubeconfig, timeout=10)


@pytest.fixture
def note(api: Api, control_plane: ControlPlane) -> Object:
    return control_plane.api.create(config_map(f"note-{uuid.uuid4()}"))


def config_map(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"text": "first"}}


def rewritten(note: Object) -> Object:
    return {**note, "data": {"text": "second"}}


def text(control_plane: ControlPlane, note: Object) -> str:
    return str(control_plane.api.get("ConfigMap", note["metadata"]["name"], "default")["data"]["text"])


def test_what_no_rule_matches_passes_and_is_recorded(api: Api, note: Object, proxy: Proxy, control_plane: ControlPlane) -> None:
    proxy.fail("GET", "/configmaps/", status=500)
    api.replace(rewritten(note))
    assert text(control_plane, note) == "second"
    (seen,) = proxy.writes("/configmaps/")
    assert (seen.method, seen.status, seen.forwarded) == ("PUT", 200, True)
    assert seen.path == f"/api/v1/namespaces/default/configmaps/{note['metadata']['name']}"


def test_the_callers_token_passes_so_rbac_holds_behind_the_proxy(api: Api) -> None:
    with pytest.raises(ApiError, match='"system:serviceaccount:default:editor" cannot list resource "nodes"'):
        api.list("Node")


def test_fail_answers_with_a_status_object_as_often_as_it_was_told(api: Api, note: Object, proxy: Proxy) -> None:
    rule = proxy.fail("PUT", "/configmaps/", status=503, times=2, message="etcd is away")
    for _ in range(2):
        with pytest.raises(ApiError, match="503 ServiceUnavailable: etcd is away"):
            api.replace(rewritten(note))
    api.replace(rewritten(note))
    assert rule.hits == 2
    assert [seen.forwarded for seen in proxy.requests("PUT")] == [False, False, True]


def test_fail_can_come_after_the_write_took_effect(api: Api, note: Object, proxy: Proxy, control_plane: ControlPlane) -> None:
    proxy.fail("PUT", "/configmaps/", status=500, applied=True)
    with pytest.raises(ApiError, match="500"):
        api.replace(rewritten(note))
    assert text(control_plane, note) == "second"


def test_drop_cuts_before_the_write_is_forwarded(api: Api, note: Object, proxy: Proxy, control_plane: ControlPlane) -> None:
    proxy.drop("PUT", "/configmaps/", times=1)
    with pytest.raises(Unreachable):
        api.replace(rewritten(note))
    assert text(control_plane, note) == "first"
    assert proxy.writes("/configmaps/") == []


def test_drop_can_cut_after_the_write_took_effect(api: Api, note: Object, proxy: Proxy, control_plane: ControlPlane) -> None:
    proxy.drop("PUT", "/configmaps/", applied=True, times=1)
    with pytest.raises(Unreachable):
        api.replace(rewritten(note))
    assert text(control_plane, note) == "second"
    assert [seen.status for seen in proxy.writes("/configmaps/")] == [None]


def test_delay_holds_the_answer_back_and_no_other_request(api: Api, note: Object, proxy: Proxy) -> None:
    proxy.delay("PUT", "/configmaps/", 0.3)
    started = time.monotonic()
    api.get("ConfigMap", note["metadata"]["name"], "default")
    assert time.monotonic() - started < 0.3
    started = time.monotonic()
    api.replace(rewritten(note))
    assert time.monotonic() - started >= 0.3


def test_freeze_never_answers(kubeconfig: Path, note: Object, proxy: Proxy) -> None:
    hasty = Api.from_kubeconfig(kubeconfig, timeout=0.3)
    frozen = proxy.freeze()
    with pytest.raises(Unreachable, match="timed out"):
        hasty.get("ConfigMap", note["metadata"]["name"], "default")
    frozen.remove()
    assert hasty.get("ConfigMap", note["metadata"]["name"], "default")


def test_a_frozen_request_goes_on_when_released(api: Api, note: Object, proxy: Proxy, control_plane: ControlPlane) -> None:
    frozen = proxy.freeze("PUT", "/configmaps/")
    with ThreadPoolExecutor() as pool:
        write = pool.submit(api.replace, rewritten(note))
        frozen.wait_hit()
        assert text(control_plane, note) == "first"
        frozen.release()
        write.result(10)
    assert text(control_plane, note) == "second"


def test_a_client_can_be_held_right_behind_a_write_that_took_effect(
    api: Api, note: Object, proxy: Proxy, control_plane: ControlPlane
) -> None:
    frozen = proxy.freeze("PUT", "/configmaps/", applied=True)
    with ThreadPoolExecutor() as pool:
        write = pool.submit(api.replace, rewritten(note))
        eventually("the write took effect", lambda: text(control_plane, note) == "second")
        assert not write.done()
        frozen.release(cut=True)
        with pytest.raises(Unreachable):
            write.result(10)


def test_shift_date_moves_the_clock_of_the_api_server(kubeconfig: Path, control_plane: ControlPlane, proxy: Proxy) -> None:
    token = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"]
    authority = str(control_plane.authority.certificate)

    def date() -> float:
        with urllib3.PoolManager(ca_certs=authority) as pool:
            answer = pool.request("GET", f"{proxy.url}/version", headers={"Authorization": f"Bearer {token}"})
            return parsedate_to_datetime(answer.headers["Date"]).timestamp()

    now = time.time()
    proxy.shift_date(3600)
    assert date() - now == pytest.approx(3600, abs=10)
    proxy.shift_date(-3600)
    assert date() - now == pytest.approx(-3600, abs=10)
    proxy.shift_date(0)
    assert date() - now == pytest.approx(0, abs=10)


def test_watches_stream_and_can_be_cut(api: Api, note: Object, proxy: Proxy) -> None:
    events: list[Object] = []
    ended = threading.Event()

    def watch() -> None:
        try:
            events.extend(api.watch("ConfigMap", "default", resource_version=note["metadata"]["resourceVersion"]))
        except Unreachable:
            ended.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    eventually("the watch is open", lambda: proxy.open_watches("/configmaps"))
    api.replace(rewritten(note))
    eventually("the watch tells of the write", lambda: [e for e in events if e["object"].get("data") == {"text": "second"}])
    assert proxy.cut_watches("/nodes") == 0
    assert proxy.cut_watches() == 1
    assert ended.wait(10)
    watcher.join()


def test_an_api_server_that_is_down_cuts_the_connection(api: Api, note: Object, control_plane: ControlPlane) -> None:
    control_plane.apiserver.kill()
    try:
        with pytest.raises(Unreachable):
            api.get("ConfigMap", note["metadata"]["name"], "default")
    finally:
        control_plane.apiserver.start()
    assert api.get("ConfigMap", note["metadata"]["name"], "default")


def test_hundreds_of_requests_a_second_pass(api: Api, note: Object, proxy: Proxy) -> None:
    def read(_: int) -> None:
        api.get("ConfigMap", note["metadata"]["name"], "default")

    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(read, range(600)))
    rate = 600 / (time.monotonic() - started)
    print(f"{rate:.0f} requests/s through the proxy")
    assert rate > 100
