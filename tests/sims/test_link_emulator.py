"""The emulator's faults, counters and endings, on real sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from splitglm_core.errors import DeviceError, InputError
from splitglm_sims.link_emulator import LinkEmulator, main, run_in_thread
from splitglm_sims.shaper import Direction, LinkShape

CLEAR = LinkShape()
SOON_S = 5.0  # for what must happen
QUIET_S = 0.15  # for what must not


async def open_client(link: LinkEmulator) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", link.port)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), SOON_S)


def open_descriptors() -> int:
    listing = Path("/proc/self/fd")
    return len(list(listing.iterdir())) if listing.exists() else 0


def accepted(link: LinkEmulator, connections: int) -> bool:
    return link.counters.connections_accepted == connections


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.002)


async def test_bytes_pass_unchanged_both_ways_and_are_counted_and_tapped(echo_port: int) -> None:
    seen: list[tuple[Direction, int, bytes]] = []
    link = LinkEmulator("127.0.0.1", echo_port, CLEAR, CLEAR, tap=lambda *what: seen.append(what))
    data = os.urandom(200_000)
    async with link:
        reader, writer = await open_client(link)
        assert await echo(reader, writer, data) == data
        assert link.counters.connections_open == 1
        writer.close()
        await until(lambda: link.counters.connections_open == 0)
        counters = link.counters
    assert counters.up_entered_bytes == counters.up_delivered_bytes == len(data)
    assert counters.down_entered_bytes == counters.down_delivered_bytes == len(data)
    assert (counters.connections_accepted, counters.connections_reset) == (1, 0)
    for direction in Direction:
        assert b"".join(piece for way, number, piece in seen if way is direction and number == 0) == data


async def test_an_end_of_stream_passes_as_one_and_the_other_direction_goes_on(echo_port: int) -> None:
    async with LinkEmulator("127.0.0.1", echo_port, LinkShape(delay_s=0.01), CLEAR) as link:
        reader, writer = await open_client(link)
        writer.write(b"last words")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), SOON_S) == b"last words"
        writer.close()


async def test_a_pause_holds_everything_back_and_a_resume_loses_nothing(echo_port: int) -> None:
    async with LinkEmulator("127.0.0.1", echo_port, CLEAR, CLEAR) as link:
        reader, writer = await open_client(link)
        await echo(reader, writer, b"before")
        link.pause(Direction.DOWN)
        writer.write(b"during")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), QUIET_S)
        link.resume(Direction.DOWN)
        assert await asyncio.wait_for(reader.readexactly(6), SOON_S) == b"during"
        writer.close()


async def test_a_paused_direction_pushes_back_on_the_sender(echo_port: int) -> None:
    async with LinkEmulator("127.0.0.1", echo_port, CLEAR, CLEAR) as link:
        reader, writer = await open_client(link)
        await echo(reader, writer, b"x")
        link.pause(Direction.UP)
        with pytest.raises(TimeoutError):
            for _ in range(64):
                writer.write(bytes(2**20))
                await asyncio.wait_for(writer.drain(), QUIET_S)
        assert link.counters.up_entered_bytes < 2**20
        writer.transport.abort()
        del reader


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_blackhole_swallows_silently_and_ends_in_a_reset_when_it_heals(
    echo_port: int, direction: Direction
) -> None:
    async with LinkEmulator("127.0.0.1", echo_port, CLEAR, CLEAR) as link:
        reader, writer = await open_client(link)
        await echo(reader, writer, b"before")
        link.blackhole(direction)
        writer.write(b"lost")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), QUIET_S)
        assert link.counters.connections_open == 1
        link.blackhole(direction, on=False)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), SOON_S)
        writer.close()
        fresh_reader, fresh_writer = await open_client(link)
        assert await echo(fresh_reader, fresh_writer, b"after") == b"after"
        fresh_writer.close()


async def test_a_connection_that_lost_nothing_survives_a_blackhole(echo_port: int) -> None:
    async with LinkEmulator("127.0.0.1", echo_port, CLEAR, CLEAR) as link:
        reader, writer = await open_client(link)
        await echo(reader, writer, b"before")
        link.blackhole(Direction.UP)
        link.blackhole(Direction.UP, on=False)
        assert await echo(reader, writer, b"after") == b"after"
        writer.close()


async def test_a_server_never_hears_that_its_client_left_through_a_blackhole() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        try:
            await reader.read()
        except OSError:
            pass
        ended.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, LinkEmulator("127.0.0.1", server.sockets[0].getsockname()[1], CLEAR, CLEAR) as link:
        reader, writer = await open_client(link)
        await reader.readexactly(5)
        link.blackhole(Direction.UP)
        writer.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ended.wait(), QUIET_S)
        link.blackhole(Direction.UP, on=False)
        await asyncio.wait_for(ended.wait(), SOON_S)


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
async def test_a_cut_delivers_exactly_that_many_bytes_and_then_resets(echo_port: int, size: int) -> None:
    async with LinkEmulator("127.0.0.1", echo_port, CLEAR, LinkShape(rate_bytes_per_s=12.5e6)) as link:
        reader, writer = await open_client(link)
        await echo(reader, writer, b"before")
        link.cut_after(Direction.DOWN, size)
        writer.write(bytes(200_000))
        assert len(await asyncio.wait_for(reader.readexactly(size), SOON_S)) == size
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), SOON_S)
        writer.close()
        await until(lambda: link.counters.connections_open == 0)
        assert link.counters.connections_reset == 1
        again_reader, again_writer = await open_client(link)  # the cut is spent
        assert await echo(again_reader, again_writer, b"after") == b"after"
        again_writer.close()


async def test_a_reset_of_all_reaches_every_client_and_the_server() -> None:
    broken = asyncio.Queue[str]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        try:
            await reader.read()
        except ConnectionResetError:
            broken.put_nowait("reset")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, LinkEmulator("127.0.0.1", server.sockets[0].getsockname()[1], CLEAR, CLEAR) as link:
        clients = [await open_client(link) for _ in range(3)]
        for reader, _ in clients:
            await reader.readexactly(5)
        link.reset_all()
        for reader, writer in clients:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), SOON_S)
            writer.close()
        assert [await asyncio.wait_for(broken.get(), SOON_S) for _ in clients] == ["reset"] * 3
        assert link.counters.connections_reset == 3


async def test_an_upstream_that_refuses_is_seen_as_a_broken_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with LinkEmulator("127.0.0.1", unused.getsockname()[1], CLEAR, CLEAR) as link:
            reader, writer = await open_client(link)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), SOON_S)
            writer.close()


async def test_a_client_that_sends_to_a_closed_server_is_told() -> None:
    """The server ends its direction, then dies; what the client goes on sending must not be taken for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with (
        server,
        LinkEmulator("127.0.0.1", server.sockets[0].getsockname()[1], CLEAR, LinkShape(delay_s=0.02)) as link,
    ):
        reader, writer = await open_client(link)
        assert await asyncio.wait_for(reader.read(), SOON_S) == b"bye"
        with pytest.raises(OSError):  # reset or broken pipe, as the kernel sees it
            async with asyncio.timeout(SOON_S):
                while True:
                    writer.write(b"are you there?")
                    await writer.drain()
                    await asyncio.sleep(0.005)
        writer.close()


