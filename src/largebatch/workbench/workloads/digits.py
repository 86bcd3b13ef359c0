"""Define the workload "digits": scikit-learn's 1797 images of handwritten digits.

The images have 8 x 8 pixels and ten classes. The images are part of the scikit-learn package.

Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.workbench.workloads.data import Data, DataMissing
from largebatch.workbench.workloads.losses import classification_loss, classification_metrics
from largebatch.workbench.workloads.models import mlp
from largebatch.workbench.workloads.optimizers import sgd
from largebatch.workbench.workloads.workload import Workload


def occurrence(labels: Tensor) -> Tensor:
    """Return, for each of the labels [N], how many earlier labels have the same value.

    The returned numbers are used to split every class evenly without a random generator.

    >>> occurrence(torch.tensor([7, 7, 2, 7, 2])).tolist()
    [0, 1, 0, 2, 1]
    """
    ranks = torch.empty_like(labels)
    for label in labels.unique():
        where = (labels == label).nonzero().flatten()
        ranks[where] = torch.arange(len(where))
    return ranks


def load_digits() -> Data:
    """Return the digits as pixels [N, 64] in [-1, 1] and classes [N].

    Of every five images of a class, three are for training, one for validation and one for testing.

    Raises:
        DataMissing: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise DataMissing(
            "The workload digits needs scikit-learn, which is not installed. Install "
            'scikit-learn: pip install "largebatch[data]"'
        ) from error
    bunch = datasets.load_digits()
    x = torch.from_numpy(bunch.data).float() / 8.0 - 1.0
    y = torch.from_numpy(bunch.target).long()
    fold = occurrence(y) % 5
    train, validation, test = fold > 1, fold == 1, fold == 0
    return Data(
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]),
        test=(x[test], y[test]),
    )


def digits() -> Workload:
    """Return a small workload whose runs take seconds."""
    return Workload(
        name="digits",
        summary="MLP (26k parameters) on scikit-learn's 8 x 8 digits, SGD with momentum",
        model=lambda: mlp(inputs=64, width=128, classes=10),
        data=load_digits,
        loss=classification_loss,
        metrics=classification_metrics,
        optimizer=sgd(momentum=0.9),
        base_batch_size=16,
        base_lr=0.01,
        micro_batch_size=256,
        budget_epochs=20,
    )
