"""One run measured in every way of the library: gain and batch depend on the data alone.

The tolerances are standard errors of the estimates, from the known noise. The program
`benchmarks/measured_ways.py` has more seeds.
"""

from __future__ import annotations

import math

import pytest

from _known_noise import Array
from distributed import run_on_ranks
from gain_doors import gain_error
from measured_ways import (
    ATTACHED,
    BASE,
    BATCH,
    CONTROLLED,
    DIRECTIONS,
    EXAMPLES,
    FIRST,
    GAIN_NOISE,
    GROWTH_NOISE,
    ONE_BACKWARD,
    RealRun,
    adascale_run,
    adasgd_run,
    true_gain,
)

STEPS = 120
IN_EACH_STEP = {**CONTROLLED, **EXAMPLES, **ATTACHED}


@pytest.fixture(scope="module")
def runs() -> dict[str, RealRun]:
    training = adascale_run(seed=0, steps=STEPS)
    return {name: way(training) for name, way in {**IN_EACH_STEP, **ONE_BACKWARD}.items()}


def test_the_ways_measure_what_they_are_said_to_measure(runs) -> None:
    parts = {name: set(run.parts) for name, run in runs.items()}
    assert parts == {
        "Controller, micro-batches of 8": {64},
        "Controller, micro-batches of 64": {8},
        "Controller, single examples": {512},
        "attach, micro-batches of 8": {64},
        "attach, micro-batches of 64": {8},
        "attach, one backward, examples in some steps": {512},
    }
    measured = {name: len(run.parts) for name, run in runs.items()}
    assert {measured[name] for name in IN_EACH_STEP} == {STEPS}
    assert all(10 <= measured[name] < STEPS // 2 for name in ONE_BACKWARD)


def test_each_way_finds_the_true_gain_within_its_error(runs) -> None:
    for name, run in runs.items():
        assert abs(run.gain - true_gain()) <= 4.0 * run.gain_error(), name


def test_ways_that_measure_the_same_batches_differ_by_their_variances_alone(runs) -> None:
    for one in IN_EACH_STEP:
        for other in IN_EACH_STEP:
            errors = [runs[name].gain_error(same_batches=True) for name in (one, other)]
            difference = runs[one].gain - runs[other].gain
            assert abs(difference) <= 4.0 * math.hypot(*errors), (one, other)


def test_the_gain_is_smoothed_in_each_way(runs) -> None:
    for name, run in runs.items():
        late = run.gains[len(run.gains) // 4 :]
        first_quarter = gain_error(
            variance=GAIN_NOISE,
            parts=int(run.parts.min()),
            measured=len(run.parts) / 4,
            scale=BATCH // BASE,
            base=BASE,
            directions=DIRECTIONS,
        )
        assert late.std() <= 2.0 * first_quarter, name


def test_attach_and_a_controller_decide_alike_with_equal_micro_batches(runs) -> None:
    for attached, controlled in zip(ATTACHED, CONTROLLED, strict=True):
        assert runs[attached].gains == pytest.approx(runs[controlled].gains, rel=1e-4)


def test_a_growing_batch_ends_at_the_noise_scale_in_each_way() -> None:
    training = adasgd_run(seed=1)
    for name, way in {**CONTROLLED, **EXAMPLES}.items():
        assert_at_the_noise_scale(way(training).batch_sizes, parts_of_64="64" in name)


@pytest.mark.distributed
def test_two_ranks_decide_what_one_process_does() -> None:
    first, second = run_on_ranks(gains_and_batches, 2)
    gains, batch_sizes = gains_and_batches()
    assert second == first
    assert first == (pytest.approx(gains, rel=1e-4), pytest.approx(batch_sizes, abs=1))


def gains_and_batches() -> tuple[list[float], list[int]]:
    """Gains of AdaScale and batch sizes of adasgd, over all ranks that there are."""
    way = CONTROLLED["Controller, micro-batches of 64"]
    fixed, growing = way(adascale_run(seed=0, steps=60)), way(adasgd_run(seed=1, steps=100))
    return fixed.gains.tolist(), growing.batch_sizes.tolist()


def assert_at_the_noise_scale(batch_sizes: Array, *, parts_of_64: bool) -> None:
    """The batch grew, and ended where the interval of the noise scale does not exclude it.

    With batches of about one noise scale, log(variance / sqnorm) has the variance
    (6 + 8 / (parts - 1)) / D in one step: 4 / D + 2 / D by the batch's squared norm, and twice the
    relative deviation of the variance. Each measurement forgets a tenth of the past, so the average
    is worth 19. The batch stays within 1.3 errors of an estimate, which is itself within 4 errors.
    """
    parts = GROWTH_NOISE / (64 if parts_of_64 else 8)
    error = math.sqrt((6.0 + 8.0 / (parts - 1)) / DIRECTIONS / 19.0)
    assert batch_sizes[0] <= 4 * FIRST
    assert abs(math.log(batch_sizes[-1] / GROWTH_NOISE)) <= 5.3 * error
