"""The measured calls of a trial: a warm-up, then samples until a number of calls or a time is reached."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tunebook.book.repro._trial import Trial
from tunebook.errors import OpError
from tunebook.measure import calibrate, failure, sample
from tunebook.stats import Interval, median_interval

#: A sample takes about this long, in seconds.
SAMPLE_S = 1e-3
#: There are fewer samples than this: beyond, each two that follow each other become one.
MOST_SAMPLES = 512
#: No sample is so short that the clock could not tell it from nothing.
_LEAST_S = 1e-9


@dataclass(frozen=True)
class Measured:
    """Seconds a call of each sample, and how many calls they are of."""

    samples: tuple[float, ...]
    calls: int
    inner: int

    @property
    def interval(self) -> Interval:
        """Their median with its 95 % interval."""
        return median_interval(self.samples)


def warm_up(trial: Trial, calls: int | None = None) -> int:
    """Call it so often, by default until it is steady, and say how many calls make a sample. Raises OpError where it fails."""
    with _serving(trial):
        if calls is None:
            return calibrate(trial, trial.device, SAMPLE_S).inner
        seconds = max(sample(trial, trial.device, calls, 0), _LEAST_S) if calls else SAMPLE_S
    return max(1, math.ceil(SAMPLE_S / seconds))


def measure(trial: Trial, inner: int, *, calls: int | None = None, seconds: float = math.inf) -> Measured:
    """Call it exactly `calls` times, or for `seconds` and at least once, `inner` calls a sample, layer after layer.

    A sample is of more calls where there would be too many samples. Raises OpError where it fails.
    """
    device, done = trial.device, 0
    samples: list[float] = []
    with _serving(trial):
        started = device.clock()
        while not samples or (done < calls if calls is not None else device.clock() - started < seconds):
            count = inner if calls is None else min(inner, calls - done)
            samples.append(max(sample(trial, device, count, done), _LEAST_S))
            done += count
            if len(samples) == MOST_SAMPLES and done == inner * MOST_SAMPLES:
                samples = [(one + other) / 2 for one, other in zip(samples[::2], samples[1::2], strict=True)]
                inner *= 2
    return Measured(tuple(samples), done, inner)


@contextmanager
def _serving(trial: Trial) -> Iterator[None]:
    """Calls as in service; one that fails, though the check passed, is told in one line."""
    import torch

    try:
        with torch.inference_mode():
            yield
    except Exception as error:
        detail = failure(error, "called again after its check").detail
        raise OpError(f"{trial.name} on {trial.problem}: {detail}") from error
