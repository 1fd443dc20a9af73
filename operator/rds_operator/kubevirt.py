"""The operator's copy of KubeVirt's objects: virtual machines and their migrations, as far as records are about them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from rds_operator.reflector import Access, Reflector, WatchApi
from rds_records.kubevirt_objects import GROUP_VERSION, Migration, Vmi, migration_view, vmi_view
from rds_records.kubevirt_sights import Trouble
from rds_records.record import Record

VMIS: Final = f"{GROUP_VERSION}/virtualmachineinstances"
MIGRATIONS: Final = f"{GROUP_VERSION}/virtualmachineinstancemigrations"

PATIENCE_SECONDS: Final = 30.0
"""An API server that is away for less is no news on a record."""

VmiKey = tuple[str, str]
"""Namespace and name of a VirtualMachineInstance."""

ClaimKey = tuple[str, str]
"""Namespace and name of a PersistentVolumeClaim."""


class KubeVirt:
    """What is known of KubeVirt now.

    ``vmi_touched`` hears whose virtual machine or migrations changed, ``claims_touched`` which claims are used by another one,
    ``access_changed`` that a kind can be read now, or no more.
    """

    def __init__(
        self,
        api: WatchApi,
        vmi_touched: Callable[[VmiKey], None],
        claims_touched: Callable[[Iterable[ClaimKey]], None],
        access_changed: Callable[[], None],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._vmi_touched = vmi_touched
        self._claims_touched = claims_touched
        self._by_name: dict[VmiKey, Vmi] = {}
        self._users: dict[ClaimKey, set[VmiKey]] = defaultdict(set)
        self._migrations: dict[VmiKey, dict[str, Migration]] = defaultdict(dict)
        self._vmis = Reflector(api, VMIS, vmi_view, self._vmi_changed, access_changed, sleep=sleep)
        self._vmims = Reflector(api, MIGRATIONS, migration_view, self._migration_changed, access_changed, sleep=sleep)
        self.reflectors: Final = (self._vmis, self._vmims)

    @property
    def access(self) -> dict[str, str]:
        """Whether each kind can be read, for ``/readyz``."""
        return {"virtualmachineinstances": self._vmis.access.value, "virtualmachineinstancemigrations": self._vmims.access.value}

    @property
    def known(self) -> bool:
        """Whether all objects are known, also that there are none."""
        return all(one.access in {Access.READABLE, Access.NOT_INSTALLED} for one in self.reflectors)

    @property
    def trouble(self) -> Trouble | None:
        """Why KubeVirt cannot be read; None while it can be, and while nobody has tried yet."""
        for one in self.reflectors:
            if one.access is Access.FORBIDDEN:
                text = f"the operator may not read KubeVirt's objects, so results of migrations are not known: {one.trouble}"
                return Trouble(
                    Access.FORBIDDEN.value, f"{text}; grant list and watch to its ServiceAccount (ClusterRole rds-operator)"
                )
            if one.access is Access.UNAVAILABLE and one.lasting > PATIENCE_SECONDS:
                return Trouble(Access.UNAVAILABLE.value, f"KubeVirt's objects cannot be read now: {one.trouble}")
        return None

    def vmi(self, key: VmiKey) -> Vmi | None:
        """Return the VirtualMachineInstance of that name, as last seen."""
        return self._by_name.get(key)

    def migrations_of(self, key: VmiKey) -> list[Migration]:
        """Return all migrations of the virtual machine of that name."""
        return list(self._migrations.get(key, {}).values())

    def user_of(self, record: Record) -> Vmi | None:
        """Return the virtual machine whose disk the volume's claim is; that of the open window where there are several."""
        claim = record.status.claim_ref
        users = self._users.get((claim.namespace, claim.name), set()) if claim else set()
        if not users:
            return None
        window = record.status.migration
        wanted = (window.vmi.namespace, window.vmi.name) if window and window.vmi else None
        return self._by_name[wanted if wanted in users else min(users)]

    def _vmi_changed(self, before: Vmi | None, after: Vmi | None) -> None:
        touched: set[ClaimKey] = set()
        for vmi, here in ((before, False), (after, True)):
            if vmi is None:
                continue
            key = (vmi.namespace, vmi.name)
            if here:
                self._by_name[key] = vmi
            elif self._by_name.get(key) == vmi:
                del self._by_name[key]
            for claim in vmi.claims:
                users = self._users[vmi.namespace, claim]
                (users.add if here else users.discard)(key)
                touched ^= {(vmi.namespace, claim)}
                if not users:
                    del self._users[vmi.namespace, claim]
        one = after or before
        if one is None:
            return
        self._vmi_touched((one.namespace, one.name))
        changed_identity = before is not None and after is not None and before.uid != after.uid
        self._claims_touched({(one.namespace, claim) for claim in one.claims} if changed_identity else touched)

    def _migration_changed(self, before: Migration | None, after: Migration | None) -> None:
        one = after or before
        if one is None:
            return
        key = (one.namespace, one.vmi_name)
        if after:
            self._migrations[key][after.uid] = after
        elif before:
            self._migrations[key].pop(before.uid, None)
            if not self._migrations[key]:
                del self._migrations[key]
        self._vmi_touched(key)
