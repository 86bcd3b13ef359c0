"""Fashion-MNIST: 70,000 grey images of clothes, 28 x 28, ten classes, from local IDX files.

Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms, 2017, arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.workbench.workloads.data import Data, DataDamaged, DataMissing
from largebatch.workbench.workloads.losses import classification_loss, classification_metrics
from largebatch.workbench.workloads.models import cnn, logistic, resnet8
from largebatch.workbench.workloads.optimizers import sgd
from largebatch.workbench.workloads.workload import Workload

VARIABLE = "LARGEBATCH_FASHION_MNIST"
"""The environment variable that names the directory of the four files."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts them."""

CHECKSUMS = {
    "train-images-idx3-ubyte.gz":
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz":
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz":
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz":
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}  # fmt: skip
"""SHA-256 of the UNCOMPRESSED bytes: Debian packed the authors' image files anew."""

VALIDATION = 5_000
"""The last training images, which are in random order, are the validation split."""

PIXEL_MEAN, PIXEL_STD = 0.2858173, 0.3529372
"""Of the 55,000 training images' pixels in [0, 1]. Constants, so that the number of threads that
would compute them changes no bit of the data."""


def cache() -> Path:
    """The last place to look: `fashion-mnist` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "largebatch" / "fashion-mnist"


def find_fashion_mnist(directory: str | os.PathLike[str] | None = None) -> Path:
    """The directory that holds the four files: the one given, else the one that the environment
    names, else Debian's, else the cache. A place that was named is the only one looked at.

    Raises:
        DataMissing: no such directory has all four; says where it looked and what to do.
    """
    named = directory or os.environ.get(VARIABLE)
    places = [Path(named)] if named else [DEBIAN, cache()]
    for place in places:
        if all((place / name).is_file() for name in CHECKSUMS):
            return place
    raise DataMissing(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}. "
        "On Debian or Ubuntu: apt-get install dataset-fashion-mnist. "
        f"Elsewhere put the data set's four files ({', '.join(CHECKSUMS)}) into a directory and "
        f"name it: export {VARIABLE}=/path/to/directory"
    )


def read_idx(path: Path) -> np.ndarray:
    """The bytes of a compressed IDX file in its own shape, uint8, once their checksum is right.

    The format: two zero bytes, the type (8: uint8), the number of dimensions, each dimension as
    four bytes with the highest first, then the values in C order.

    Raises:
        DataDamaged: the file is cut, changed or another one.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise DataDamaged(_damaged(path, f"it cannot be unpacked ({error})")) from error
    found = hashlib.sha256(content).hexdigest()
    if found != CHECKSUMS[path.name]:
        raise DataDamaged(_damaged(path, f"its content has SHA-256 {found}"))
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _damaged(path: Path, cause: str) -> str:
    return (
        f"{path} is not the file of Fashion-MNIST: {cause}. Fetch it again, or on Debian: "
        "apt-get install --reinstall dataset-fashion-mnist"
    )


def load_fashion_mnist(directory: str | os.PathLike[str] | None = None) -> Data:
    """Images [N, 1, 28, 28], float32 with the training pixels' mean 0 and variance 1, and classes
    [N]: 55,000 to train, 5,000 to validate, 10,000 to test.

    Raises:
        DataMissing, DataDamaged: with what to do.
    """
    place = find_fashion_mnist(directory)
    train, test = (
        (_normalized(read_idx(place / images)), _classes(read_idx(place / labels)))
        for images, labels in (list(CHECKSUMS)[:2], list(CHECKSUMS)[2:])
    )
    return Data(
        train=(train[0][:-VALIDATION], train[1][:-VALIDATION]),
        validation=(train[0][-VALIDATION:], train[1][-VALIDATION:]),
        test=test,
    )


def _normalized(pixels: np.ndarray) -> Tensor:
    images = torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1)
    return images.sub_(255.0 * PIXEL_MEAN).div_(255.0 * PIXEL_STD)


def _classes(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _fashion(
    name: str, summary: str, model: Callable[[], nn.Module], *, base_lr: float, epochs: float
) -> Workload:
    return Workload(
        name=name,
        summary=f"{summary} on Fashion-MNIST, SGD with momentum",
        model=model,
        data=load_fashion_mnist,
        loss=classification_loss,
        metrics=classification_metrics,
        optimizer=sgd(momentum=0.9),
        base_batch_size=64,
        base_lr=base_lr,
        micro_batch_size=256,
        budget_epochs=epochs,
    )


def fashion_logistic() -> Workload:
    """Convex, and the fastest."""
    model = partial(logistic, inputs=28 * 28, classes=10)
    summary = "Logistic regression (8k parameters)"
    return _fashion("fashion-logistic", summary, model, base_lr=0.005, epochs=5)


def fashion_cnn() -> Workload:
    """The main image workload."""
    model = partial(cnn, width=16, classes=10)
    return _fashion("fashion-cnn", "3-layer CNN (20k parameters)", model, base_lr=0.02, epochs=3)


def fashion_resnet8() -> Workload:
    """Residual and normalized, as large models are."""
    model = partial(resnet8, width=16, classes=10)
    summary = "ResNet-8 with group normalization (78k parameters)"
    return _fashion("fashion-resnet8", summary, model, base_lr=0.05, epochs=3)
