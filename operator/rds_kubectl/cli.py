"""The command ``kubectl-rds``, which kubectl runs as ``kubectl rds``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TextIO

from rds_kubectl.connection import Access, NoConnection, connect
from rds_kubectl.examining import examine
from rds_kubectl.migration_rows import HEADINGS, changes, recent
from rds_kubectl.reading import NoRecords, Reader, no_records
from rds_kubectl.releasing import facts_about, release
from rds_kubectl.resolving import NotOneVolume, resolve
from rds_kubectl.status_page import Status
from rds_kubectl.volume_page import Page
from rds_kubectl.watching import follow
from rds_kubectl.world import volumes_of_driver
from rds_process.options import duration
from rds_process.tables import table
from rds_process.version import ShowVersion
from rds_records.kubernetes_api import ApiError, KubernetesApi
from rds_records.names import DRIVER_NAME
from rds_records.record import Record
from rds_records.store import COLLECTION

DONE: Final = 0
NOT_DONE: Final = 1
WRONG: Final = 3
"""Exit status; 2 is argparse's, for options that are wrong."""

DESCRIPTION: Final = """\
What the volumes of MikroTik ROSE Data Servers do: who holds them, which live migrations are open, what is wrong and what is safe to
do about it. Reads the records, Kubernetes and KubeVirt through the API server, with your kubeconfig; never talks to the box.
"""

EPILOG: Final = """\
Exit status: 0 done, 1 not done or not readable, 2 wrong options, 3 something is wrong (only with --exit-status).
"""


NAME: Final = "the volume handle, the PersistentVolume, or the claim, as NAMESPACE/CLAIM or CLAIM"

RELEASE: Final = """\
Deletes the VolumeAttachment of the volume on the node, so that csi-attacher detaches it and another node may have it. Only where
the node is proven out: there is no such Node; or it is not Ready and marked out of service, which is only for nodes without power;
or it is Ready and neither a pod there, nor its kubelet, nor the attach/detach controller has the volume; or the fence is on.
Otherwise it says why not, and what to do instead, and ends with 1.
"""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of one command."""

    given: argparse.Namespace
    api: KubernetesApi
    namespace: str
    out: TextIO
    err: TextIO

    @property
    def json(self) -> bool:
        """Whether the answer is for a program."""
        return bool(self.given.output == "json")

    def reader(self) -> Reader:
        """Return what reads for this command."""
        return Reader(self.api, driver=self.given.driver_name, installation=self.given.driver_namespace)

    def say(self, page: Any) -> None:
        """Print a page that has ``lines()`` and ``to_json()``, as asked for."""
        if self.json:
            json.dump(page.to_json(), self.out, indent=2)
            print(file=self.out)
            return
        for line in page.lines():
            print(line, file=self.out)


async def status(run: Invocation) -> int:
    """Show all volumes, open migrations, and what is wrong."""
    page = Status(await run.reader().world())
    run.say(page)
    return WRONG if page.wrong and run.given.exit_status else DONE


async def migrations(run: Invocation) -> int:
    """Show open and recent migrations, and with ``--watch`` what changes of them."""
    reader, within = run.reader(), timedelta(seconds=run.given.since)
    try:
        items, at = await run.api.list(COLLECTION)
    except ApiError as error:
        raise no_records(error) from error
    known = {record.handle: record for item in items if (record := reader.understood(item))}
    rows = recent(known.values(), now=run.api.clock.now(), within=within)
    for trouble in reader.troubles:
        print(f"{trouble.what}: {trouble.why}", file=run.err)
    if run.json and not run.given.watch:
        unread = [{"what": trouble.what, "why": trouble.why} for trouble in reader.troubles]
        json.dump({"migrations": [row.to_json() for row in rows], "unread": unread}, run.out, indent=2)
        print(file=run.out)
        return DONE
    if run.json:
        for row in reversed(rows):
            print(json.dumps(row.to_json()), file=run.out, flush=True)
    elif rows:
        for line in table(HEADINGS, (row.cells(run.api.clock.now()) for row in rows)):
            print(line, file=run.out, flush=True)
    else:
        where = " in the records that could be read" if reader.troubles else ""
        print(f"No migration is open, and none ended lately (--since){where}.", file=run.out, flush=True)
    if run.given.watch:
        await _watch(run, reader, known, at)
    return DONE


async def _watch(run: Invocation, reader: Reader, known: dict[str, Record], at: str) -> None:
    def told(trouble: str) -> None:
        print(f"the watch was broken off and is taken up again: {trouble}", file=run.err, flush=True)

    async for body in follow(run.api, at, told=told):
        record = reader.understood(body)
        if record is None:
            continue
        for row in changes(known.get(record.handle), record):
            moment = run.api.clock.now()
            text = json.dumps(row.to_json()) if run.json else _one_change(row.cells(moment), f"{moment:%H:%M:%S}")
            print(text, file=run.out, flush=True)
        known[record.handle] = record


def _one_change(cells: Sequence[str], at: str) -> str:
    claim, vm, source, target, state, _, took, deadline, live, why = cells
    parts = (
        f"{at}  {claim}: {source} -> {target}  {state} after {took}",
        f"VM {vm}" if vm else "",
        f"deadline {deadline}" if deadline else "",
        f"runs on {live}" if live else "",
        why,
    )
    return "  ".join(part for part in parts if part)


async def volume(run: Invocation) -> int:
    """Show everything about one volume."""
    reader = run.reader()
    world = await reader.world()
    one = resolve(volumes_of_driver(world), run.given.name, run.namespace, world)
    run.say(Page(one, await reader.around(one), world))
    return DONE


async def release_node(run: Invocation) -> int:
    """Delete the VolumeAttachment of a volume on a node, where that is proven safe."""
    reader = run.reader()
    world = await reader.world()
    one = resolve(volumes_of_driver(world), run.given.name, run.namespace, world)
    facts = await facts_about(reader, world, one, run.given.node)
    done = await release(run.api, facts, one, dry_run=run.given.dry_run)
    run.say(done)
    return DONE if done.done else NOT_DONE


async def doctor(run: Invocation) -> int:
    """Look whether the installation is as it should be."""
    page = await examine(run.api, driver=run.given.driver_name, installation=run.given.driver_namespace)
    run.say(page)
    return WRONG if page.wrong and run.given.exit_status else DONE


Command = Callable[[Invocation], Awaitable[int]]


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; kubectl's own flags may stand before or after the command."""
    flags = argparse.ArgumentParser(
        prog="kubectl rds", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--version", action=ShowVersion, program="kubectl-rds")
    common = _common()
    flags_before = flags.add_argument_group("how to reach the cluster, as with kubectl")
    for action in common._actions:  # noqa: SLF001 the same options in both places
        flags_before._add_action(action)  # noqa: SLF001
    commands = flags.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(name: str, act: Command, text: str, description: str = "") -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=description or f"{text[0].upper()}{text[1:]}.", parents=[common])
        one.set_defaults(act=act)
        one.add_argument("-o", "--output", default="table", choices=("table", "json"), help="a page for people, or JSON")
        return one

    one = command("status", status, "all volumes, open migrations, what is wrong and what to do")
    one.add_argument("--exit-status", action="store_true", help="end with 3 where something is wrong or could not be read")
    one = command("migrations", migrations, "open and recent migrations, from the records")
    one.add_argument("-w", "--watch", action="store_true", help="go on, and print each change")
    one.add_argument("--since", type=duration, default=86_400.0, metavar="TIME", help="those that ended since then [default: 24h]")
    one = command("volume", volume, "one volume: record, PV, claim, VM, pods, attachments, migrations, Events")
    one.add_argument("name", metavar="NAME", help=NAME)
    one = command("doctor", doctor, "whether the installation is as it should be, and how to mend it")
    one.add_argument("--exit-status", action="store_true", help="end with 3 where something is wrong or could not be read")
    one = command("release", release_node, "detach a volume from a node that is proven out", RELEASE)
    one.add_argument("name", metavar="VOLUME", help=NAME)
    one.add_argument("node", metavar="NODE", help="the name of the Node")
    one.add_argument("--dry-run", action="store_true", help="say what would be done; the API server checks it and changes nothing")
    return flags


