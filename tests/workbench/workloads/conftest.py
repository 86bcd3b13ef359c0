from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from largebatch.workbench.workloads import Data, DataMissing
from largebatch.workbench.workloads.fashion_mnist import load_fashion_mnist


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fashion_mnist() -> Data:
    """Return the real data; without the data, tests are skipped, but fail in continuous
    integration."""
    try:
        return load_fashion_mnist()
    except DataMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(f"Fashion-MNIST: {missing}")
