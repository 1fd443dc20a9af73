"""The command line and the handlers' declarations."""

from __future__ import annotations

import logging

import kopf
import pytest
from kubernetes.aio.client import Configuration

from rds_operator import cli, handlers
from rds_operator.process import Settings, default_identity


def parse(*arguments: str, **environment: str) -> Settings:
    return cli.settings(cli.parser(environment), arguments)[0]


def test_defaults_are_those_of_client_go() -> None:
    chosen = parse()
    assert (chosen.timing.duration, chosen.timing.renew_deadline, chosen.timing.retry_period) == (15, 10, 2)
    assert chosen.metrics_address == ":9810"
    assert chosen.events


def test_the_command_line_wins_over_the_environment() -> None:
    variables = {"RDS_OPERATOR_LEASE_NAME": "from-environment", "RDS_OPERATOR_DISABLE_EVENTS": "true"}
    assert parse(**variables).lease_name == "from-environment"
    assert not parse(**variables).events
    assert parse("--lease-name", "given", "--disable-events=false", **variables).lease_name == "given"
    assert parse("--disable-events=false", **variables).events


@pytest.mark.parametrize("off", [["--disable-metrics"], ["--metrics-address="]])
def test_metrics_can_be_switched_off(off: list[str]) -> None:
    assert parse(*off).metrics_address == ""


@pytest.mark.parametrize("wrong", [["--lease-duration=5s"], ["--metrics-address=nowhere"], ["--retry-period=often"], ["--unknown"]])
def test_what_cannot_be_right_ends_with_status_two(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*wrong)
    assert ended.value.code == 2
    assert wrong[0].split("=", maxsplit=1)[0].removeprefix("--").replace("-", " ") in capsys.readouterr().err.replace("-", " ")


def test_no_two_lives_have_the_same_identity() -> None:
    assert default_identity() != default_identity()
    assert len(default_identity()) <= 63


def test_kopf_posts_nothing_and_looks_at_nothing_else() -> None:
    chosen = handlers.settings()
    assert not chosen.posting.enabled
    assert chosen.scanning.disabled
    assert isinstance(chosen.watching.server_timeout, int), "the API server takes whole seconds only"


async def test_kopf_logs_in_with_the_token_of_now() -> None:
    configuration = Configuration(host="https://127.0.0.1:1")
    configuration.api_key["BearerToken"] = "bearer first"
    assert (await handlers.connection(configuration)).token == "first"
    configuration.api_key["BearerToken"] = "second"
    login = await handlers.connection(configuration)
    assert isinstance(login, kopf.ConnectionInfo)
    assert (login.token, login.server) == ("second", "https://127.0.0.1:1")


def test_kopfs_running_commentary_stays_out_of_the_log() -> None:
    handlers.quiet()
    assert not logging.getLogger("kopf.objects").isEnabledFor(logging.INFO)
    assert logging.getLogger("kopf._core.engines").isEnabledFor(logging.WARNING)
