"""What Events say of a migration window: the Go driver's sentences, then which migration, where the VM runs, and what is safe.

Commands that appear here stay safe however late they are read: a launcher pod that KubeVirt moved a VM away from, or failed to
move it to, never runs it again. No sentence tells to delete the pod of a running VM or to remove a finalizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from rds_records.record import Announcement, ForcedDetach, Result, Window

MAX_REASON = 400
"""Characters of KubeVirt's own words in a sentence; the window keeps more."""


def started(handle: str, window: Window) -> str:
    """Return the sentence of MigrationStarted."""
    none = "KubeVirt's own" if window.migration_uid else "none"
    limit = none if window.timeout_seconds is None else go_duration(window.timeout_seconds)
    return f"[{handle}]: KubeVirt live migration started - {_roles(window)}, timeout: {limit}{_run(window)}"


def completed(handle: str, window: Window, duration: float, gone: Sequence[str] = ()) -> str:
    """Return the sentence of MigrationCompleted; ``gone`` has the nodes that left, nobody where the result came first."""
    text = (
        f"[{handle}]: KubeVirt live migration completed - source: {window.source_node} -> target: {window.target_node} "
        f"(duration: {go_duration(duration)}){_run(window)}"
    )
    if window.migration_uid is None:
        return text
    return f"{text}; {_live(window)}; {_leaving(window, Result.SUCCEEDED, gone)}"


def failed(handle: str, window: Window, duration: float, gone: Sequence[str] = ()) -> str:
    """Return the sentence of MigrationFailed where it did not time out."""
    reason = (window.failure_reason or "")[:MAX_REASON] or ("both nodes left" if len(gone) > 1 else "rolled back")
    took = go_duration(duration)
    text = f"[{handle}]: KubeVirt live migration failed - {_roles(window)}, reason: {reason}, elapsed: {took}{_run(window)}"
    if window.migration_uid is None:
        return f"{text}; {_stays(window, gone)}"
    return f"{text}; {_live(window)}; {_leaving(window, Result.FAILED, gone)}"


def ended(handle: str, window: Window, duration: float, gone: Sequence[str]) -> str:
    """Return the sentence of MigrationEnded: a node left, and the result was told before, or KubeVirt has yet to tell it."""
    result = f"result: {window.result}" if window.result else "result: KubeVirt's, not told yet"
    how = f"{' and '.join(gone)} left" if gone else "KubeVirt began another migration between the two nodes"
    return (
        f"[{handle}]: KubeVirt live migration ended - {_roles(window)}, {result}, {how} (duration: {go_duration(duration)})"
        f"{_run(window)}; {_stays(window, gone)}"
    )


def timed_out(handle: str, window: Window, elapsed: timedelta) -> str:
    """Return the sentence of MigrationFailed at the deadline."""
    text = (
        f"[{handle}]: KubeVirt live migration failed - {_roles(window)}, reason: timeout, "
        f"elapsed: {go_duration(int(elapsed.total_seconds()))} (timeout: {go_duration(window.timeout_seconds or 0)})"
        f"{_run(window)}; both nodes stay attached, no further node is admitted until one has left"
    )
    if window.migration_uid is None:
        return text
    return f"{text}; {_live(window)}; {_cancel(window)}"


def verdict(handle: str, window: Window) -> str:
    """Return the sentence that tells what KubeVirt said of a window after its result was set without it."""
    said = window.kubevirt_result or Result.FAILED
    why = f" ({window.failure_reason[:MAX_REASON]})" if window.failure_reason else ""
    return (
        f"[{handle}]: KubeVirt live migration: KubeVirt says {said}{why} - {_roles(window)}, result here: {window.result}"
        f"{_run(window)}; {_live(window)}; {_leaving(window, said, ())}"
    )


def slow_start(handle: str, window: Window, elapsed: timedelta, detail: str) -> str:
    """Return the warning that a migration does not get going; ``detail`` says where it hangs."""
    where = f"; {detail}" if detail else ""
    return (
        f"[{handle}]: KubeVirt live migration has not started to move the VM - {_roles(window)}, "
        f"elapsed: {go_duration(int(elapsed.total_seconds()))}{_run(window)}{where}; {_live(window)}; {_cancel(window)}"
    )


def long_run(handle: str, window: Window, elapsed: timedelta) -> str:
    """Return the warning that a migration without a limit goes on for long."""
    return (
        f"[{handle}]: KubeVirt live migration goes on and KubeVirt sets no limit - {_roles(window)}, "
        f"elapsed: {go_duration(int(elapsed.total_seconds()))}{_run(window)}; {_live(window)}; in post-copy there is no way "
        f"back, wait; else {_cancel(window)}"
    )


def leaving_overdue(handle: str, window: Window, elapsed: timedelta, detail: str) -> str:
    """Return the warning that the node that should leave has not; ``detail`` says what is known of it."""
    node = leaving_node(window)
    where = f"; {detail}" if detail else ""
    return (
        f"[{handle}]: KubeVirt live migration is over and node {node} has not left - {_roles(window)}, result: {window.result}, "
        f"elapsed: {go_duration(int(elapsed.total_seconds()))}{_run(window)}{where}; no further node is admitted until it has "
        f"left; {_live(window)}; {release(window)}; {out_of_service(window)}"
    )


def out_of_service(window: Window) -> str:
    """Return what frees the volumes of the node that should leave where it is down, or that the VM may be running there."""
    return power_off(leaving_node(window) or "", window.live_node)


def power_off(node: str, live_node: str | None) -> str:
    """Return how a node that is down is taken out of service, or that the VM may be running there."""
    if live_node in {None, node}:
        return f"where node {node} is down, it may be powered off only once it is certain that the VM does not run there"
    return (
        f"if node {node} is down, power it off for certain and then `kubectl taint nodes {node} "
        "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute`"
    )


