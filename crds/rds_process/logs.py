"""Structured logs: one line of text or one JSON object per message, with what looks like a secret stripped."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, Any, Final

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
AUDIT: Final = "rds.audit"
"""The logger of the audit log: one JSON object per entry, whatever the format of the rest, on the same stream."""

STRIPPED: Final = "***stripped***"
MAX_VALUE: Final = 2048
"""Characters of one string value; the rest is cut."""

_SECRET_KEYS: Final = re.compile(r"(?i)secrets?|passwords?|passphrase|(?:[a-z]+_)?token|authorization|(?:[a-z]+_)?private_?key")
_SECRET_TEXT: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)|(?<=Bearer )[A-Za-z0-9._~+/-]+=*", re.DOTALL
)
_RESERVED: Final = frozenset({*RESERVED_ATTRS, "color_message"})


def configure(log_format: str = "json", level: str = "info", stream: IO[str] | None = None) -> None:
    """Send all logs of the process to ``stream`` (stderr), in that format, from that level on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These two tell of every connection and request; what matters of them is said by their callers.
    for chatty in ("paramiko", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


@lru_cache(1024)
def _names_secret(key: str) -> bool:
    return _SECRET_KEYS.fullmatch(key) is not None


def strip(value: Any, key: str = "") -> Any:
    """Return a value as it may be logged: secrets replaced, long text cut, the rest as it is."""
    if key and _names_secret(key):
        return STRIPPED
    if isinstance(value, str):
        cleaned = _SECRET_TEXT.sub(STRIPPED, value) if "PRIVATE KEY" in value or "Bearer " in value else value
        return cleaned if len(cleaned) <= MAX_VALUE else f"{cleaned[:MAX_VALUE]}… ({len(cleaned)} characters)"
    if isinstance(value, dict):
        return {str(name): strip(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strip(entry) for entry in value]
    return value


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: strip(value, key) for key, value in record.__dict__.items() if key not in _RESERVED and not key.startswith("_")}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Json(JsonFormatter):
    def __init__(self) -> None:
        super().__init__("%(message)s", json_default=str, json_ensure_ascii=False)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {key: strip(value, key) for key, value in log_data.items()}

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data.update(time=_time(record), level=record.levelname.lower(), logger=record.name)
        super().add_fields(log_data, record, message_dict)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._json = _Json()

    def format(self, record: logging.LogRecord) -> str:
        if record.name == AUDIT:
            return self._json.format(record)
        # A line end inside a message would let whoever chose the text write a line of their own.
        message = strip(record.getMessage()).replace("\r", "\\r").replace("\n", "\\n")
        extras = "".join(f" {key}={_value(value)}" for key, value in _extras(record).items())
        trace = f"\n{strip(self.formatException(record.exc_info))}" if record.exc_info else ""
        return f"{_time(record)} {record.levelname.lower():7} {record.name}: {message}{extras}{trace}"


def _value(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[\w./:@-]+", value, re.ASCII):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)
