"""Requests as a hostile or broken caller might send them: any message of CSI, filled with what breaks naive drivers."""

from __future__ import annotations

from random import Random
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)

NASTY = (
    "",
    " ",
    "pvc-1",
    "pvc-6a1b1a51-8c0e-4f5e-9a4e-3f1a2b3c4d5e",
    "node-a",
    "a" * 128,
    "a" * 129,
    "a" * 5000,
    "ключ",
    "pvc-\u202e1",
    "a\x00b",
    "a\nb",
    "pvc-1; /system reset-configuration",
    'pvc-1" file-path=/flash/x',
    "$(reboot)",
    "`id`",
    "[/file remove 0]",
    "../../etc/passwd",
    "/storage-pool/metal-csi/../x",
    "/storage-pool/metal-csiX",
    "-pvc",
    "%s%n",
    "ext4",
    "300",
    "-1",
    "٣",
    "1e9",
    "99999999999999999999",
    "KubeVirt",
    "10.0.0.1",
    "::1",
)
KEYS = (
    "migrationTimeoutSeconds",
    "volumePath",
    "nvmeAddress",
    "nvmePort",
    "dualAttachPolicy",
    "ctrlLossTmo",
    "fsType",
    "csi.storage.k8s.io/pv/name",
)


def _text(random: Random) -> str:
    chosen = random.choice(NASTY)
    match random.randrange(4):
        case 0:
            return "".join(
                chr(random.choice((random.randrange(128), random.randrange(0xD800)))) for _ in range(random.randrange(40))
            )
        case 1 if chosen:
            place = random.randrange(len(chosen))
            return chosen[:place] + random.choice(" ;\n\x00\"'$[]{}()/\\\u00e9\u202e") + chosen[place:]
        case _:
            return chosen


def _scalar(field: Any, random: Random) -> Any:
    if field.enum_type is not None:
        return random.choice([value.number for value in field.enum_type.values] + [random.randrange(-(2**31), 2**31)])
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return _text(random)
        case FieldDescriptor.TYPE_BOOL:
            return random.random() < 0.5
        case FieldDescriptor.TYPE_BYTES:
            return random.randbytes(random.randrange(50))
        case FieldDescriptor.TYPE_INT64:
            return random.choice([0, 1, -1, 2**30, 2**40, 2**44, 2**63 - 1, -(2**63), random.randrange(-(2**63), 2**63)])
        case _:
            return random.randrange(-(2**31), 2**31)


def fill(message: M, random: Random, *, depth: int = 4, chance: float = 0.6) -> M:
    """Set fields of the message to anything; each with that chance."""
    for field in message.DESCRIPTOR.fields:
        kind = field.message_type
        if random.random() > chance or (depth <= 0 and kind is not None):
            continue
        value = getattr(message, field.name)
        if kind is not None and kind.GetOptions().map_entry:
            value.update({random.choice((random.choice(KEYS), _text(random))): _text(random) for _ in range(random.randrange(4))})
        elif kind is not None and field.is_repeated:
            for _ in range(random.randrange(3)):
                fill(value.add(), random, depth=depth - 1, chance=chance)
        elif kind is not None:
            value.SetInParent()
            fill(value, random, depth=depth - 1, chance=chance)
        elif field.is_repeated:
            value.extend(_scalar(field, random) for _ in range(random.randrange(4)))
        else:
            setattr(message, field.name, _scalar(field, random))
    return message


def messages(kind: type[M]) -> st.SearchStrategy[M]:
    """Any message of that kind, made from a seed: a strategy of its own for every field would be a hundred times slower."""
    return st.builds(
        lambda seed, chance: fill(kind(), Random(seed), chance=chance), st.integers(0, 2**64), st.sampled_from([0.3, 0.6, 0.9])
    )
