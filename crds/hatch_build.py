"""Build hook: a wheel and a source distribution note the commit that they were built from (``rds_process/version.py``).

``RDS_CSI_COMMIT`` says it where there is no repository, as in an image's build. An editable installation notes none: its
checkout goes on.
"""

from __future__ import annotations

import os
import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface[Any]):
    """Adds ``commit.txt`` to what is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Note the commit, unless the source has it noted, as an unpacked source distribution does."""
        package = Path(self.root) / "crds" / "rds_process"
        known = runpy.run_path(str(package / "version.py"))
        name = known["COMMIT_FILE"]
        if version == "editable" or (package / name).exists():
            return
        commit = os.environ.get("RDS_CSI_COMMIT") or known["commit"](package)
        with tempfile.NamedTemporaryFile("w", suffix=f"-{name}", delete=False) as file:
            file.write(f"{commit}\n")
        self._noted = Path(file.name)
        inside = "rds_process" if self.target_name == "wheel" else "crds/rds_process"
        build_data["force_include"][file.name] = f"{inside}/{name}"

    def finalize(self, *_: Any) -> None:
        """Remove what was made beside the checkout."""
        if noted := getattr(self, "_noted", None):
            noted.unlink(missing_ok=True)
