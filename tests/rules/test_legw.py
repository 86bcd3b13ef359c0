"""Linear-epoch gradual warm-up; the published tables are in `test_adascale.py`'s cases."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement, Reading
from largebatch.rules import Legw
from largebatch.rules.legw import legw_factor


@given(
    scale=st.floats(0.01, 1e4), clock=st.floats(0, 1e6), more=st.floats(0, 1e6), w=st.floats(1, 1e5)
)
def test_the_factor_rises_to_the_square_root_of_the_scale(
    scale: float, clock: float, more: float, w: float
) -> None:
    early = legw_factor(scale=scale, base_steps=clock, warmup_base_steps=w)
    late = legw_factor(scale=scale, base_steps=clock + more, warmup_base_steps=w)
    assert 0.0 <= early <= late <= math.sqrt(scale)
    assert legw_factor(scale=scale, base_steps=w, warmup_base_steps=w) == math.sqrt(scale)


def test_the_warm_up_takes_scale_times_as_many_epochs() -> None:
    """Scale 4, half a base epoch of 640 samples: 4 x 0.5 x 640 = 1280 samples, 5 steps of 256."""
    decider = Decider.start(
        Legw(warmup_epochs=0.5), base_batch_size=64, batch_size=256, dataset_size=640
    )
    rates = []
    for _ in range(7):
        decider, decision = decider.decide(decider.see(Reading(samples=256), base_lr=0.1))
        rates.append(decision.lr_multiplier)
    assert rates == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.0])


def test_the_size_of_the_dataset_is_required_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"Legw needs 'dataset_size'.*dataset_size=60_000"):
        Decider.start(Legw(warmup_epochs=1.0), base_batch_size=64, batch_size=256)
    seen = Measurement(step=0, samples=0, base_steps=0.0, batch_size=64, base_batch_size=64)
    with pytest.raises(ValueError, match=r"lb\.SqrtScaling"):
        Legw(warmup_epochs=1.0).update(None, seen, Decision(next_batch_size=64, base_steps=1.0))


@pytest.mark.parametrize("epochs", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_length_is_refused(epochs: float) -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs=0\.5"):
        Legw(warmup_epochs=epochs)
