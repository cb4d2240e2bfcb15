"""Who a stream belongs to: a tenant with a pairing of its own, or else the address that it comes from."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.gateway.places import is_here
from splitglm_core.criticality import Criticality
from splitglm_core.errors import DeviceError, InputError
from splitglm_security.files import read_private
from splitglm_security.keys import PairingCode
from splitglm_security.psk_ring import PskRing

_FILE_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEYS: Final = {"name", "weight", "criticality", "code", "psk_file"}
_CLASSES: Final = {known.name.lower().replace("_", "-"): known for known in Criticality}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One customer of a server.

    Attributes:
        name: for logs and metrics; letters, digits, ``_``, ``.`` and ``-``, 64 at most.
        psk: 32 bytes, shared with the tenant's devices only.
        weight: share of the engine beside other tenants.
        highest: class that its requests have at most.
    """

    name: str
    psk: bytes = field(repr=False)
    weight: float = 1.0
    highest: Criticality = Criticality.CRITICAL_PLUS

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f"{self.name[:80]!r} is not a tenant's name", "use letters, digits, - _ and .")
        if not (math.isfinite(self.weight) and 1e-3 <= self.weight <= 1e3):
            raise InputError(f"the weight of tenant {self.name} is outside [0.001, 1000]")


class Tenants:
    """All tenants of a server.

    Raises:
        InputError: none, two of one name or one key, or more than 4096.
    """

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        if len({tenant.name for tenant in tenants}) < len(tenants):
            raise InputError("two tenants have the same name")
        self.psks = PskRing([tenant.psk for tenant in tenants])
        self._owners = tuple(Owner(tenant.name, tenant.weight, tenant.highest) for tenant in tenants)

    def __len__(self) -> int:
        return len(self._owners)

    def owner(self, psk_number: int) -> Owner:
        """Whose key the ``psk_number``-th of ``psks`` is."""
        return self._owners[psk_number]

    @classmethod
    def load(cls, path: Path) -> Tenants:
        """Tenants of a TOML file that only its owner can read::

            [[tenant]]
            name = "lab"
            weight = 2.0          # 1.0 if left out
            criticality = "critical" # the highest that its requests have; "critical-plus" if left out
            psk_file = "lab.code" # beside this file; or code = "sglmp1..."

        Raises:
            DeviceError: a file is missing or readable by others.
            InputError: it is not of that form. No message holds a code.
        """
        data = read_private(path, _FILE_BYTES)
        if data is None:
            raise DeviceError(f"there is no tenants file {path}")
        try:
            document = tomllib.loads(data.decode("utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
            raise InputError(f"{path} is not a TOML file", "see `splitglm cloud serve --help`") from None
        entries = document.get("tenant")
        if set(document) != {"tenant"} or not isinstance(entries, list) or not entries:
            raise InputError(f"{path} holds something else than [[tenant]] tables")
        return cls([_tenant(entry, path) for entry in entries])


def owner_by_address(peer: str, stream: str) -> Owner:
    """Whose a stream without a tenant's key is: its address's (``peer_of``). Devices on this machine share one address
    and are told apart by their streams."""
    return Owner(f"stream {stream}" if is_here(peer) else peer)


def _tenant(entry: Any, path: Path) -> Tenant:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise InputError(f"a tenant in {path} has no name")
    name, weight = entry["name"], entry.get("weight", 1.0)
    unknown = set(entry) - _KEYS
    if unknown:
        raise InputError(f"tenant {name[:80]!r} in {path} has unknown keys: {', '.join(sorted(unknown))[:80]}")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise InputError(f"the weight of tenant {name[:80]!r} is not a number")
    highest = entry.get("criticality", "critical-plus")
    if not isinstance(highest, str) or highest not in _CLASSES:
        raise InputError(f"the criticality of tenant {name[:80]!r} is unknown", f"use {', '.join(_CLASSES)}")
    code, file = entry.get("code"), entry.get("psk_file")
    if (code is None) == (file is None) or not isinstance(code or file, str):
        raise InputError(f"tenant {name[:80]!r} needs either a code or a psk_file")
    if file is not None:
        pairing = PairingCode.read(path.parent / Path(file).expanduser())
    else:
        pairing = PairingCode.parse(str(code))
    return Tenant(name=name, weight=float(weight), psk=pairing.psk(), highest=_CLASSES[highest])