def warning(window: Window, kind: Announcement) -> str:
    """Return what a condition says of a warning that was given."""
    if kind is Announcement.LEAVING_OVERDUE:
        since = clock(window.result_time) if window.result_time else "long ago"
        return f"{window.result} since {since}, and node {leaving_node(window)} has not left; {release(window)}"
    if kind is Announcement.FOREIGN_POD:
        return "a pod that is no part of the VM uses the volume too"
    if kind is Announcement.SLOW_START:
        return f"two nodes are attached since {clock(window.start_time)} and KubeVirt has not started to move the VM"
    return f"KubeVirt moves the VM since {clock(window.run_start_time or window.start_time)} and sets no limit"


def way_out(window: Window) -> str:
    """Return where the VM of an overdue migration runs, and what is safe: to cancel it, or to end what it left behind."""
    known = leaving_node(window) is not None
    return f"{_live(window)}; {release(window) if known else _cancel(window)}"


def leaving_blocked(handle: str, window: Window, node_state: str) -> str:
    """Return the warning that the node that should leave cannot; ``node_state`` says what is known of it."""
    node = leaving_node(window)
    return (
        f"[{handle}]: KubeVirt live migration is over and {node_state} - {_roles(window)}, result: {window.result}{_run(window)}; "
        f"no further node is admitted until {node} has left; {_live(window)}; {out_of_service(window)}"
    )


def foreign_pods(handle: str, window: Window, pods: Sequence[str]) -> str:
    """Return the warning that pods use the volume that are no part of the VM."""
    names = " and ".join(pods)
    vm = f"the VM {window.vmi.name}" if window.vmi else "the VM"
    return (
        f"[{handle}]: pod {names} uses the volume too and is no part of {vm}: two writers on one disk corrupt it - "
        f"{_roles(window)}{_run(window)}; stop what made pod {names}"
    )


def forced_detach(handle: str, mark: ForcedDetach) -> str:
    """Return the warning that a node was detached by force, and what that means for the data."""
    text = f"[{handle}]: detached from node {mark.node_name} by force: {mark.message}"
    if mark.fenced:
        return f"{text}; the box refuses the node and has dropped its sessions, what still runs there cannot write any more"
    return (
        f"{text}; the box was not told and accepts its writes, also when it comes back: power node {mark.node_name} off for "
        "certain before another node writes, and before you trust the data"
    )


def node_not_ready(handle: str, state: str) -> str:
    """Return the warning that a node that holds the volume does not answer; ``state`` says what is known of it."""
    return f"[{handle}]: {state}, and holds the volume; what runs there may still write, so that node counts until it is detached"


def stale_cleared(handle: str, node: str, why: str) -> str:
    """Return the sentence of StaleAttachmentCleared; ``why`` says how the node was proven out."""
    return f"[{handle}]: stale attachment cleared - node: {node}; its VolumeAttachment is gone and {why}"


def release(window: Window) -> str:
    """Return what ends the side of an ended migration on which the VM does not run, or that this is not certain."""
    result = window.result if window.result is not Result.TIMED_OUT else window.kubevirt_result
    sides = {
        Result.SUCCEEDED: (window.source_node, window.source_pod, window.target_node),
        Result.FAILED: (window.target_node, window.target_pod, window.source_node),
    }
    if window.vmi is None or result is None or result not in sides:
        return "nothing is safe to release before KubeVirt says how it ended"
    node, pod, other = sides[result]
    if window.live_node != other or not pod:
        return (
            "nothing is safe to release before it is certain where the VM runs: "
            f"`kubectl -n {window.vmi.namespace} get vmi {window.vmi.name} -o jsonpath={{.status.nodeName}}`"
        )
    return (
        f"safe: node {node} does not run the VM; `kubectl -n {window.vmi.namespace} delete pod {pod}` ends what is left of it there"
    )


def leaving_node(window: Window) -> str | None:
    """Return the node that should leave, now that the result is known; None while it is not."""
    result = window.kubevirt_result if window.result is Result.TIMED_OUT else window.result
    return {Result.SUCCEEDED: window.source_node, Result.FAILED: window.target_node}.get(result) if result else None


def _roles(window: Window) -> str:
    return f"source: {window.source_node}, target: {window.target_node}"


def _run(window: Window) -> str:
    if window.vmi is None:
        return ""
    return f", migration: {window.vmi.namespace}/{window.migration_name}, VM: {window.vmi.name}"


def _live(window: Window) -> str:
    return f"the VM runs on {window.live_node}" if window.live_node else "where the VM runs is not known"


def _leaving(window: Window, result: Result, gone: Sequence[str]) -> str:
    if gone:
        return _stays(window, gone)
    return f"{window.source_node if result is Result.SUCCEEDED else window.target_node} leaves next"


def _stays(window: Window, gone: Sequence[str]) -> str:
    if not gone:
        return "both nodes stay attached"
    if len(gone) > 1:
        return "no node holds the volume"
    return f"the volume stays on {window.target_node if gone[0] == window.source_node else window.source_node}"


def _cancel(window: Window) -> str:
    if window.vmi is None:
        return ""
    return (
        f"safe: `kubectl -n {window.vmi.namespace} delete virtualmachineinstancemigration {window.migration_name}` asks KubeVirt "
        "to cancel, the VM stays where it runs"
    )


def clock(moment: datetime) -> str:
    """Return a moment as messages show it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def go_duration(seconds: float) -> str:
    """Return a duration as Go prints it (``5m0s``), the style of the Go driver's Events; fractions are cut to milliseconds."""
    milliseconds = round(max(0.0, seconds) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail
