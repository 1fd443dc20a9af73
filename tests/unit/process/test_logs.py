"""Logs are one line per message, structured, and without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from rds_process import logs

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(log_format: str, message: str, *args: object, level: str = "info", **extra: Any) -> str:
    stream = io.StringIO()
    logs.configure(log_format, level, stream)
    logging.getLogger("rds_csi.test").info(message, *args, extra=extra)
    return stream.getvalue()


def test_json_line_has_time_level_logger_message_and_fields() -> None:
    line = json.loads(written("json", "attached %s", "pvc-1", volume="pvc-1", nodes=["a", "b"]))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "logger": "rds_csi.test", "message": "attached pvc-1", "volume": "pvc-1", "nodes": ["a", "b"]}


def test_text_line_has_the_fields_behind_the_message() -> None:
    assert written("text", "attached", volume="pvc-1", why="two words").endswith(
        ' info    rds_csi.test: attached volume=pvc-1 why="two words"\n'
    )


@pytest.mark.parametrize("log_format", logs.FORMATS)
@pytest.mark.requirement("R59")
def test_secrets_are_stripped_wherever_they_are(log_format: str) -> None:
    line = written(
        log_format,
        "key is %s",
        KEY,
        password="hunter2",
        request={"secrets": {"a": "hunter2"}, "items": [{"private_key": "hunter2"}], "access_token": "hunter2"},
        header="Bearer hunter2",
    )
    assert "hunter2" not in line
    assert "c2VjcmV0" not in line
    assert line.count(logs.STRIPPED) == 6


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_message_cannot_write_a_line_of_its_own(log_format: str) -> None:
    line = written(log_format, "name is %s", "x\n2026-01-01T00:00:00Z error all is lost", field="a\nb")
    assert line.count("\n") == 1


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_traceback_is_logged(log_format: str) -> None:
    stream = io.StringIO()
    logs.configure(log_format, "info", stream)
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("rds_csi.test").exception("broke")
    assert "KeyError: 'gone'" in stream.getvalue()


def test_long_values_are_cut() -> None:
    assert len(written("json", "x", field="y" * 100_000)) < 3000


def test_levels_below_the_chosen_one_are_not_logged() -> None:
    assert written("json", "x", level="warning") == ""


def test_what_json_cannot_hold_is_logged_all_the_same() -> None:
    assert "object at" in json.loads(written("json", "x", field=object()))["field"]
