"""A workload of one's own: scikit-learn's breast cancer table, logistic regression, SGD.

    largebatch train examples.own_workload:breast_cancer

A workload is a value, so this file is all there is: no class to derive from, no registration.
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
    """569 tumours by 30 measurements, two classes. The rows are in no order that matters, so every
    fifth goes to the test split and every fifth to validation; scaling is fitted on the rest."""
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
    return Workload(
        name="breast-cancer",
        summary="Logistic regression on scikit-learn's breast cancer table, SGD with momentum",
        model=lambda: nn.Linear(30, 2),
        data=load_table,
        loss=classification_loss,  # any function of (model, batch) that gives a mean over samples
        metrics=classification_metrics,  # or leave it out: then evaluation gives the loss alone
        optimizer=sgd(momentum=0.9),
        base_batch_size=16,  # the batch for which ...
        base_lr=0.01,  # ... this rate was chosen, on the validation split
        micro_batch_size=256,  # most samples in one backward call: what the memory holds
        budget_epochs=10,
    )
