"""The agent's relation to its cloud: one link at a time, made when needed, and asked about itself when that is wanted.

Here is the I/O only: what exchanges show is told to the agent's ``Advice``, which also says when to ask.
"""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from splitglm_core.errors import InputError, LinkError, ProtocolError, SplitGlmError
from splitglm_edge.advice import Listener
from splitglm_edge.link import CloudLink
from splitglm_edge.timeouts import Timeouts
from splitglm_edge.watching import StepWatch, Traffic
from splitglm_partitioner.link_estimator import PROBE_BYTES, Probing
from splitglm_partitioner.observations import CloudHint, Direction, RoundTrip, Transfer
from splitglm_partitioner.profiles import CloudProfile
from splitglm_partitioner.round_trips import MIN_REST_S
from splitglm_security.keys import parse_public_key
from splitglm_security.trust import PinStore, Trust, TrustPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudAddress:
    """Where the cloud is and whom to expect there.

    Attributes:
        address: ``host:port``.
        key: the expected identity key as text (``sglm1…``); None uses the pins.
        trust_on_first_use: accept and pin an unknown key instead of refusing it.
        psk: 32 bytes of a pairing.
        pins: file of pinned keys; None is the user's own.
    """

    address: str
    key: str | None = None
    trust_on_first_use: bool = False
    psk: bytes | None = None
    pins: Path | None = None

    def trust(self) -> Trust:
        policy = TrustPolicy.TRUST_ON_FIRST_USE if self.trust_on_first_use else TrustPolicy.PINNED
        explicit = parse_public_key(self.key) if self.key else None
        return Trust(PinStore(self.pins or default_pins()), policy, explicit_key=explicit)


def default_pins() -> Path:
    return Path(platformdirs.user_config_dir("splitglm", appauthor=False)) / "pins.json"


