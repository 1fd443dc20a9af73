"""The logs that are kept where a test fails: ``test-logs/TEST/PROCESS.log``."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

KEPT = Path(os.environ.get("RDS_CSI_TEST_LOGS") or Path(__file__).parents[1] / "test-logs")


def keep(test: str, logs: Mapping[str, Path]) -> None:
    """Copy logs, by the name that each is kept under, for a test (its node id); one that was never written is left out."""
    folder = KEPT / re.sub(r"[^\w.-]+", "_", test)
    for name, log in logs.items():
        if log.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, folder / name)
