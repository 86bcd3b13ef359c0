"""How the best learning rate depends on the batch B and the noise scale n, and Adam's scaling rule.

    SGD    max_lr / (1 + n / B)                       linear below n, flat above
    Adam   2 max_lr / (sqrt(n / B) + sqrt(B / n))     as the root below n, largest at n, falls above

McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162, for
SGD with the noise scale tr(H Sigma) / G'HG; with tr(Sigma) / |G|^2 in its place it is the curve
whose ratios are AdaScale's gains. Li et al., 2024, arXiv 2405.14578, for updates that are nearly
the gradient's sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.theory.checked import above_zero, not_negative


def sgd_rate(*, batch_size: float, noise_scale: float, max_lr: float) -> float:
    """The best learning rate of SGD: max_lr / (1 + n / B).

    >>> sgd_rate(batch_size=500, noise_scale=500, max_lr=0.3)
    0.15

    Args:
        batch_size: B, in samples, above 0.
        noise_scale: n, in samples, at least 0; `inf` gives 0.
        max_lr: the rate without noise, above 0.

    Raises:
        ValueError: a number outside its range.

    Reference: McCandlish et al., 2018, arXiv 1812.06162.
    """
    above_zero("sgd_rate(batch_size=64, noise_scale=1e3, max_lr=1.0)", batch=batch_size, lr=max_lr)
    if not noise_scale >= 0.0:
        raise ValueError(f"noise_scale is a number of samples of at least 0; got {noise_scale!r}.")
    return max_lr / (1.0 + noise_scale / batch_size)


def adam_rate(*, batch_size: float, noise_scale: float, max_lr: float) -> float:
    """The best learning rate of Adam: 2 max_lr / (sqrt(n / B) + sqrt(B / n)), max_lr at B = n.

    >>> adam_rate(batch_size=4000, noise_scale=1000, max_lr=1.0)
    0.8

    Args:
        batch_size: B, in samples, above 0.
        noise_scale: n, in samples, above 0.
        max_lr: the largest rate, above 0.

    Raises:
        ValueError: a number outside its range.

    Reference: Li et al., 2024, arXiv 2405.14578.
    """
    example = "adam_rate(batch_size=64, noise_scale=1e3, max_lr=1e-3)"
    above_zero(example, batch_size=batch_size, noise_scale=noise_scale, max_lr=max_lr)
    root = math.sqrt(batch_size / noise_scale)
    return 2.0 * max_lr / (root + 1.0 / root)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamSettings:
    """What Adam's scaling rule moves together.

    Args:
        lr: learning rate, above 0.
        betas: of the two moments, in [0, 1).
        eps: in the denominator, at least 0.

    Raises:
        ValueError: a number outside its range.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        example = "AdamSettings(lr=1e-3, betas=(0.9, 0.999), eps=1e-8)"
        above_zero(example, lr=self.lr)
        not_negative(example, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps)
        if not max(self.betas) < 1.0:
            raise ValueError(f"betas are below 1, as in {example}; got {self.betas!r}.")


def adam_sqrt_rule(settings: AdamSettings, *, scale: float) -> AdamSettings:
    """Adam's settings for a batch `scale` times as large.

    lr sqrt(S), 1 - S (1 - beta) for both betas, eps / sqrt(S). For runs in which noise dominates
    the gradient and S (1 - beta) is far below 1. That the rate takes the root is the paper's
    result; how betas and eps move with it was not checked in its text.

    >>> adam_sqrt_rule(AdamSettings(lr=1e-3), scale=4.0).lr
    0.002

    Args:
        settings: of the base batch.
        scale: S = B / B0, above 0.

    Raises:
        ValueError: a scale at which a beta would fall below 0.

    Reference: Malladi, Lyu, Panigrahi, Arora: On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms, 2022, arXiv 2205.10287.
    """
    above_zero("adam_sqrt_rule(settings, scale=4.0)", scale=scale)
    beta1, beta2 = (1.0 - scale * (1.0 - beta) for beta in settings.betas)
    if min(beta1, beta2) < 0.0:
        largest = 1.0 / (1.0 - min(settings.betas))
        raise ValueError(
            f"at scale {scale:.6g} the betas {settings.betas} would become ({beta1:.6g}, "
            f"{beta2:.6g}); the rule ends at scale {largest:.6g}. Take a smaller scale, or betas "
            "nearer to 1."
        )
    root = math.sqrt(scale)
    return AdamSettings(lr=settings.lr * root, betas=(beta1, beta2), eps=settings.eps / root)
