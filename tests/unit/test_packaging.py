"""The distribution carries what its metadata promises."""

from importlib.metadata import entry_points


def test_the_distribution_installs_the_two_commands() -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert scripts["rds-csi"] == "rds_csi.cli:main"
    assert scripts["rds-operator"] == "rds_operator.cli:main"
