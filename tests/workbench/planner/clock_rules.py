"""Rules on the clock of every kind, by name."""

from __future__ import annotations

import largebatch as lb
from largebatch.core.rule import Rule
from largebatch.workbench.planner.schedule_names import NAMES, schedule_named

STEPPED = lb.Budget(steps=40)
RULES: dict[str, Rule] = {
    **{name: schedule_named(name, base_batch_size=16, noise_scale=300) for name in NAMES},
    "steps": schedule_named("0:24 2K:48 5.5K:96", base_batch_size=16),
    "rate goes on": lb.methods.growth(gamma=1.5, most=4, rate_goes_on=True, stages=6),
    "rate capped": lb.methods.growth(gamma=1.4, lengths=(1,) * 6, max_lr=2.0),
    "in steps": lb.Growth(stages=lb.rules.Stages(batch=(1, 3, 5)), at=(0.25, 1.0), over=STEPPED),
    "in base steps": lb.Growth(
        stages=lb.rules.Stages(batch=(1, 2)), at=(0.37,), over=lb.Budget(base_steps=300.0)
    ),
    "shrinks": lb.Growth(stages=lb.rules.Stages(batch=(4, 1, 2)), at=(0.3, 0.6)),
    "limited": lb.chain(
        lb.Growth(stages=lb.rules.Stages(batch=(1, 64)), at=(0.2,)), lb.LimitGrowth()
    ),
    "milestones": lb.rules.Milestones(factor=3.0),
    "clamped": lb.chain(lb.Growth(), lb.ClampBatch(max=48), lb.SqrtScaling()),
    "warm-up": lb.methods.linear_warmup(fraction=0.3),
}
