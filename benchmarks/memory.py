"""Peak memory of the posterior average of a classifier against the number of samples: a running sum, or all kept.

    python -m benchmarks -only memory

Every case has a process of its own, forked before it has computed anything. Its peak (ru_maxrss) less that at the start
counts all that the case needed, whoever allocated it. A sample is the log-probabilities of 10,000 test images in ten
classes, 0.4 MB.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.fresh import fresh, preload
from benchmarks.record import Bench
from experiment.predictive import CategoricalMixturePredictive

INPUTS, CLASSES = 10_000, 10
SAMPLES = (32, 64, 128, 256, 512, 1024)


def drawn(count: int, inputs: int) -> Iterator[Tensor]:
    """Samples; what they say is of no matter here."""
    for _ in range(count):
        yield torch.full((inputs, CLASSES), -math.log(CLASSES))


def kept(samples: int, inputs: int) -> Tensor:
    """The average over samples that are all kept until the end."""
    every = list(drawn(samples, inputs))
    average = torch.zeros(inputs, CLASSES, dtype=torch.float64)
    for sample in every:
        average += sample.double().exp() / samples
    return average


def running_sum(samples: int, inputs: int) -> Tensor:
    """The same by what the scripts use."""
    average = CategoricalMixturePredictive(inputs, CLASSES)
    for sample in drawn(samples, inputs):
        average.update(sample)
    return average.probabilities()


CASES = {"every sample kept": kept, "running sum": running_sum}


def peak() -> float:
    """Largest resident size of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def megabytes(case: str, samples: int) -> float:
    """What the case adds to the peak of a process that has just started; run it in a fresh one."""
    torch.set_num_threads(1)
    CASES[case](2, 1)  # loads the code of torch that it needs
    before = peak()
    CASES[case](samples, INPUTS)
    return peak() - before


def main(bench: Bench) -> None:
    preload([__name__])
    curves = {case: {n: fresh(megabytes, case, n) for n in bench.size(SAMPLES, (8, 16, 32))} for case in CASES}
    bench.record_curves("peak memory of the posterior average", "MB", "samples", curves)
