"""From options to an open agent, and from an address to a cloud one may trust."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from splitglm_cli.progress import building, shown_progress
from splitglm_core.errors import InputError
from splitglm_core.plan import Precision

if TYPE_CHECKING:
    from splitglm_edge import Agent, CloudAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudOptions:
    """The flags about the cloud as given.

    Attributes:
        address: ``host:port``, or None for the device alone.
        key: expected identity key as text.
        trust_first_use: accept and pin an unknown key.
        psk_file: file of a pairing code.
    """

    address: str | None = None
    key: str | None = None
    trust_first_use: bool = False
    psk_file: Path | None = None

    def resolve(self) -> CloudAddress | None:
        """The address with what is needed to trust it; None without a cloud.

        Raises:
            InputError: not HOST:PORT, a mistyped key, or flags about a cloud that is not named.
            DeviceError: the pairing file is missing or open to others.
        """
        if self.address is None:
            if self.key is not None or self.trust_first_use or self.psk_file is not None:
                raise InputError("a key, a pairing or trust without a cloud", "name the cloud with --cloud HOST:PORT")
            return None
        from splitglm_cloud.settings import split_address
        from splitglm_edge import CloudAddress
        from splitglm_security.keys import parse_public_key

        if split_address(self.address)[1] == 0:
            raise InputError(f"{self.address!r} has no port to connect to", "write for example 127.0.0.1:7411")
        if self.key is not None:
            parse_public_key(self.key)
        return CloudAddress(
            address=self.address,
            key=self.key,
            trust_on_first_use=self.trust_first_use,
            psk=read_psk(self.psk_file),
        )


def read_psk(path: Path | None) -> bytes | None:
    """The pre-shared key of a pairing file, or None without a path.

    Raises:
        DeviceError: there is no such file, or others may read it.
        InputError: it does not hold a pairing code.
    """
    if path is None:
        return None
    from splitglm_security.keys import PairingCode

    return PairingCode.read(path.expanduser()).psk()


def open_agent(
    model: str,
    cloud: CloudAddress | None,
    *,
    precision: Precision,
    threads: int,
    context: int = 0,
    quiet: bool = False,
    decision_log: Path | None = None,
) -> Agent:
    """An agent; what is built or measured on the way is shown on standard error."""
    from splitglm_edge import Agent

    with shown_progress(quiet=quiet) as progress:
        return Agent.open(
            model,
            cloud=cloud,
            precision=precision,
            threads=threads,
            context=context,
            progress=building(progress, precision.value),
            decision_log=decision_log,
        )
