"""The audit log: one JSON object per line whatever stands in it, without secrets, and apart from all other logs."""

from __future__ import annotations

import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_process import audit, logs
from rds_process.audit import Kind
from tests.documents import ROOT

FIELDS = ("volume", "node", "asked_name", "reason", "command", "target_path")
VALUES = st.one_of(
    st.text(max_size=600),
    st.text(alphabet='\r\n\t\0\x1b\x7f\x85\u2028\u2029\u200b\u202e\u2066\ufeff\ud800a"\\{}', max_size=600),
    st.lists(st.text(max_size=20), max_size=40),
    st.integers(),
    st.booleans(),
    st.none(),
)
ENTRIES = st.dictionaries(st.sampled_from(FIELDS), VALUES)
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(log_format: str, kind: Kind, level: str = "info", **fields: Any) -> str:
    stream = io.StringIO()
    logs.configure(log_format, level, stream)
    audit.record(kind, **fields)
    return stream.getvalue()


def strings(value: object) -> list[str]:
    """Return all texts in a value."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in strings(one)]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


@pytest.mark.requirement("R59")
@pytest.mark.parametrize("log_format", logs.FORMATS)
@given(kind=st.sampled_from(Kind), fields=ENTRIES)
def test_whatever_a_request_says_an_entry_is_one_line_that_shows_all_there_is(
    log_format: str, kind: Kind, fields: dict[str, Any]
) -> None:
    line = written(log_format, kind, **fields)
    assert line.endswith("\n")
    assert not [one for one in line[:-1] if unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]
    line.encode()
    read = json.loads(line)
    assert (read["logger"], read["audit"], read["message"]) == (logs.AUDIT, str(kind), "audit")
    assert set(read) <= {"time", "level", "logger", "message", "audit", *fields}
    assert max((len(one) for one in strings(read)), default=0) < audit.MAX_COMMAND + 40
    assert all(len(one) < audit.MAX_VALUE + 40 for name, value in read.items() if name != "command" for one in strings(value))


@given(text=st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), max_size=audit.MAX_VALUE))
def test_what_can_be_seen_stands_there_as_it_was(text: str) -> None:
    assert audit.clean(text) == text


@given(text=st.text(), secret=st.just(KEY), after=st.text())
@pytest.mark.requirement("R59")
def test_no_private_key_stands_in_an_entry_wherever_it_was_put(text: str, secret: str, after: str) -> None:
    assert "c2VjcmV0" not in str(audit.clean(text + secret + after))
    assert "c2VjcmV0" not in str(audit.clean([text, secret]))
    assert "hunter2" not in str(audit.clean("hunter2", "password"))


def test_a_forged_line_a_turned_name_and_a_flood_stand_written_out() -> None:
    forged = audit.clean('pvc-1\n{"audit":"call.admitted"}')
    assert forged == 'pvc-1\\u{a}{"audit":"call.admitted"}'
    assert audit.clean("node\u202ea-edon") == "node\\u{202e}a-edon"
    assert audit.clean("x" * 5000) == "x" * audit.MAX_VALUE + "… (5000 characters)"
    assert audit.clean(["a"] * 40)[-1] == "… 40 entries"
    assert audit.clean("x" * 1000, "command") == "x" * 1000


@pytest.mark.parametrize("level", logs.LEVELS)
def test_the_audit_log_does_not_depend_on_the_level_of_the_rest(level: str) -> None:
    assert json.loads(written("text", Kind.CALL_ADMITTED, level, volume="pvc-1"))["volume"] == "pvc-1"


def test_what_is_alarming_stands_out() -> None:
    levels = {kind: json.loads(written("json", kind))["level"] for kind in Kind}
    assert {kind for kind, level in levels.items() if level == "warning"} == {
        Kind.NAME_REFUSED,
        Kind.HOST_KEY_REFUSED,
        Kind.LOGIN_REFUSED,
    }
    assert set(levels.values()) == {"info", "warning"}


def test_what_is_empty_is_left_out_and_what_is_false_is_not() -> None:
    assert audit.entry(Kind.CALL_REFUSED, {"node": "", "reason": None, "readonly": False, "bytes": 0}) == {
        "audit": "call.refused",
        "readonly": False,
        "bytes": 0,
    }


def test_a_refusal_with_the_longest_reason_takes_as_much_as_the_page_says() -> None:
    names: dict[str, Any] = {
        "volume": "pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f",
        "node": "worker-17.example.org",
        "readonly": False,
    }
    call: dict[str, Any] = {"method": "ControllerPublishVolume", "call": "5c0ffee5", "code": "FailedPrecondition"}
    line = written("json", Kind.CALL_REFUSED, **names, **call, reason="held by node-b " * 100)
    (said,) = re.findall(r"An entry has (\d\.\d) kB", (ROOT / "docs" / "audit.md").read_text())
    assert len(line) / 1000 == pytest.approx(float(said), abs=0.05)