DEFAULTS: Final[Mapping[str, Any]] = {
    "kubeconfig": "",
    "context": "",
    "namespace": "",
    "impersonate": "",
    "request_timeout": 10.0,
    "driver_namespace": "rds-csi",
    "driver_name": DRIVER_NAME,
}


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    add = common.add_argument
    add("--kubeconfig", metavar="FILE", help="the kubeconfig [default: KUBECONFIG, ~/.kube/config, the pod's own account]")
    add("--context", metavar="NAME", help="the context in it")
    add("-n", "--namespace", metavar="NAME", help="the namespace of claims that are named without one [default: the context's]")
    add("--as", dest="impersonate", metavar="USER", help="whom to act as")
    add("--request-timeout", type=duration, metavar="TIME", help="how long one request may take [default: 10s]")
    add("--driver-namespace", metavar="NAME", help="where driver and operator are installed [default: rds-csi]")
    add("--driver-name", metavar="NAME", help=f"the CSI driver's name [default: {DRIVER_NAME}]")
    return common


def read(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; ends the process where they cannot be right."""
    return argparse.Namespace(**{**DEFAULTS, **vars(parser().parse_args(arguments))})


async def run(given: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    """Run one command; returns the exit status."""
    access = Access(given.kubeconfig, given.context, given.namespace, given.impersonate, given.request_timeout)
    try:
        api, namespace = await connect(access)
        async with api:
            return int(await given.act(Invocation(given, api, namespace, out, err)))
    except (NoConnection, NoRecords, NotOneVolume, ApiError) as error:
        print(f"kubectl rds: {error}", file=err)
        return NOT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = read(arguments)
    # What libraries have to say of a kubeconfig comes back as the one error that counts.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        return asyncio.run(run(given, sys.stdout, sys.stderr))
    except KeyboardInterrupt:
        return NOT_DONE if not getattr(given, "watch", False) else DONE
    except BrokenPipeError:
        sys.stderr.close()
        return NOT_DONE
