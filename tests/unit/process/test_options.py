"""Options from the command line and the environment."""

from __future__ import annotations

import argparse

import pytest

from rds_process.options import Options, duration


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("250ms", 0.25), ("0", 0)])
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "1d", "1 s", "inf", "nan", "1e3", "٣"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)


def parse(argv: list[str], **environment: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options = Options(parser, environment, prefix="APP_")
    options.add("--size", "size", default="1", kind=int, variables=["SIZE"])
    options.add("--color", "color", default="red", choices=["red", "blue"])
    options.switch("--loud", "noise")
    return parser.parse_args(argv)


def test_command_line_wins_over_environment_and_environment_over_default() -> None:
    assert parse([]).size == 1
    assert parse([], SIZE="2").size == 2
    assert parse([], SIZE="2", APP_SIZE="3").size == 3
    assert parse(["--size", "4"], APP_SIZE="3").size == 4


@pytest.mark.parametrize(
    ("argv", "given", "loud"),
    [([], "", False), ([], "true", True), ([], "False", False), (["--loud"], "", True), (["--loud=false"], "true", False)],
)
def test_switches_take_true_and_false(argv: list[str], given: str, loud: bool) -> None:
    assert parse(argv, APP_LOUD=given).loud is loud


@pytest.mark.parametrize("environment", [{"APP_SIZE": "x"}, {"APP_COLOR": "green"}, {"APP_LOUD": "maybe"}])
def test_bad_variable_is_told_by_the_name_of_its_option(capsys: pytest.CaptureFixture[str], environment: dict[str, str]) -> None:
    with pytest.raises(SystemExit):
        parse([], **environment)
    assert f"--{next(iter(environment)).removeprefix('APP_').lower()}" in capsys.readouterr().err