class CloudConnection:
    """Connects on demand, probes the link, and connects anew when the link is gone. Thread-safe."""

    def __init__(
        self, where: CloudAddress, fingerprint: bytes, advice: Listener, *, timeouts: Timeouts | None = None
    ) -> None:
        self._where = where
        self._fingerprint = fingerprint
        self.timeouts = timeouts or Timeouts()
        self._trust = where.trust()
        self._lock = threading.Lock()
        self._link: CloudLink | None = None
        self._retired: list[CloudLink] = []  # draining: sessions on them may still be answered
        self._refused: tuple[float, LinkError] | None = None
        self._closed = False
        self._asking = threading.Lock()
        self._question: Future[SplitGlmError | None] | None = None  # that is being put now
        self._advice = advice
        self._traffic = Traffic()
        self._max_context = 0

    @property
    def address(self) -> str:
        return self._where.address

    def link(self) -> CloudLink:
        """The open link, or a new one. Right after an attempt that took long to fail, fails at once.

        Raises:
            LinkError and what ``CloudLink.connect`` raises.
        """
        with self._lock:
            if self._closed:
                raise LinkError("the agent is closed", "open another one")
            link = self._link
            if link is not None and link.error is None and not link.draining:
                return link
            self._retire()
            self._link = self._connect()
            return self._link

    def _connect(self) -> CloudLink:
        started_s = time.monotonic()
        if self._refused is not None and started_s < self._refused[0]:
            raise copy.copy(self._refused[1])
        timeout_s = self.timeouts.connect_s
        if self._max_context:
            # It was there before: a handshake takes three round trips, and whoever waits has other choices.
            timeout_s = min(timeout_s, max(self.timeouts.silence_s, 12 * self._advice.link().rtt_s))
        try:
            link = CloudLink.connect(
                self._where.address,
                fingerprint=self._fingerprint,
                trust=self._trust,
                psk=self._where.psk,
                timeout_s=timeout_s,
            )
        except LinkError as error:
            # At most half of anybody's time is spent on a cloud that is not there.
            now_s = time.monotonic()
            # A copy: the error that is raised holds the frames of all who see it.
            self._refused = (2 * now_s - started_s, copy.copy(error))
            raise
        try:
            self._learn(link)
        except BaseException:
            link.close()
            raise
        self._refused = None
        return link

    def _retire(self) -> None:
        """Put the present link away; close those that nobody can use any more."""
        if self._link is not None:
            self._retired.append(self._link)
            self._link = None
        for link in [link for link in self._retired if link.error is not None]:
            self._retired.remove(link)
            link.close()

    def busy_until_s(self) -> float | None:
        """When the steps that may be on their way will have left this device, as estimated; None when there are none.

        On the clock of what is observed. The newest of them may have left, so it may be past.
        """
        return self._traffic.leaves_s(self._advice.link().uplink_bytes_per_s)

    def probe(self, wanted: Probing) -> None:
        """Ask the link what is wanted to be known of it; connects when there is no link.

        One question is put at a time: of two, each would find a link of half the rate. Who comes while another one asks
        gets that one's answer. Nothing is asked behind an upload of our own: it would be the time of that, which is
        known.

        Raises:
            LinkError and what ``link`` raises.
        """
        if wanted is Probing.NONE:
            return
        with self._asking:
            other, mine = self._question, Future[SplitGlmError | None]()
            if other is None:
                self._question = mine
        if other is not None:
            error = other.result()
            if error is not None:
                raise copy.copy(error)
            return
        told: SplitGlmError | None = None
        try:
            self._probe(wanted)
        except SplitGlmError as error:
            told = copy.copy(error)  # a copy: the error that is raised holds the frames of all who see it
            raise
        finally:
            with self._asking:
                self._question = None
            mine.set_result(told)

    def _probe(self, wanted: Probing) -> None:
        link = self.link()
        busy_s = self.busy_until_s()
        if busy_s is not None and busy_s > self._advice.now_s():
            return
        try:
            self._ask(link, wanted)
        except LinkError:
            if link.error is None:
                raise
            self._ask(self.link(), wanted)  # that it died unnoticed since it was last used says nothing about now

    def watch(self) -> StepWatch:
        """Learns from a session's steps and their answers."""
        advice = self._advice
        return StepWatch(advice.observe, advice.link, lambda: advice.profile, self._traffic)

    def _ask(self, link: CloudLink, wanted: Probing) -> None:
        idle_s = link.idle_s()
        rtt_s = self._round_trip(link, idle_s)
        if idle_s >= MIN_REST_S:
            rtt_s = self._round_trip(link, 0.0)  # the first one may have had to wake a radio
        if wanted is Probing.RATES:
            for direction, sizes in ((Direction.UP, (PROBE_BYTES, 0)), (Direction.DOWN, (0, PROBE_BYTES))):
                seconds = self._ping(link, *sizes)
                self._advice.observe(
                    Transfer(
                        at_s=self._advice.now_s(),
                        direction=direction,
                        transfer_bytes=PROBE_BYTES,
                        seconds=max(1e-6, seconds - rtt_s),
                    )
                )
        now = self._advice.link()
        link.liveness.uplink_bytes_per_s = now.uplink_bytes_per_s
        link.liveness.downlink_bytes_per_s = now.downlink_bytes_per_s

    def _round_trip(self, link: CloudLink, idle_s: float) -> float:
        seconds = self._ping(link)
        self._advice.observe(RoundTrip(at_s=self._advice.now_s(), seconds=seconds, idle_s=idle_s))
        return seconds

    def _ping(self, link: CloudLink, size: int = 0, reply_size: int = 0) -> float:
        """Seconds to the answer. Bytes on a link of unknown rate take their time: that is no silence."""
        silence_s = None if size or reply_size else self.timeouts.silence_s
        seconds = link.ping(size=size, reply_size=reply_size, timeout_s=self.timeouts.connect_s, silence_s=silence_s)
        self._tell_load(link)
        return seconds

    def _tell_load(self, link: CloudLink) -> None:
        """What the cloud just said of its load, in the answer to a ping."""
        told = link.load
        if told is not None:
            self._advice.observe(
                CloudHint(
                    at_s=self._advice.now_s(),
                    queue_s=1e-6 * told.queue_us,
                    sweep_s=1e-6 * told.sweep_us,
                    slowdown=1e-3 * told.slowdown_permille,
                )
            )

    @property
    def max_context(self) -> int:
        """Most positions of a session, as of the newest handshake; 0 before the first."""
        return self._max_context

    def close(self) -> None:
        """End every link; nothing connects any more."""
        with self._lock:
            self._closed = True
            links = [*self._retired, *([] if self._link is None else [self._link])]
            self._retired, self._link = [], None
        for link in links:
            link.close()

    def _learn(self, link: CloudLink) -> None:
        try:
            profile = CloudProfile.from_json(link.manifest.profile)
        except InputError as error:
            raise ProtocolError("the cloud's profile is malformed", "use the same release on both sides") from error
        first = not self._max_context
        self._max_context = link.manifest.max_context
        link.ping()  # the first exchange proves to the cloud that this handshake is alive
        self._advice.connected(profile)
        if first:  # nothing is known of a link that nobody has seen; of any other, what matters is asked for later
            self._round_trip(link, 0.0)
        self._ask(link, Probing.RATES if first else Probing.ROUND_TRIP)
