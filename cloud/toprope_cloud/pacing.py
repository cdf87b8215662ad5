"""Token buckets: how long to wait before so many bytes and messages may go. Pure: the caller gives the time and waits.

What is taken is reserved at once, so whoever asks first goes first, and the sum holds however many ask.
"""

from __future__ import annotations

BURST_S = 0.2


class TokenBucket:
    """So many units a second, and a burst of so many at once.

    Args:
        rate: units a second; 0 is no limit.
        burst: units that may go at once after a pause.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    @classmethod
    def below(cls, limit: float, least_burst: float, now: float) -> TokenBucket:
        """Return a bucket that lets at most `limit` units go in any one second, bursts included; 0 is no limit."""
        burst = max(least_burst, limit * BURST_S)
        return cls(max(limit - burst, limit * BURST_S), burst, now)

    def take(self, amount: float, now: float) -> float:
        """Reserve `amount` and return the seconds after which it may go."""
        if not self._rate:
            return 0.0
        self._refill(now)
        self._tokens -= amount
        return max(0.0, -self._tokens / self._rate)

    def set_rate(self, rate: float, now: float) -> None:
        """Go on with another rate; what is reserved stays reserved."""
        if self._rate:
            self._refill(now)
        else:
            self._tokens = self._burst
        self._rate, self._at = rate, now

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now


class Pace:
    """Bytes and messages together: what may go must fit both.

    Args:
        bytes_per_s, messages_per_s: limits in any one second; 0 is none.
        largest: bytes of the largest message; it must go even when it is more than a burst.
    """

    def __init__(self, bytes_per_s: float, messages_per_s: float, largest: int, now: float) -> None:
        self._bytes = TokenBucket.below(bytes_per_s, largest, now)
        self._messages = TokenBucket.below(messages_per_s, 1, now)

    def take(self, size: int, now: float) -> float:
        """Reserve one message of `size` bytes and return the seconds after which it may go."""
        return max(self._bytes.take(size, now), self._messages.take(1, now))
