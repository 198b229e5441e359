"""How long a run still takes: each phase has its own rate, and the phases ahead are guessed from their work."""

import time
from collections.abc import Callable, Mapping

from curriculumdp.durations import duration

# A rate is the mean of this many steps, then follows a machine whose load changes.
SMOOTHED = 20


class TimeLeft:
    """The time left, told after every step.

    steps: the number of steps per phase, in order. work: images that the network sees per step and process; 0 for a
    phase without a network. A phase's first step here is not timed: it builds, compiles or captures what the others
    use. What is ahead takes as long per image as the last network's step did: a guess, and said to be one.
    """

    def __init__(
        self,
        steps: Mapping[str, int],
        work: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._work, self._clock = dict(steps), dict(work), clock
        self._phase, self._at, self._timed, self._rate = "", 0.0, 0, 0.0
        self._per_image: float | None = None

    def step(self, phase: str) -> None:
        """Note that a step of `phase` is done now."""
        now = self._clock()
        if phase != self._phase:
            self._phase, self._timed, self._rate = phase, 0, 0.0
        else:
            self._timed += 1
            self._rate += (now - self._at - self._rate) * max(1 / self._timed, 1 / SMOOTHED)
            if self._work.get(phase):
                self._per_image = self._rate / self._work[phase]
        self._at = now

    def of_phase(self, done: int) -> float | None:
        """Return the seconds left in the current phase, `done` of whose steps are done; None if nobody knows yet."""
        left = self._steps[self._phase] - done
        if self._timed:
            return left * self._rate
        guess = self._guess(self._phase)
        return 0.0 if left == 0 else None if guess is None else left * guess

    def of_run(self, done: int) -> float | None:
        """Return the seconds left in this phase and those ahead; None as long as a phase has nothing to go by."""
        names = list(self._steps)
        parts = [self.of_phase(done)]
        for name in names[names.index(self._phase) + 1 :]:
            guess = self._guess(name)
            parts.append(None if guess is None else self._steps[name] * guess)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def _guess(self, phase: str) -> float | None:
        work = self._work.get(phase)
        return work * self._per_image if work and self._per_image is not None else None

    def told(self, done: int) -> str:
        """Return what to show: the rate, the time left in the phase, and in all."""
        ahead = list(self._steps)[list(self._steps).index(self._phase) + 1 :]
        phase, whole = self.of_phase(done), self.of_run(done)
        said = [f"{duration(self._rate)} per step"] if self._timed else []
        said += [] if phase is None else [f"{duration(phase)} of {self._phase} left"]
        if ahead and whole is not None:
            said.append(f"about {duration(whole)} in all")
        elif ahead:
            said.append(f"then {' and '.join(ahead)}")
        return ", ".join(said)
