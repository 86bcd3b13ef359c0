"""Compute the best learning rate for batch size B and noise scale n, and Adam's scaling rule.

    SGD    max_lr / (1 + n / B)                       linear in B below n, constant above n
    Adam   2 * max_lr / (sqrt(n / B) + sqrt(B / n))   grows as sqrt(B) below n, falls above n

References: McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018, arXiv
1812.06162, for SGD with the noise scale tr(H Sigma) / G'HG. With the noise scale tr(Sigma) / |G|^2,
the ratio of two learning rates on SGD's curve is AdaScale's gain. Li et al., 2024, arXiv
2405.14578, for Adam with updates that are nearly the sign of the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.theory.checked import above_zero, not_negative


def sgd_rate(*, batch_size: float, noise_scale: float, max_lr: float) -> float:
    """Return the best learning rate of SGD: max_lr / (1 + n / B).

    >>> sgd_rate(batch_size=500, noise_scale=500, max_lr=0.3)
    0.15

    Args:
        batch_size: Batch size B in samples, above 0.
        noise_scale: Gradient noise scale n in samples, at least 0. An infinite noise scale gives
            the learning rate 0.
        max_lr: Best learning rate without noise, above 0.

    Raises:
        ValueError: An argument is outside its range.

    Reference: McCandlish et al., 2018, arXiv 1812.06162.
    """
    above_zero("sgd_rate(batch_size=64, noise_scale=1e3, max_lr=1.0)", batch=batch_size, lr=max_lr)
    if not noise_scale >= 0.0:
        raise ValueError(
            f"noise_scale={noise_scale!r} was given, but it must be a number of samples, at least "
            "0. Pass noise_scale=1e3."
        )
    return max_lr / (1.0 + noise_scale / batch_size)


def adam_rate(*, batch_size: float, noise_scale: float, max_lr: float) -> float:
    """Return the best learning rate of Adam: 2 * max_lr / (sqrt(n / B) + sqrt(B / n)).

    The learning rate is largest at B = n, where it is max_lr.

    >>> adam_rate(batch_size=4000, noise_scale=1000, max_lr=1.0)
    0.8

    Args:
        batch_size: Batch size B in samples, above 0.
        noise_scale: Gradient noise scale n in samples, above 0.
        max_lr: Largest learning rate, above 0.

    Raises:
        ValueError: An argument is outside its range.

    Reference: Li et al., 2024, arXiv 2405.14578.
    """
    example = "adam_rate(batch_size=64, noise_scale=1e3, max_lr=1e-3)"
    above_zero(example, batch_size=batch_size, noise_scale=noise_scale, max_lr=max_lr)
    root = math.sqrt(batch_size / noise_scale)
    return 2.0 * max_lr / (root + 1.0 / root)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamSettings:
    """Hold the hyper-parameters of Adam that the scaling rule changes together.

    >>> AdamSettings(lr=1e-3).betas
    (0.9, 0.999)

    Args:
        lr: Learning rate, above 0.
        betas: Decay factors of the two moments, in [0, 1).
        eps: Constant in the denominator, at least 0.

    Raises:
        ValueError: An argument is outside its range.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        example = "AdamSettings(lr=1e-3, betas=(0.9, 0.999), eps=1e-8)"
        above_zero(example, lr=self.lr)
        not_negative(example, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps)
        if not max(self.betas) < 1.0:
            raise ValueError(
                f"betas={self.betas!r} was given, but both betas must be below 1. Example: "
                f"{example}."
            )


def adam_sqrt_rule(settings: AdamSettings, *, scale: float) -> AdamSettings:
    """Return Adam's settings for a batch of `scale` times the base batch size.

    The learning rate becomes lr * sqrt(S), both betas become 1 - S * (1 - beta), and eps becomes
    eps / sqrt(S). The rule holds if noise dominates the gradient and S * (1 - beta) is far below 1.
    The square root for the learning rate is the paper's result. The formulas for betas and eps were
    not compared with the paper's text.

    >>> adam_sqrt_rule(AdamSettings(lr=1e-3), scale=4.0).lr
    0.002

    Args:
        settings: Adam's settings at the base batch size.
        scale: Scale S = B / B0, above 0.

    Raises:
        ValueError: One of the betas would fall below 0 at this scale.

    Reference: Malladi, Lyu, Panigrahi, Arora: On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms, 2022, arXiv 2205.10287.
    """
    above_zero("adam_sqrt_rule(settings, scale=4.0)", scale=scale)
    beta1, beta2 = (1.0 - scale * (1.0 - beta) for beta in settings.betas)
    if min(beta1, beta2) < 0.0:
        largest = 1.0 / (1.0 - min(settings.betas))
        raise ValueError(
            f"scale={scale:.6g} was given, but at this scale the betas {settings.betas} would "
            f"become ({beta1:.6g}, {beta2:.6g}). Pass a scale of at most {largest:.6g}, or betas "
            "closer to 1."
        )
    root = math.sqrt(scale)
    return AdamSettings(lr=settings.lr * root, betas=(beta1, beta2), eps=settings.eps / root)
