"""Simulate gradients with known variance and squared norm, and estimate both without bias."""

from __future__ import annotations

import math

import numpy as np

from largebatch.analysis.bootstrap import ratio_interval


def autocorrelated(rng, shape, *, correlation, spread):
    """Return positive factors [R, T] of mean 1: exp of an AR(1) series with the given spread."""
    level = rng.standard_normal(shape)
    for t in range(1, shape[1]):
        fresh = math.sqrt(1.0 - correlation**2)
        level[:, t] = correlation * level[:, t - 1] + fresh * level[:, t]
    return np.exp(spread * level - spread**2 / 2.0)


def outliers(rng, shape):
    """Return factors [R, T] of mean 1, in which one step in fifty is 31 times as large as the
    others.
    """
    return (1.0 + 30.0 * (rng.random(shape) < 0.02)) / 1.6


def series(rng, *, variance, sqnorm, parts=4, part_size=8, dimensions=20):
    """Return unbiased (variance, sqnorm) of one sample, [R, T, 2], from simulated gradients of
    parts.

    Args:
        variance, sqnorm: true values [R, T]: trace of the covariance of a sample's gradient, and
            squared norm of the true gradient.
    """
    deviation = np.sqrt(variance / dimensions / part_size)
    gradients = rng.standard_normal((*variance.shape, parts, dimensions))
    gradients *= deviation[..., None, None]
    gradients[..., 0] += np.sqrt(sqnorm)[..., None]
    batch_sqnorm = (gradients.mean(axis=2) ** 2).sum(axis=-1)
    mean_sqnorm = (gradients**2).sum(axis=-1).mean(axis=-1)
    estimated = part_size * parts / (parts - 1) * (mean_sqnorm - batch_sqnorm)
    return np.stack([estimated, batch_sqnorm - estimated / (parts * part_size)], axis=-1)


def coverage(runs, truth, **options):
    """Return the fraction of runs [R, T, 2] whose interval contains the truth, and the bounds."""
    intervals = [ratio_interval(*run.T, seed=i, **options) for i, run in enumerate(runs)]
    low, high = np.array(intervals).T
    return float(np.mean((low <= truth) & (truth <= high))), low, high


def epochs(rng, *, samples, noise_scale, batch_size, steps, parts=4, dimensions=20):
    """Return unbiased (variance, sqnorm) of one sample, [T, 2], of batches drawn without
    replacement.

    The data set's own gradient has a squared norm of 1, and its samples' gradients have exactly the
    variance `noise_scale`, with the divisor samples - 1.
    """
    gradients = rng.standard_normal((samples, dimensions))
    gradients -= gradients.mean(axis=0)
    gradients *= math.sqrt(noise_scale * (samples - 1) / (gradients**2).sum())
    gradients[:, 0] += 1.0
    batches = []
    while len(batches) < steps:
        order = rng.permutation(samples)
        batches += [order[a : a + batch_size] for a in range(0, samples, batch_size)]
    drawn = gradients[np.array(batches[:steps])].reshape(steps, parts, -1, dimensions).mean(axis=2)
    batch_sqnorm = (drawn.mean(axis=1) ** 2).sum(axis=-1)
    mean_sqnorm = (drawn**2).sum(axis=-1).mean(axis=-1)
    estimated = batch_size / (parts - 1) * (mean_sqnorm - batch_sqnorm)
    return np.stack([estimated, batch_sqnorm - estimated / batch_size], axis=-1)
