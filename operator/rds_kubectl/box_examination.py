"""How the box is, as the active operator found it (``rds_records.box_report``): one check each, with what to do. Pure.

What it found is news only while it is active and goes on telling: anything older is shown with its age, and is nothing known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from rds_kubectl import examination
from rds_kubectl.examination import Check, State
from rds_kubectl.installation import Object
from rds_kubectl.world import lease_age
from rds_process.tables import age
from rds_records.box_report import REPEAT, BoxReport, Link

SSH: Final = "Box SSH"
HOST_KEY: Final = "Box host key"
ANSWERS: Final = "Box answers"
VERSION: Final = "Box version"
FEATURES: Final = "Box features"
OPERATOR_CLOCK: Final = "Operator clock"

ROUNDS: Final = 3
LEAST_PATIENCE: Final = timedelta(minutes=3)
"""An operator that tells nothing for longer than it may, and so many rounds more (this at least), looks no more."""

OLDEST_SEEN: Final = (7, 16)
"""No older RouterOS was ever seen to work (docs/limitations.md)."""

UNCONCERNED: Final = "VMs that run do not need this link, their I/O goes another way"
WAYS: Final = {
    Link.UNREACHABLE: f"see that the box is on and answers SSH there from the operator's node; {UNCONCERNED}",
    Link.SILENT: f"look whether the box is busy or hangs, it takes connections and does not answer; {UNCONCERNED}",
    Link.LOGIN_REFUSED: "let the user's key on the box and the private key in the Secret match; a Secret that changes is taken up "
    "without a restart",
    Link.HOST_KEY_REFUSED: "see at Box host key; until then the box is neither asked nor changed",
}
OTHER_KEY: Final = (
    "find out why the key changed before you pin another: after the box was installed anew it is expected, otherwise somebody else "
    "may answer in its place; a Secret that changes is taken up without a restart"
)


def box(found: Object | None, lease: Object | None, now: datetime, *, mode: str | None, watched: bool | None) -> list[Check]:
    """Return the checks of the ConfigMap; ``lease`` is None where nobody is known to be active.

    ``mode`` is the controller's ``--snapshot-backend``, and ``watched`` whether the operator is given a box; None where that is
    not known.
    """
    holder = _holder(lease, now)
    look = "see that an operator is active and is given the box (--rds-address), and what its log says; then ask again"
    if found is None:
        if watched is False:
            text = "the operator is given no box (--rds-address), so nobody tells how it is"
            return [Check(SSH, State.NOTE, text, "give it the box, with the controller's options, if that is to be known")]
        return [Check(SSH, State.UNKNOWN, "no operator has told how the box is", look)]
    try:
        report = BoxReport.of(found)
    except ValueError as error:
        return [Check(SSH, State.UNKNOWN, str(error), "use the plugin of the operator's version; the operator writes it anew")]
    checks = list(_checks(report, now, mode))
    if why := _why_old(report, holder, now):
        when = age(now - report.observed_time)
        return [
            replace(check, state=State.UNKNOWN, found=f"{why}; {when} ago: {check.found}", fix=look) for check in checks[:1]
        ] + [replace(check, state=State.UNKNOWN, found=f"{when} ago: {check.found}", fix="") for check in checks[1:]]
    return checks


def news(found: Object | None, lease: Object | None, now: datetime) -> BoxReport | None:
    """Return what the active operator tells now; None where nobody does, or it is old."""
    try:
        report = BoxReport.of(found) if found else None
    except ValueError:
        return None
    return report if report and not _why_old(report, _holder(lease, now), now) else None


def _holder(lease: Object | None, now: datetime) -> str:
    known = lease_age(lease, now) if lease else None
    return lease["spec"]["holderIdentity"] if lease and known and known[0] <= known[1] else ""


def _why_old(report: BoxReport, holder: str, now: datetime) -> str:
    """Return why this is no news; empty where it is."""
    if not holder:
        return "no operator is known to be active"
    if holder != report.operator:
        return f"{holder} is active and has not told of the box yet"
    patience = REPEAT + max(LEAST_PATIENCE, ROUNDS * timedelta(seconds=report.interval_seconds))
    return f"{holder} is active and does not look at the box any more" if now - report.observed_time > patience else ""


def _checks(report: BoxReport, now: datetime, mode: str | None) -> Iterator[Check]:
    yield _ssh(report, now)
    yield _host_key(report)
    known = [_version(report), _features(report, mode)]
    if report.link is Link.CONNECTED:
        yield _answers(report)
        yield from known
    else:
        for check in known:
            yield replace(check, state=State.UNKNOWN, found=f"when it last answered: {check.found}", fix=f"see at {SSH}")
    if report.operator_clock_seconds is not None:
        yield _operator_clock(report.operator_clock_seconds)


def _operator_clock(seconds: float) -> Check:
    text = f"the clock of the operator's machine is {seconds:.1f} s from the API server's"
    if seconds > examination.CLOCK.total_seconds():
        fix = "synchronize both clocks (NTP): a deadline that runs while the operator restarts fires late by as much"
        return Check(OPERATOR_CLOCK, State.WRONG, text, fix)
    return Check(OPERATOR_CLOCK, State.OK, text)


def _ssh(report: BoxReport, now: datetime) -> Check:
    since = age(now - report.since)
    if report.link is Link.CONNECTED:
        told = age(now - report.observed_time)
        return Check(SSH, State.OK, f"{report.address} answers user {report.user}, seen so for {since}, told {told} ago")
    answered = f"{age(now - report.answered_time)} ago" if report.answered_time else "never, as far as is known"
    text = f"{report.link} for {since}: {report.trouble}; it last answered {answered}"
    return Check(SSH, State.WRONG, text, WAYS[report.link])


def _host_key(report: BoxReport) -> Check:
    if not report.host_key_pinned:
        text = f"not checked: whoever answers at {report.address} is taken for the box"
        return Check(HOST_KEY, State.WRONG, text, "give --rds-host-key, and take --rds-insecure-skip-verify away")
    if report.link is Link.HOST_KEY_REFUSED:
        return Check(HOST_KEY, State.WRONG, report.trouble, OTHER_KEY)
    if report.link is Link.CONNECTED:
        return Check(HOST_KEY, State.OK, "the box presents the pinned one")
    return Check(HOST_KEY, State.UNKNOWN, "one is pinned, and the box presents none while it is not reached", f"see at {SSH}")


def _answers(report: BoxReport) -> Check:
    if not report.unanswered:
        return Check(ANSWERS, State.OK, "all that it was asked for")
    text = "; ".join(f"it does not tell its {what}: {why}" for what, why in report.unanswered.items())
    fix = "as it says: on the box, give the user the policy that is missing, or mount the pool; it is asked again by itself"
    return Check(ANSWERS, State.WRONG, text, fix)


def _version(report: BoxReport) -> Check:
    if report.router_os is None:
        return Check(VERSION, State.UNKNOWN, "the box has not told it yet", f"see at {SSH} and {ANSWERS}")
    text = f"RouterOS {report.router_os}{f' on {report.board}' if report.board else ''}"
    numbers = re.match(r"(\d+)\.(\d+)", report.router_os)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_SEEN:
        fix = f"nothing older than {'.'.join(map(str, OLDEST_SEEN))} was ever seen to work: try it out, or update the box"
        return Check(VERSION, State.NOTE, text, fix)
    return Check(VERSION, State.OK, text)


def _features(report: BoxReport, mode: str | None) -> Check:
    exports = "" if report.exported_disks is None else f"{report.exported_disks} disks exported over NVMe/TCP; "
    if report.subvolumes is None:
        return Check(FEATURES, State.UNKNOWN, f"{exports}it is not known whether it has Btrfs subvolumes", f"see at {ANSWERS}")
    if report.subvolumes:
        return Check(FEATURES, State.OK, f"{exports}Btrfs subvolumes, so snapshots and clones")
    text = f"{exports}no Btrfs subvolumes, so no snapshots and no clones: {report.no_subvolumes}"
    if mode == "btrfs":
        return Check(
            FEATURES, State.WRONG, text, "no volume can be made with --snapshot-backend=btrfs: mend the box, or set it to auto"
        )
    return Check(FEATURES, State.NOTE, text, "nothing, unless snapshots are wanted: docs/snapshots.md says what they need")
