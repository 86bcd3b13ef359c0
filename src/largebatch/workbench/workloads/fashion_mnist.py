"""Define the workloads on Fashion-MNIST, which are read from local IDX files.

Fashion-MNIST has 70,000 gray images of clothes, 28 x 28 pixels each, in ten classes.

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
"""Environment variable that names the directory of the four Fashion-MNIST files."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Directory in which Debian's package dataset-fashion-mnist installs the files."""

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
"""SHA-256 checksum of the uncompressed bytes of each file.

Debian compressed the image files again, so the checksums of Debian's compressed files differ from
those of the authors' compressed files.
"""

VALIDATION = 5_000
"""Number of validation images, which are the last training images.

The training images are stored in random order.
"""

PIXEL_MEAN, PIXEL_STD = 0.2858173, 0.3529372
"""Mean and standard deviation of the pixels in [0, 1] of the 55,000 training images.

The mean and the standard deviation are constants, because computing them with another number of
threads could change their last bits.
"""


def cache() -> Path:
    """Return the directory `largebatch/fashion-mnist` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "largebatch" / "fashion-mnist"


def find_fashion_mnist(directory: str | os.PathLike[str] | None = None) -> Path:
    """Return the directory that holds the four Fashion-MNIST files.

    The function checks Debian's directory and then the cache directory. If the argument or the
    environment variable names a directory, only this directory is checked.

    Raises:
        DataMissing: No checked directory holds all four files.
    """
    named = directory or os.environ.get(VARIABLE)
    places = [Path(named)] if named else [DEBIAN, cache()]
    for place in places:
        if all((place / name).is_file() for name in CHECKSUMS):
            return place
    raise DataMissing(
        f"The files of Fashion-MNIST were not found in {' or '.join(map(str, places))}. "
        "On Debian or Ubuntu, run: apt-get install dataset-fashion-mnist. "
        f"On other systems, put the four files ({', '.join(CHECKSUMS)}) into a directory and name "
        f"the directory: export {VARIABLE}=/path/to/directory"
    )


def read_idx(path: Path) -> np.ndarray:
    """Check the checksum of a compressed IDX file and return its values as a uint8 array.

    An IDX file holds two zero bytes, the type (8 means uint8), the number of dimensions, the size
    of each dimension as a big-endian number of four bytes, and the values in C order.

    Raises:
        DataDamaged: The file is truncated, changed or a different file.
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
        f"The file {path} is not the expected file of Fashion-MNIST: {cause}. Download the file "
        "again. On Debian or Ubuntu, run: apt-get install --reinstall dataset-fashion-mnist"
    )


def load_fashion_mnist(directory: str | os.PathLike[str] | None = None) -> Data:
    """Return Fashion-MNIST as float32 images [N, 1, 28, 28] and classes [N].

    Fashion-MNIST has 55,000 images for training, 5,000 for validation and 10,000 for testing. The
    pixels of the training images have mean 0 and variance 1.

    Raises:
        DataMissing: The files were not found.
        DataDamaged: A file is corrupted.
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
    """Return the workload with logistic regression, which is convex and trains fastest."""
    model = partial(logistic, inputs=28 * 28, classes=10)
    summary = "Logistic regression (8k parameters)"
    return _fashion("fashion-logistic", summary, model, base_lr=0.005, epochs=5)


def fashion_cnn() -> Workload:
    """Return the workload with a small convolutional network, the main image workload."""
    model = partial(cnn, width=16, classes=10)
    return _fashion("fashion-cnn", "3-layer CNN (20k parameters)", model, base_lr=0.02, epochs=3)


def fashion_resnet8() -> Workload:
    """Return the workload with a small ResNet, which has residual and normalization layers."""
    model = partial(resnet8, width=16, classes=10)
    summary = "ResNet-8 with group normalization (78k parameters)"
    return _fashion("fashion-resnet8", summary, model, base_lr=0.05, epochs=3)
