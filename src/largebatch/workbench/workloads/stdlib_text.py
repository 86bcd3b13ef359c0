"""Define language-model workloads on the source code of Python's standard library.

The text is available wherever Python is installed with its sources. The text changes with the
Python version, so the record of a run holds its version, size and checksum. Compare only runs on
the same Python version.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from largebatch.workbench.workloads.data import Batch, Data, DataMissing
from largebatch.workbench.workloads.losses import next_byte_loss, next_byte_metrics
from largebatch.workbench.workloads.models import ByteTransformer
from largebatch.workbench.workloads.optimizers import adamw, sgd
from largebatch.workbench.workloads.workload import OptimizerFactory, Workload

CONTEXT = 64
"""Largest number of bytes that the model reads to predict the next byte."""

LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}  # not library
    | {"encodings", "pydoc_data"}  # generated tables and texts
    | {"idlelib", "turtledemo", "lib2to3", "distutils"}  # applications; gone in later versions
)
"""Names of directories whose files are not part of the text."""


def source_files(root: Path) -> Iterator[Path]:
    """Yield the Python files under `root` in sorted order, except those in `LEFT_OUT`."""
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(set(subdirectories) - LEFT_OUT)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):  # per machine
                yield Path(directory, name)


def split_of(relative_path: str) -> str:
    """Return the split that a file belongs to, by a hash of its name.

    On average, 18 of 20 files are for training, one for validation and one for testing.

    >>> [split_of(name) for name in ("abc.py", "ast.py", "os.py")]
    ['train', 'test', 'train']
    """
    fold = hashlib.sha256(relative_path.encode()).digest()[0] % 20
    return {0: "test", 1: "validation"}.get(fold, "train")


def sequences(content: bytes, *, context: int) -> Batch:
    """Return consecutive byte sequences [N, context], and the same sequences one byte later.

    The tensors have the type uint8. Bytes after the last full sequence are left out.

    >>> x, y = sequences(b"abcdefgh", context=3)
    >>> bytes(x.flatten().tolist()), bytes(y.flatten().tolist())
    (b'abcdef', b'bcdefg')
    """
    stream: Tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    end = (len(stream) - 1) // context * context
    return stream[:end].view(-1, context), stream[1 : end + 1].view(-1, context)


def load_stdlib_text(root: str | os.PathLike[str] | None = None) -> Data:
    """Return the source code of the standard library as byte sequences.

    Args:
        root: Directory of the source code. By default, the directory is the standard library of the
            running Python.

    Raises:
        DataMissing: The directory holds too little source code.
    """
    base = Path(root or os.path.dirname(os.__file__))
    parts = {"train": bytearray(), "validation": bytearray(), "test": bytearray()}
    for path in source_files(base):
        parts[split_of(path.relative_to(base).as_posix())] += path.read_bytes()
    if any(len(part) <= CONTEXT for part in parts.values()):
        raise DataMissing(
            f"The directory {base} holds too little Python source code to train on, because this "
            "Python is installed without the sources of its standard library. Use a full "
            "installation of Python, or pass the directory of one: "
            'load_stdlib_text("/usr/lib/python3.11")'
        )
    whole = hashlib.sha256(b"".join(parts.values())).hexdigest()
    return Data(
        **{name: sequences(bytes(part), context=CONTEXT) for name, part in parts.items()},
        facts={
            "python": platform.python_version(),
            "corpus_bytes": sum(map(len, parts.values())),
            "corpus_sha256": whole,
        },
    )


def _stdlib(name: str, *, optimizer: OptimizerFactory, described: str, lr: float) -> Workload:
    return Workload(
        name=name,
        summary=f"Byte transformer (2 layers, 0.5M parameters) on Python's sources, {described}",
        model=partial(ByteTransformer, layers=2, width=128, heads=4, context=CONTEXT),
        data=load_stdlib_text,
        loss=next_byte_loss,
        metrics=next_byte_metrics,
        optimizer=optimizer,
        base_batch_size=16,
        base_lr=lr,
        micro_batch_size=32,
        budget_epochs=0.25,
    )


def stdlib_transformer() -> Workload:
    """Return the workload with a small language model that is trained with AdamW."""
    return _stdlib("stdlib-transformer", optimizer=adamw(), described="AdamW", lr=1e-3)


def stdlib_transformer_sgd() -> Workload:
    """Return the workload with a small language model that is trained with SGD.

    The workload is made for methods whose theory is about SGD.
    """
    described = "SGD with momentum"
    return _stdlib("stdlib-transformer-sgd", optimizer=sgd(), described=described, lr=0.03)
