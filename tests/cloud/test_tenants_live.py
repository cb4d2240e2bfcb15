"""Devices of several tenants at one cloud: each by its own code, and nobody without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_cloud import PATIENT, RunningCloud, running_cloud

from splitglm_cloud.settings import CloudSettings
from splitglm_core.errors import InputError, Overloaded, SecurityError
from splitglm_core.plan import Arm, Codec, Precision, Privacy
from splitglm_edge import Agent, CloudAddress
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.store import ModelStore
from splitglm_partitioner.request import Fixed
from splitglm_security.keys import PairingCode

LAB, SHOP, STRANGER = (PairingCode(bytes([number]) * 16) for number in (1, 2, 3))


@pytest.fixture(scope="module")
def tenants_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tenants") / "tenants.toml"
    path.write_text(
        f'[[tenant]]\nname = "lab"\nweight = 2.5\ncode = "{LAB.text}"\n'
        f'[[tenant]]\nname = "shop"\ncode = "{SHOP.text}"\n'
    )
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def shared(model: Path, home: Path, tenants_file: Path) -> Iterator[RunningCloud]:
    with running_cloud(model, home, tenants_file=tenants_file, max_sessions_per_tenant=2) as cloud:
        yield cloud


def device(
    shared: RunningCloud, model: Path, home: Path, code: PairingCode | None, timeouts: Timeouts = PATIENT
) -> Agent:
    where = CloudAddress(address=shared.address, key=shared.key, psk=None if code is None else code.psk())
    store = ModelStore(home)
    return Agent.open(str(model), cloud=where, precision=Precision.FP32, threads=1, store=store, timeouts=timeouts)


def ask(agent: Agent, **options: object) -> list[int]:
    generation = agent.generate(
        [1, 2, 3], max_tokens=4, fixed=Fixed(arm=Arm.SPLIT, s=1), privacy=Privacy.OPEN, codecs=(Codec.FP32,),
        ignore_eos=True, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    generation.result()
    return generation.token_ids


def test_each_device_works_for_its_tenant(shared: RunningCloud, model: Path, home: Path) -> None:
    with device(shared, model, home, LAB) as lab, device(shared, model, home, SHOP) as shop:
        assert ask(lab, conversation=lab.new_conversation()) == ask(shop, conversation=shop.new_conversation())
        assert sorted(status.tenant for status in shared.now(shared.server.table.status)) == ["lab", "shop"]
        owners = {
            stream.owner.tenant: stream.owner.weight for stream in shared.now(lambda: shared.server.table.streams)
        }
        assert owners == {"lab": 2.5, "shop": 1.0}
    shared.until(lambda: len(shared.server.table) == 0)


@pytest.mark.parametrize("code", [STRANGER, None])
def test_who_has_no_tenants_code_is_refused_like_any_stranger(
    shared: RunningCloud, model: Path, home: Path, code: PairingCode | None
) -> None:
    with device(shared, model, home, code) as agent, pytest.raises(SecurityError, match="secure channel failed"):
        agent.link()
    assert len(shared.server.table) == 0


def test_a_tenant_at_its_limit_is_told_and_others_are_served(shared: RunningCloud, model: Path, home: Path) -> None:
    hasty = Timeouts(connect_s=20.0, silence_s=20.0, step_s=60.0, busy_s=0.0)
    with device(shared, model, home, LAB, hasty) as lab, device(shared, model, home, SHOP) as shop:
        talks = [lab.new_conversation() for _ in range(3)]
        for talk in talks[:2]:
            ask(lab, conversation=talk)
        with pytest.raises(Overloaded, match="one tenant") as error:
            ask(lab, conversation=talks[2])
        assert error.value.retry_after_s is not None
        assert len(ask(shop)) == 4
        lab.end_conversation(talks[0])
        shared.until(lambda: len(shared.server.table) == 1)
        assert len(ask(lab, conversation=talks[2])) == 4


def test_one_pairing_and_tenants_do_not_go_together(model: Path, tenants_file: Path) -> None:
    with pytest.raises(InputError, match="not both"):
        CloudSettings(model=str(model), psk=bytes(32), tenants_file=tenants_file)
