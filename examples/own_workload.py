"""Define your own workload: logistic regression on scikit-learn's breast cancer data with SGD.

    largebatch train examples.own_workload:breast_cancer

A workload is a value. There is no base class and no registration, so this file is complete.
"""

import torch
from sklearn import datasets
from torch import nn

from largebatch.workbench.workloads import (
    Data,
    Workload,
    classification_loss,
    classification_metrics,
    sgd,
)


def load_table() -> Data:
    """Return the data of 569 tumors with 30 measurements each, in two classes.

    The order of the rows does not matter, so every fifth row is for testing and every fifth row for
    validation. The measurements are scaled by the mean and standard deviation of the other rows.
    """
    bunch = datasets.load_breast_cancer()
    x, y = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).long()
    fold = torch.arange(len(x)) % 5
    train, validation, test = fold > 1, fold == 1, fold == 0
    x = (x - x[train].mean(0)) / x[train].std(0)
    return Data(
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]),
        test=(x[test], y[test]),
    )


def breast_cancer() -> Workload:
    """Return the workload; `largebatch train` calls this function."""
    return Workload(
        name="breast-cancer",
        summary="Logistic regression on scikit-learn's breast cancer table, SGD with momentum",
        model=lambda: nn.Linear(30, 2),
        data=load_table,
        loss=classification_loss,  # any function of (model, batch) that returns a mean over samples
        metrics=classification_metrics,  # optional; by default, only the loss is evaluated
        optimizer=sgd(momentum=0.9),
        base_batch_size=16,  # batch size for which the learning rate is tuned
        base_lr=0.01,  # learning rate, tuned on the validation split
        micro_batch_size=256,  # largest number of samples in one backward call
        budget_epochs=10,
    )
