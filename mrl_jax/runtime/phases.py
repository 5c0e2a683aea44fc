"""Where the time goes: seconds per phase, share of the total, time left."""

import contextlib
import time
from collections.abc import Iterator


class Phases:
    """Adds up wall-clock seconds by phase (start, compile, data, step, eval, checkpoint).

    Of work in the background, only the time that this process waits for it counts.

    Attributes:
      current: the phase in progress, "" between two.
      changed: when it began, or when the last one ended, in seconds of `time.monotonic`.
      longest_s: the longest time that reading a batch or a step has taken.
    """

    def __init__(self):
        self._begin = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._steps = 0
        self.current, self.changed = "", time.monotonic()
        self.longest_s = 0.0

    @property
    def steady(self) -> bool:
        """Whether two steps were done since the last phase other than "data" and "step"."""
        return self._steps >= 2

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts the time of the with-block under `name`. Phases do not nest."""
        begin = time.perf_counter()
        steps = name in ("data", "step")
        if not steps:
            self._steps = 0
        self.current, self.changed = name, time.monotonic()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
            if steps:
                self.longest_s = max(self.longest_s, spent)
            self._steps += name == "step"
            self.current, self.changed = "", time.monotonic()

    def shares(self) -> dict[str, float]:
        """Each phase's share of the time since the start; "other" is what no phase covered."""
        total = time.perf_counter() - self._begin
        shares = {name: seconds / total for name, seconds in self._seconds.items()}
        return {**shares, "other": max(0.0, 1.0 - sum(shares.values()))}

    def summary(self) -> str:
        """One line, e.g. "41.2 s: step 70 %, compile 20 %, data 10 %"."""
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
        return f"{time.perf_counter() - self._begin:.1f} s: {parts}"


class Rate:
    """Examples per second and time left, over the steps since the last reading."""

    def __init__(self, steps: int, batch_size: int, start: int):
        self._steps, self._batch_size = steps, batch_size
        self._first_step = self._last_step = start
        self._first_time = self._last_time = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the with-block (compiling, evaluating) does not slow the next reading."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._last_time += time.perf_counter() - begin

    def read(self, step: int) -> tuple[float, float]:
        """(examples per second since the last reading, seconds left until the last step)."""
        now = time.perf_counter()
        recent = max(now - self._last_time, 1e-9)
        speed = (step - self._last_step) * self._batch_size / recent
        per_step = (now - self._first_time) / max(step - self._first_step, 1)
        self._last_step, self._last_time = step, now
        return speed, per_step * (self._steps - step)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
