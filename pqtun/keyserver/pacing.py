"""How fast a download asks: round-trip times and a model of the path's rate.

Requests and answers are equally long, so one number, datagrams a second, describes both directions. The model is BBR's
(draft-cardwell-iccrg-bbr-congestion-control-00, draft-cheng-iccrg-delivery-rate-estimation-00) without ProbeRTT: it
follows how fast answers arrive and how long an unqueued round trip takes, so it neither takes random loss for
congestion nor fills the queue of a slow line. Pure: the clock is an argument everywhere.
"""

from collections import deque

from pqtun.keyserver.limits import (
    BATCH_TIME,
    CYCLE_GAINS,
    FULL_PIPE_GROWTH,
    FULL_PIPE_ROUNDS,
    GRANULARITY,
    INITIAL_TIMEOUT,
    INITIAL_WINDOW,
    JITTER_DEVIATIONS,
    MAX_TIMEOUT,
    MAX_WINDOW,
    MIN_INTERVAL,
    MIN_TIMEOUT,
    MIN_WINDOW,
    PACING_BURST,
    PACING_BURST_MIN,
    QUEUE_MAX,
    QUEUE_MIN,
    QUEUE_SAMPLES,
    QUEUE_SHARE,
    RATE_ROUNDS,
    STARTUP_GAIN,
    WINDOW_GAIN,
)


class RoundTrip:
    """Round-trip time estimation of RFC 6298, with the minimum and the latest sample. All in seconds."""

    __slots__ = ("latest", "minimum", "smoothed", "variation")

    def __init__(self) -> None:
        self.smoothed = 0.0
        self.variation = 0.0
        self.latest = 0.0
        # Of the whole download, which lasts seconds: a path that becomes longer on the way only slows it down.
        self.minimum = float("inf")

    @property
    def known(self) -> bool:
        """Whether there was a sample yet."""
        return self.minimum != float("inf")

    def sample(self, rtt: float) -> None:
        """Takes one round trip of an unambiguous request (Karn's rule is the caller's). RFC 6298, 2.2 and 2.3."""
        if self.known:
            self.variation += (abs(self.smoothed - rtt) - self.variation) / 4
            self.smoothed += (rtt - self.smoothed) / 8
        else:
            self.smoothed, self.variation = rtt, rtt / 2
        self.latest = rtt
        self.minimum = min(self.minimum, rtt)

    def timeout(self, backoff: int) -> float:
        """Seconds without an answer after which to probe, doubled `backoff` times. RFC 6298, 2.3 and 5.5."""
        if not self.known:
            base = INITIAL_TIMEOUT
        else:
            base = max(self.smoothed + max(4 * self.variation, GRANULARITY), MIN_TIMEOUT)
        return float(min(base * 2 ** min(backoff, 10), MAX_TIMEOUT))


class Snapshot:
    """What the rate estimation must remember of each request that was sent."""

    __slots__ = ("delivered", "delivered_at", "first_sent_at", "limited", "sent_at")

    def __init__(
        self, sent_at: float, first_sent_at: float, delivered: int, delivered_at: float, limited: bool
    ) -> None:
        self.sent_at = sent_at
        self.first_sent_at = first_sent_at
        self.delivered = delivered
        self.delivered_at = delivered_at
        self.limited = limited


