"""The emulator on real sockets: what is measured through it is what its shape says."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from splitglm_sims.link_emulator import LinkEmulator, run_in_thread
from splitglm_sims.shaper import LinkShape
from splitglm_sims.traces import RateTrace

MBIT = 1e6 / 8


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def receive(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = client.recv(min(65536, size - len(data)))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def round_trip_s(client: socket.socket, size: int) -> float:
    start = time.perf_counter()
    client.sendall(b"x" * size)
    receive(client, size)
    return time.perf_counter() - start


@pytest.mark.parametrize("rtt_ms", [0, 20, 80])
@pytest.mark.parametrize("mbit", [2, 10, 100])
def test_a_small_message_takes_the_round_trip_that_the_shape_states(
    threaded_echo_port: int, rtt_ms: float, mbit: float
) -> None:
    size = 600
    shape = LinkShape(delay_s=rtt_ms / 2e3, rate_bytes_per_s=mbit * MBIT)
    with (
        run_in_thread(LinkEmulator("127.0.0.1", threaded_echo_port, shape, shape)) as link,
        connect(link.port) as client,
    ):
        round_trip_s(client, 1)  # the handshake's round trip
        # The machine's own noise only adds: the best of several is the link's.
        best_s = min(round_trip_s(client, size) for _ in range(8))
    expected_s = rtt_ms / 1e3 + 2 * size / (mbit * MBIT)
    assert expected_s - 1.5e-3 <= best_s <= expected_s * 1.1 + 2e-3


def test_a_new_connection_pays_one_round_trip_for_its_handshake(threaded_echo_port: int) -> None:
    shape = LinkShape(delay_s=0.025)
    with run_in_thread(LinkEmulator("127.0.0.1", threaded_echo_port, shape, shape)) as link:
        start = time.perf_counter()
        with connect(link.port) as client:
            round_trip_s(client, 1)
        assert time.perf_counter() - start == pytest.approx(0.1, rel=0.1, abs=3e-3)


@pytest.mark.parametrize(
    ("up_mbit", "down_mbit", "size"), [(10, 100, 600_000), (100, 10, 600_000), (100, 100, 4_000_000)]
)
def test_a_large_transfer_runs_at_the_slower_direction_and_arrives_whole(
    threaded_echo_port: int, up_mbit: float, down_mbit: float, size: int
) -> None:
    up = LinkShape(delay_s=0.01, rate_bytes_per_s=up_mbit * MBIT, queue_bytes=256 * 1024)
    down = LinkShape(delay_s=0.01, rate_bytes_per_s=down_mbit * MBIT, queue_bytes=256 * 1024)
    payload = bytes(range(256)) * (size // 256)

    def measure() -> float:
        link = LinkEmulator("127.0.0.1", threaded_echo_port, up, down)
        with run_in_thread(link), connect(link.port) as client:
            round_trip_s(client, 1)
            sender = threading.Thread(target=client.sendall, args=(payload,))
            start = time.perf_counter()
            sender.start()
            echoed = receive(client, len(payload))
            took_s = time.perf_counter() - start
            sender.join()
        assert echoed == payload
        assert link.counters.up_entered_bytes == link.counters.down_delivered_bytes == len(payload) + 1
        return len(payload) / (took_s - 0.02)

    wanted = min(up_mbit, down_mbit) * MBIT
    measured = measure()
    for _ in range(3):  # a busy machine can only slow it down
        if measured >= 0.9 * wanted:
            break
        measured = max(measured, measure())
    assert 0.9 * wanted <= measured <= 1.1 * wanted


def test_connections_share_the_bottleneck_of_a_direction_fairly(threaded_echo_port: int) -> None:
    rate = 10 * MBIT
    up = LinkShape(rate_bytes_per_s=rate)
    size = 300_000
    ends: list[float] = []
    with run_in_thread(LinkEmulator("127.0.0.1", threaded_echo_port, up, LinkShape())) as link:

        def transfer(client: socket.socket) -> None:
            sender = threading.Thread(target=client.sendall, args=(bytes(size),))
            sender.start()
            receive(client, size)
            ends.append(time.perf_counter())
            sender.join()

        clients = [connect(link.port) for _ in range(2)]
        start = time.perf_counter()
        threads = [threading.Thread(target=transfer, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    first_s, last_s = sorted(end - start for end in ends)
    assert last_s == pytest.approx(2 * size / rate, rel=0.1, abs=2e-3)  # together they get the rate once
    assert first_s > 0.8 * last_s  # and neither waits for the other to finish


def test_a_small_reply_waits_for_the_queue_and_no_longer(threaded_echo_port: int) -> None:
    """A probe beside a saturating upload sees at most the queue, not the whole upload."""
    rate, queue = 10 * MBIT, 16_000
    up = LinkShape(rate_bytes_per_s=rate, queue_bytes=queue)
    with run_in_thread(LinkEmulator("127.0.0.1", threaded_echo_port, up, LinkShape())) as link:
        bulk, probe = connect(link.port), connect(link.port)
        round_trip_s(probe, 1)
        sender = threading.Thread(target=bulk.sendall, args=(bytes(600_000),))
        reader = threading.Thread(target=receive, args=(bulk, 600_000))
        reader.start()
        sender.start()
        while link.counters.up_entered_bytes < 50_000:
            time.sleep(0.005)  # until the upload holds the queue full
        probes = sorted(round_trip_s(probe, 100) for _ in range(5))
        sender.join()
        reader.join()
        bulk.close()
        probe.close()
    assert probes[2] < (queue + 2 * 1500) / rate + 6e-3
    assert probes[2] > 0.3 * queue / rate


def test_a_trace_drives_the_rate_over_time(threaded_echo_port: int) -> None:
    """Half a second at 4 Mbit/s, half a second of outage: 400 kB need one outage of waiting."""
    trace = RateTrace((0.0, 0.5), (4 * MBIT, 0.0), 1.0)
    size = 400_000
    with run_in_thread(
        LinkEmulator("127.0.0.1", threaded_echo_port, LinkShape(trace=trace), LinkShape(), handshake=False)
    ) as link:
        start = time.perf_counter()
        with connect(link.port) as client:
            sender = threading.Thread(target=client.sendall, args=(bytes(size),))
            sender.start()
            receive(client, size)
            took_s = time.perf_counter() - start
            sender.join()
    assert took_s == pytest.approx(trace.finish_s(0.0, size), rel=0.05)
    assert took_s > 1.0
