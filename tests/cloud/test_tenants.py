"""Whose a stream is: tenants by their pairing, everybody else by address."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.gateway.places import peer_of
from splitglm_cloud.gateway.tenants import Tenant, Tenants, owner_by_address
from splitglm_core.criticality import Criticality
from splitglm_core.errors import DeviceError, InputError
from splitglm_security.keys import PairingCode

CODE = PairingCode(bytes(16))
OTHER = PairingCode(bytes(range(32)))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_tenants_come_from_a_file_of_names_weights_and_codes(tmp_path: Path) -> None:
    write(tmp_path / "lab.code", OTHER.text + "\n")
    file = write(
        tmp_path / "tenants.toml",
        f'[[tenant]]\nname = "shop"\ncode = "{CODE.text}"\n'
        '[[tenant]]\nname = "lab-2"\nweight = 2\ncriticality = "critical"\npsk_file = "lab.code"\n',
    )
    tenants = Tenants.load(file)
    assert len(tenants) == 2
    assert [tenants.owner(n) for n in range(2)] == [Owner("shop", 1.0), Owner("lab-2", 2.0, Criticality.CRITICAL)]
    assert [tenants.psks[n] for n in range(2)] == [CODE.psk(), OTHER.psk()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "something else"),
        ("tenant = 3", "something else"),
        ("[tenant]\nname = 'a'", "something else"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\n[other]", "something else"),
        ("[[tenant]", "not a TOML file"),
        ("tenant = " + "[" * 30_000, "not a TOML file"),
        ("[[tenant]]\ncode = 'CODE'", "no name"),
        ("[[tenant]]\nname = 3", "no name"),
        ("[[tenant]]\nname = 'a'", "either a code or a psk_file"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\npsk_file = 'x'", "either a code or a psk_file"),
        ("[[tenant]]\nname = 'a'\ncode = 7", "either a code or a psk_file"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODEx'", "mistyped"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\nwieght = 2", "wieght"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\nweight = '2'", "not a number"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\nweight = true", "not a number"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\nweight = 0", "outside"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\nweight = nan", "outside"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\ncriticality = 'urgent'", "criticality"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\ncriticality = [1]", "criticality"),
        ("[[tenant]]\nname = 'a b'\ncode = 'CODE'", "not a tenant's name"),
        ("[[tenant]]\nname = ''\ncode = 'CODE'", "not a tenant's name"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\n[[tenant]]\nname = 'a'\ncode = 'OTHER'", "same name"),
        ("[[tenant]]\nname = 'a'\ncode = 'CODE'\n[[tenant]]\nname = 'b'\ncode = 'CODE'", "same key"),
    ],
)
def test_a_file_of_another_form_is_refused_without_telling_a_code(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path / "tenants.toml", text.replace("CODE", CODE.text).replace("OTHER", OTHER.text))
    with pytest.raises(InputError, match=says) as error:
        Tenants.load(file)
    assert CODE.text not in error.value.one_line() and error.value.__cause__ is None


def test_a_file_that_others_can_read_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no tenants file"):
        Tenants.load(tmp_path / "absent.toml")
    file = write(tmp_path / "tenants.toml", f'[[tenant]]\nname = "a"\ncode = "{CODE.text}"')
    file.chmod(0o644)
    with pytest.raises(DeviceError):
        Tenants.load(file)
    with pytest.raises(DeviceError, match="no pairing file"):
        Tenants.load(write(tmp_path / "b.toml", "[[tenant]]\nname = 'a'\npsk_file = 'absent'"))


def test_a_pairing_file_with_a_zero_byte_in_its_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="not a path"):
        Tenants.load(write(tmp_path / "tenants.toml", "[[tenant]]\nname = 'a'\npsk_file = \"a\\u0000b\"\n"))


def test_a_tenants_key_is_not_shown() -> None:
    assert "psk" not in repr(Tenant(name="a", psk=CODE.psk()))


def test_without_tenants_an_address_is_one_owner_and_streams_of_this_machine_are_several() -> None:
    far = [owner_by_address(peer_of(f"ipv4:10.0.0.9:{port}"), str(port)) for port in (1, 2)]
    assert far == [Owner("10.0.0.9"), Owner("10.0.0.9")]
    here = [owner_by_address(peer_of(f"ipv4:127.0.0.1:{port}"), str(port)) for port in (1, 2)]
    assert here == [Owner("stream 1"), Owner("stream 2")]