class Pacer:
    """Says how many datagrams may be sent now. `window` counts datagrams in flight, `rate` is in datagrams a second."""

    def __init__(self, now: float) -> None:
        self.window = float(INITIAL_WINDOW)
        self.round_trip = RoundTrip()
        self._delivered = 0
        self._delivered_at = now
        self._first_sent_at = now
        self._credit = float(INITIAL_WINDOW)
        self._credit_at = now
        self._rates: deque[tuple[int, float]] = deque()
        self._restart(now)

    def _restart(self, now: float) -> None:
        self._rates.clear()
        self._round = 0
        self._round_ends = 0
        self._round_least = float("inf")
        self._round_samples = 0
        self._full_rate = 0.0
        self._full_rounds = 0
        self._pipe_full = False
        self._draining = False
        self._cycle = 0
        self._cycle_at = now

    @property
    def rate(self) -> float:
        """Highest recent delivery rate; 0 as long as it is unknown."""
        return self._rates[0][1] if self._rates else 0.0

    @property
    def in_startup(self) -> bool:
        """Whether the rate is still being doubled."""
        return not self._pipe_full

    def _pacing_rate(self) -> float:
        if not self._pipe_full:
            gain = STARTUP_GAIN
        elif self._draining:
            gain = 1 / STARTUP_GAIN
        else:
            gain = CYCLE_GAINS[self._cycle]
        # Never slower than the least window: one bad estimate must not silence the download.
        return max(self.rate * gain, MIN_WINDOW / self.round_trip.smoothed)

    def allowance(self, in_flight: int, now: float) -> int:
        """Datagrams that may be sent now, with `in_flight` still unanswered."""
        room = int(self.window) - in_flight
        if room <= 0 or not self._rates:
            return max(room, 0)
        rate = self._pacing_rate()
        burst = max(PACING_BURST_MIN, rate * PACING_BURST)
        self._credit = min(burst, self._credit + max(now - self._credit_at, 0.0) * rate)
        self._credit_at = now
        return min(room, int(self._credit))

    def next_send(self, in_flight: int) -> float | None:
        """When the pacing allows the next datagram; None while the window is shut (an answer or a timeout opens it)."""
        if in_flight >= int(self.window):
            return None
        if not self._rates:
            return self._credit_at
        # A hair later than exact, lest rounding makes the timer find a credit of 0.9999.
        return self._credit_at + max(1.0 - self._credit, 0.0) / self._pacing_rate() + 1e-6

    def sent(self, in_flight: int, limited: bool, now: float) -> Snapshot:
        """Notes a datagram sent. `in_flight` counts those before it; `limited`: there is less to send than allowed."""
        if in_flight == 0:
            self._first_sent_at = self._delivered_at = now
        self._credit -= 1.0
        return Snapshot(now, self._first_sent_at, self._delivered, self._delivered_at, limited)

    def measured(self, rtt: float) -> None:
        """Takes one round trip of an unambiguous request, before answered()."""
        rtt = max(rtt, MIN_INTERVAL)
        self.round_trip.sample(rtt)
        self._round_least = min(self._round_least, rtt)
        self._round_samples += 1

    def answered(self, snapshot: Snapshot | None, in_flight: int, now: float) -> None:
        """Notes one answer; `snapshot` is None where nobody can tell which request it answers."""
        self._delivered += 1
        self._delivered_at = now
        if snapshot is None:
            return
        self._first_sent_at = snapshot.sent_at
        round_start = snapshot.delivered >= self._round_ends
        queued = self._round_samples >= QUEUE_SAMPLES and self._queued(self._round_least)
        if round_start:
            self._end_round(queued)
        interval = max(now - snapshot.delivered_at, snapshot.sent_at - snapshot.first_sent_at)
        # Shorter than a round trip: answers that queued somewhere and came at once, no statement about the rate.
        if interval >= max(self.round_trip.minimum, MIN_INTERVAL):
            rate = (self._delivered - snapshot.delivered) / interval
            if not snapshot.limited or 0 < self.rate < rate:
                self._take_rate(rate)
        if round_start:
            self._check_full_pipe(snapshot.limited, queued)
        if self._pipe_full:
            self._step_cycle(in_flight, now)
        self._set_window()

    def _end_round(self, queued: bool) -> None:
        if queued:
            # The path was full all the time, so this round showed what it carries; what earlier ones did (through a
            # token bucket's burst, for example) is no promise.
            while len(self._rates) > 1 and self._rates[0][0] < self._round:
                self._rates.popleft()
        self._round += 1
        self._round_ends = self._delivered
        self._round_least = float("inf")
        self._round_samples = 0

    def _take_rate(self, rate: float) -> None:
        rates = self._rates
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((self._round, rate))
        while rates[0][0] < self._round - RATE_ROUNDS:
            rates.popleft()

    def _check_full_pipe(self, limited: bool, queued: bool) -> None:
        if self._pipe_full or limited or not self._rates:
            return
        if self.rate >= self._full_rate * FULL_PIPE_GROWTH:
            self._full_rate = self.rate
            self._full_rounds = 0
            return
        self._full_rounds += 1
        if self._full_rounds >= FULL_PIPE_ROUNDS or queued:
            self._pipe_full = self._draining = True

    def _queued(self, rtt: float) -> bool:
        """Whether a round trip of this length says that it waited in a queue."""
        least, jitter = self.round_trip.minimum, JITTER_DEVIATIONS * self.round_trip.variation
        return least + min(max(least * QUEUE_SHARE, QUEUE_MIN), QUEUE_MAX) + jitter < rtt < float("inf")

    def _step_cycle(self, in_flight: int, now: float) -> None:
        if self._draining:
            if in_flight <= self._path(1.0):
                self._draining = False
                self._cycle, self._cycle_at = 2, now
        elif now - self._cycle_at >= max(self.round_trip.minimum, BATCH_TIME):
            self._cycle = (self._cycle + 1) % len(CYCLE_GAINS)
            self._cycle_at = now

    def _path(self, gain: float) -> float:
        """Datagrams that the path holds, times gain, and never less than the window needs to live."""
        held = self.rate * max(self.round_trip.minimum, BATCH_TIME)
        if self._pipe_full:
            recent = next((rate for number, rate in self._rates if number >= self._round - 1), 0.0)
            held += recent * JITTER_DEVIATIONS * self.round_trip.variation
        return max(gain * held, float(MIN_WINDOW))

    def _set_window(self) -> None:
        if not self._rates:
            return
        target = self._path(WINDOW_GAIN if self._pipe_full else STARTUP_GAIN)
        if self._pipe_full:
            self.window = min(self.window + 1, target, MAX_WINDOW)
        elif self.window < target and not self._queued(self.round_trip.latest):
            self.window = min(self.window + 1, MAX_WINDOW)

    def congested(self, now: float) -> None:
        """Nothing came back for several timeouts: forget what the path could do and begin with the least window."""
        self._restart(now)
        self._first_sent_at = self._delivered_at = now
        self.window = float(MIN_WINDOW)
        self._credit, self._credit_at = float(MIN_WINDOW), now
