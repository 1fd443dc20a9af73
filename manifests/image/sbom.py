"""Print the bill of materials of an image (CycloneDX 1.6, JSON) from inside: ``sbom.py ENVIRONMENT``.

Everything that dpkg has installed, everything in the Python environment, and the operating system; nothing is taken from lists
of what was meant to be there. A document that CycloneDX's schema refuses ends with status 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

OURS: Final = "rds-csi"
FIELDS: Final = ("Package", "Version", "Architecture", "source:Package", "source:Version", "db:Status-Status")
LICENSES: Final = LicenseFactory()


def operating_system() -> dict[str, str]:
    """Return ``/etc/os-release``."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines) if value}


def debian(system: dict[str, str]) -> Iterator[Component]:
    """Yield what dpkg has installed."""
    wanted = "\t".join(f"${{{field}}}" for field in FIELDS) + "\n"
    told = subprocess.run(["dpkg-query", "--show", f"--showformat={wanted}"], capture_output=True, text=True, check=True).stdout
    for line in told.splitlines():
        name, version, architecture, source, source_version, status = line.split("\t")
        if status != "installed":
            continue
        qualifiers = {
            "arch": architecture,
            "distro": f"{system['ID']}-{system['VERSION_ID']}",
            "upstream": source if source_version == version else f"{source}@{source_version}",
        }
        purl = PackageURL("deb", system["ID"], name, version, qualifiers)
        licenses = [LICENSES.make_with_name(text) for text in debian_licenses(name)]
        yield Component(
            name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string(), licenses=licenses
        )


def debian_licenses(package: str) -> list[str]:
    """Return the short names in a machine-readable copyright file; none where it is prose."""
    file = Path("/usr/share/doc") / package / "copyright"
    text = file.read_text(errors="replace") if file.is_file() else ""
    if not text.startswith("Format:"):
        return []
    return sorted({name.strip() for name in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)})


def python(environment: Path) -> Iterator[Component]:
    """Yield what is installed in a Python environment."""
    (folder,) = environment.glob("lib/python3*/site-packages")
    for found in sorted(distributions(path=[str(folder)]), key=lambda one: one.name.lower()):
        name = re.sub(r"[-_.]+", "-", found.name).lower()
        purl = PackageURL("pypi", None, name, found.version)
        kind = ComponentType.APPLICATION if name == OURS else ComponentType.LIBRARY
        yield Component(
            name=found.name,
            version=found.version,
            type=kind,
            purl=purl,
            bom_ref=purl.to_string(),
            licenses=[LICENSES.make_from_string(text) for text in python_licenses(found)],
        )


def python_licenses(found: Distribution) -> list[str]:
    """Return a distribution's license: its expression, else its field where that is a name, else its classifiers."""
    expression = found.metadata.get("License-Expression")
    if expression:
        return [expression]
    field = (found.metadata.get("License") or "").strip()
    if field and field != "UNKNOWN" and len(field) < 80 and "\n" not in field:
        return [field]
    classifiers = found.metadata.get_all("Classifier") or []
    return sorted({text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: ")})


def bill(environment: Path) -> Bom:
    """Return the whole document."""
    system = operating_system()
    parts = list(python(environment))
    (ours,) = (part for part in parts if part.name == OURS)
    (commit,) = environment.glob("lib/python3*/site-packages/rds_process/commit.txt")
    image = Component(
        name=OURS,
        version=ours.version,
        type=ComponentType.CONTAINER,
        bom_ref="image",
        properties=[Property(name="rds-csi:commit", value=commit.read_text().strip())],
    )
    base = Component(name=system["ID"], version=system["VERSION_ID"], type=ComponentType.OPERATING_SYSTEM, bom_ref="system")
    bom = Bom(components=[base, *debian(system), *parts])
    bom.metadata.component = image
    bom.register_dependency(image, bom.components)
    return bom


def main() -> None:
    """Print the document, if it is one."""
    text = JsonV1Dot6(bill(Path(sys.argv[1]))).output_as_string(indent=1)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        sys.exit(f"sbom: CycloneDX refuses it: {wrong}")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
