"""The agent's relation to its cloud: one link at a time, made when needed, and what is known about it."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from splitglm_core.errors import InputError, LinkError, ProtocolError
from splitglm_edge.link import CloudLink
from splitglm_edge.timeouts import Timeouts
from splitglm_partitioner.link_estimator import FRESH_S, PROBE_BYTES, LinkEstimator
from splitglm_partitioner.observations import Direction, RoundTrip, Transfer
from splitglm_partitioner.profiles import CloudProfile, LinkEstimate
from splitglm_partitioner.rates import MAX_AGE_S
from splitglm_partitioner.round_trips import RTT_ALPHA
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

    def __init__(self, where: CloudAddress, fingerprint: bytes, *, timeouts: Timeouts | None = None) -> None:
        self._where = where
        self._fingerprint = fingerprint
        self.timeouts = timeouts or Timeouts()
        self._trust = where.trust()
        self._lock = threading.Lock()
        self._link: CloudLink | None = None
        self._retired: list[CloudLink] = []  # draining: sessions on them may still be answered
        self._refused: tuple[float, LinkError] | None = None
        self._closed = False
        self._estimator = LinkEstimator()
        self._profile: CloudProfile | None = None
        self._max_context = 0
        self._asked_s = float("-inf")  # when the round trip was last measured
        self._load_lock = threading.Lock()
        self._queue: tuple[float, float] | None = (
            None  # smoothed seconds that steps wait, and when it was last observed
        )

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
        if self._profile is not None:
            # It was there before: a handshake takes three round trips, and whoever waits has other choices.
            timeout_s = min(timeout_s, max(self.timeouts.silence_s, 12 * self._estimator.estimate(started_s).rtt_s))
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

    def estimate(self) -> LinkEstimate:
        """The link now; connects when there is no link yet. Asked at once only when it was not asked of late."""
        link = self.link()
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._asked_s < FRESH_S:
                return self._estimator.estimate(now_s)
        try:
            rtt_s = self._ping(link)
        except LinkError:
            if link.error is None:
                raise
            rtt_s = self._ping(self.link())  # that it died unnoticed since it was last used says nothing about now
        with self._lock:
            now_s = time.monotonic()
            self._estimator.observe(RoundTrip(at_s=now_s, seconds=rtt_s))
            self._asked_s = now_s
            return self._estimator.estimate(now_s)

    def _ping(self, link: CloudLink) -> float:
        return link.ping(timeout_s=self.timeouts.connect_s, silence_s=self.timeouts.silence_s)

    def profile(self) -> CloudProfile:
        """The cloud's own figures, as of the handshake; how long steps wait there, as ours did of late."""
        self.link()
        if self._profile is None:
            raise LinkError("the cloud has not told its profile")
        with self._load_lock:
            observed = self._queue
        if observed is None or time.monotonic() - observed[1] > MAX_AGE_S:
            return self._profile
        return replace(self._profile, queue_s=observed[0])

    @property
    def max_context(self) -> int:
        """Most positions of a session, as of the newest handshake; 0 before the first."""
        return self._max_context

    def observe_queue(self, seconds: float) -> None:
        """A step of ours waited that long in the cloud behind nothing of ours."""
        now_s = time.monotonic()
        with self._load_lock:
            before = self._queue
            if before is None or now_s - before[1] > MAX_AGE_S:
                self._queue = (seconds, now_s)
            else:
                self._queue = (before[0] + RTT_ALPHA * (seconds - before[0]), now_s)

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
            self._profile = CloudProfile.from_json(link.manifest.profile)
        except InputError as error:
            raise ProtocolError("the cloud's profile is malformed", "use the same release on both sides") from error
        self._max_context = link.manifest.max_context
        # The first exchange also proves to the cloud that this handshake is alive.
        link.ping()
        rtt_s = min(link.ping(), link.ping())
        now_s = self._asked_s = time.monotonic()
        self._estimator.observe(RoundTrip(at_s=now_s, seconds=rtt_s))
        for direction, seconds in (
            (Direction.UP, link.ping(size=PROBE_BYTES)),
            (Direction.DOWN, link.ping(reply_size=PROBE_BYTES)),
        ):
            moving_s = max(1e-6, seconds - rtt_s)
            self._estimator.observe(
                Transfer(at_s=now_s, direction=direction, transfer_bytes=PROBE_BYTES, seconds=moving_s)
            )
        estimate = self._estimator.estimate(now_s)
        link.liveness.uplink_bytes_per_s = estimate.uplink_bytes_per_s
        link.liveness.downlink_bytes_per_s = estimate.downlink_bytes_per_s