async def test_a_new_shape_holds_for_what_is_sent_from_then_on(echo_port: int) -> None:
    loop = asyncio.get_running_loop()
    async with LinkEmulator("127.0.0.1", echo_port, CLEAR, CLEAR) as link:
        reader, writer = await open_client(link)
        await echo(reader, writer, b"warm")
        link.set_shape(Direction.UP, LinkShape(delay_s=0.05))
        start = loop.time()
        await echo(reader, writer, b"slow")
        assert loop.time() - start >= 0.049
        writer.close()


async def test_leaving_closes_every_socket_and_ends_every_task(echo_port: int) -> None:
    tasks_before = len(asyncio.all_tasks())
    descriptors_before = open_descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        clients = []
        async with LinkEmulator("127.0.0.1", echo_port, LinkShape(delay_s=1.0), CLEAR) as link:
            for _ in range(5):
                clients.append(await open_client(link))
                clients[-1][1].write(b"on its way")
            await until(partial(accepted, link, 5))
        for reader, writer in clients:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), SOON_S)
            writer.close()
        gc.collect()
        await until(lambda: len(asyncio.all_tasks()) == tasks_before and open_descriptors() <= descriptors_before)


def test_the_thread_wrapper_takes_faults_from_sync_code_and_stops(threaded_echo_port: int) -> None:
    with run_in_thread(LinkEmulator("127.0.0.1", threaded_echo_port, CLEAR, CLEAR)) as link:
        with socket.create_connection(("127.0.0.1", link.port), timeout=SOON_S) as client:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"
            link.reset_all()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        port = link.port
    assert "splitglm-emulator" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=SOON_S)
    with pytest.raises(InputError, match="not running"):
        link.reset_all()


def test_a_port_in_use_is_reported_in_the_callers_thread(threaded_echo_port: int) -> None:
    with (
        pytest.raises(DeviceError, match="cannot listen"),
        run_in_thread(LinkEmulator("127.0.0.1", 1, CLEAR, CLEAR, port=threaded_echo_port)),
    ):
        pass


def test_the_command_serves_until_it_is_interrupted(threaded_echo_port: int) -> None:
    command = [sys.executable, "-m", "splitglm_sims.link_emulator"]
    options = ["--upstream", f"127.0.0.1:{threaded_echo_port}", "--rtt-ms", "10", "--mbit", "10"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.split("127.0.0.1:")[1].split(";")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=SOON_S) as client:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SOON_S)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "options",
    [
        ["--upstream", "nonsense"],
        ["--upstream", "host:99999"],
        ["--upstream", "127.0.0.1:1", "--mbit", "-3"],
        ["--upstream", "127.0.0.1:1", "--up-trace", "no-such-file"],
    ],
)
def test_a_wrong_option_is_one_line_and_a_code_not_a_traceback(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 64
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "your input" in errors
