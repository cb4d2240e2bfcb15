"""``splitglm keys``: this node's identity, the clouds one trusts, and pairing."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from splitglm_cli.options import Debug, Json
from splitglm_core.errors import DeviceError, InputError

if TYPE_CHECKING:
    from splitglm_security.trust import PinStore

_PAIRING_NAME: Final = "pairing.code"
_LONGEST_CODE: Final = 1024

Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="HOST:PORT, as it is given to --cloud.")]


def show(
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", envvar="SPLITGLM_KEY_FILE", help="Identity key.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print this cloud node's public identity key; make one if there is none."""
    from splitglm_cloud.settings import default_key_file
    from splitglm_security.keys import NodeKey

    path = (key_file or default_key_file()).expanduser()
    key = NodeKey.load_or_create(path).text
    print(json.dumps({"key": key, "key_file": str(path)}) if as_json else key)


def pin(
    address: Address,
    key: Annotated[str, typer.Argument(metavar="KEY", help="sglm1..., compared with `keys show` on the server.")],
    debug: Debug = False,
) -> None:
    """Trust KEY for the cloud at ADDRESS from now on."""
    from splitglm_cloud.settings import split_address
    from splitglm_security.keys import parse_public_key

    split_address(address)
    _pins().pin(address, parse_public_key(key), on_date=date.today().isoformat())
    print(f"pinned {address}", file=sys.stderr)


def pins(as_json: Json = False, debug: Debug = False) -> None:
    """List the pinned clouds."""
    from splitglm_cli.text_table import text_table
    from splitglm_security.keys import public_key_text

    rows = [(address, public_key_text(pin.key), pin.first_seen) for address, pin in sorted(_pins().all().items())]
    if as_json:
        print(json.dumps([{"address": a, "key": k, "first_seen": seen} for a, k, seen in rows]))
    elif rows:
        print(text_table(("ADDRESS", "KEY", "SINCE"), rows))
    else:
        print("no cloud is pinned; splitglm keys pin ADDRESS KEY pins one", file=sys.stderr)


def unpin(address: Address, debug: Debug = False) -> None:
    """Trust the cloud at ADDRESS no longer."""
    if not _pins().remove(address):
        raise InputError(f"{address} is not pinned", "splitglm keys pins")
    print(f"unpinned {address}", file=sys.stderr)


def pair(
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Where the code is kept.")] = None,
    enter: Annotated[
        bool, typer.Option("--enter", help="Keep a code made elsewhere: it is read from standard input.")
    ] = False,
    reveal: Annotated[bool, typer.Option("--reveal", help="Also print the code on standard output.")] = False,
    debug: Debug = False,
) -> None:
    """Make a pairing code, kept in a file that only you can read. Both sides then use --psk-file FILE.

    A cloud that was started with a code talks to paired devices only. Carry the code by a way that others cannot read.
    """
    from splitglm_edge.connection import default_pins
    from splitglm_security.files import create_private, make_private_directory
    from splitglm_security.keys import PairingCode

    path = (file or default_pins().with_name(_PAIRING_NAME)).expanduser()
    code = PairingCode.parse(sys.stdin.read(_LONGEST_CODE)) if enter else PairingCode.generate()
    if file is None:
        make_private_directory(path.parent)
    if not create_private(path, code.text.encode() + b"\n"):
        raise DeviceError(f"{path} exists and is never overwritten", "choose another --file, or move it away")
    if reveal:
        print(code.text)
    print(f"pairing code kept in {path}: give it to --psk-file on both sides", file=sys.stderr)


def _pins() -> PinStore:
    from splitglm_edge.connection import default_pins
    from splitglm_security.trust import PinStore

    return PinStore(default_pins())
