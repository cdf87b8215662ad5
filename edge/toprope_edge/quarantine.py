"""When a model that hangs again and again is kept from running. Pure: no clock, no threads."""

from __future__ import annotations

from collections import defaultdict, deque

STRIKES = 3
WINDOW_S = 600.0


class Quarantine:
    """Counts each model's hung calls of the last `window_s` seconds.

    Args:
        strikes: hung calls within the window after which a model is quarantined.
        window_s: seconds for which a hung call counts.
    """

    def __init__(self, strikes: int = STRIKES, window_s: float = WINDOW_S) -> None:
        self.strikes = strikes
        self.window_s = window_s
        self._hung: defaultdict[str, deque[float]] = defaultdict(deque)

    def strike(self, model: str, now: float) -> bool:
        """Take a hung call in and say whether the model has had as many as it may."""
        hung = self._hung[model]
        hung.append(now)
        while hung[0] <= now - self.window_s:
            hung.popleft()
        return len(hung) >= self.strikes

    def release(self, model: str) -> None:
        """Forget a model's hung calls."""
        self._hung.pop(model, None)
