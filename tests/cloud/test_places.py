"""Places: one peer cannot have them all, this machine can, and every way out gives a place back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest

from splitglm_cloud.gateway.places import Places, peer_of
from splitglm_core.errors import Overloaded
from splitglm_security.admission import peer_name


def take(places: Places, peer: str, count: int) -> ExitStack:
    """Up to ``count`` places of ``peer``."""
    stack = ExitStack()
    for _ in range(count):
        try:
            stack.enter_context(places.taken_by(peer))
        except Overloaded as error:
            assert error.retry_after_s is not None and error.retry_after_s > 0
    return stack


def test_one_peer_cannot_have_every_place() -> None:
    places = Places(total=10, per_peer=3, what="streams")
    with take(places, "10.0.0.1", 100):
        assert places.taken == 3
        with take(places, "10.0.0.2", 2):
            assert places.taken == 5
    assert places.taken == 0 and not places._of_peer


@pytest.mark.parametrize(
    "address",
    ["ipv4:127.0.0.1:5000", "ipv4:127.9.9.9:1", "ipv6:%5B::1%5D:5000", "ipv6:%5B::ffff:127.0.0.1%5D:1", "unix:"],
)
def test_devices_on_this_machine_share_a_name_and_may_have_every_place(address: str) -> None:
    places = Places(total=10, per_peer=3, what="streams")
    with take(places, peer_of(address), 100):
        assert places.taken == 10
        with pytest.raises(Overloaded), places.taken_by("10.0.0.1"):
            pass
        assert places.taken == 10


@pytest.mark.parametrize("address", ["ipv4:10.0.0.1:5000", "ipv6:%5B2001:db8::1%5D:1", "ipv6:%5Bfe80::1%25eth0%5D:1"])
def test_devices_elsewhere_may_not(address: str) -> None:
    places = Places(total=10, per_peer=3, what="streams")
    with take(places, peer_of(address), 100):
        assert places.taken == 3


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("ipv4:10.1.2.3:5000", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:9%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2::1%5D:6000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:5000", "10.1.2.3"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
    ],
)
def test_a_peers_ports_and_addresses_in_one_network_are_one_peer(address: str, peer: str) -> None:
    assert peer_of(address) == peer
    assert peer_name(peer) == peer  # so that admission counts it alike


def test_an_error_inside_gives_the_place_back() -> None:
    places = Places(total=1, per_peer=1, what="streams")
    for _ in range(3):
        with pytest.raises(KeyError), places.taken_by("10.0.0.1"):
            raise KeyError
    assert places.taken == 0


@pytest.mark.parametrize(("host", "peer"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "::/64")])
def test_peers_are_named_from_what_grpc_really_says(host: str, peer: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        handler = grpc.unary_unary_rpc_method_handler(lambda request, context: context.peer().encode())
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Peer": handler}),))
        try:
            port = server.add_insecure_port(f"{host}:0")
        except RuntimeError:
            pytest.skip(f"this machine has no {host}")
        server.start()
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            said = channel.unary_unary("/test/Peer")(b"", timeout=10).decode()
        server.stop(None).wait()
    assert said.startswith("ipv") and peer_of(said) == peer
