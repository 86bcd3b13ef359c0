from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from largebatch.workbench.workloads import Data, DataDamaged, DataMissing, load
from largebatch.workbench.workloads import fashion_mnist as module
from largebatch.workbench.workloads.fashion_mnist import (
    CHECKSUMS,
    PIXEL_MEAN,
    PIXEL_STD,
    VARIABLE,
    cache,
    find_fashion_mnist,
    load_fashion_mnist,
    read_idx,
)

IMAGES, LABELS = list(CHECKSUMS)[:2]


def idx(values: np.ndarray) -> bytes:
    shape = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes((0, 0, 8, values.ndim)) + shape + values.tobytes()


def write_empty_set(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in CHECKSUMS:
        (directory / name).write_bytes(gzip.compress(idx(np.zeros((2, 3, 3), np.uint8))))


def test_an_idx_file_is_read_in_its_own_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(2 * 300 * 4, dtype=np.uint32).astype(np.uint8).reshape(2, 300, 4)
    content = idx(values)
    monkeypatch.setitem(CHECKSUMS, IMAGES, hashlib.sha256(content).hexdigest())
    (tmp_path / IMAGES).write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(read_idx(tmp_path / IMAGES), values)


def test_a_directory_that_is_named_and_empty_is_an_error_with_both_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(DataMissing) as caught:
        load("fashion-cnn").data()
    message = str(caught.value)
    assert message.startswith(
        f"The files of Fashion-MNIST were not found in {tmp_path}. "
    )  # and nowhere else
    assert "apt-get install dataset-fashion-mnist" in message
    assert f"export {VARIABLE}=" in message
    assert all(name in message for name in CHECKSUMS)


def test_places_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "debian")
    with pytest.raises(DataMissing, match=r"debian or .*cache/largebatch/fashion-mnist"):
        find_fashion_mnist()
    write_empty_set(cache())
    assert find_fashion_mnist() == tmp_path / "cache" / "largebatch" / "fashion-mnist"
    write_empty_set(tmp_path / "debian")
    assert find_fashion_mnist() == tmp_path / "debian"
    write_empty_set(tmp_path / "named")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    assert find_fashion_mnist() == tmp_path / "named"
    write_empty_set(tmp_path / "given")
    assert find_fashion_mnist(tmp_path / "given") == tmp_path / "given"


def test_one_missing_file_of_four_is_missing_data(tmp_path: Path) -> None:
    write_empty_set(tmp_path)
    (tmp_path / LABELS).unlink()
    with pytest.raises(DataMissing):
        find_fashion_mnist(tmp_path)


def test_a_data_file_of_another_content_is_refused_by_its_checksum(tmp_path: Path) -> None:
    write_empty_set(tmp_path)
    with pytest.raises(DataDamaged, match=f"{IMAGES} is not the expected.*SHA-256.*--reinstall"):
        load_fashion_mnist(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "not gzip", "bit"])
def test_a_file_that_cannot_be_unpacked_is_damaged(tmp_path: Path, damage: str) -> None:
    write_empty_set(tmp_path)
    packed = (tmp_path / IMAGES).read_bytes()
    flipped = packed[:12] + bytes([packed[12] ^ 255]) + packed[13:]
    broken = {"cut": packed[:-9], "not gzip": b"<html>not found</html>", "bit": flipped}[damage]
    (tmp_path / IMAGES).write_bytes(broken)
    with pytest.raises(DataDamaged, match="cannot be unpacked"):
        load_fashion_mnist(tmp_path)


def test_the_real_data_has_its_shapes_and_all_classes(fashion_mnist: Data) -> None:
    splits = (fashion_mnist.train, fashion_mnist.validation, fashion_mnist.test)
    assert [tuple(x.shape) for x, _ in splits] == [(n, 1, 28, 28) for n in (55000, 5000, 10000)]
    for x, y in splits:
        assert (x.dtype, y.dtype, len(y)) == (torch.float32, torch.int64, len(x))
        assert torch.bincount(y, minlength=10).min() > len(y) / 10 * 0.85
    assert torch.bincount(fashion_mnist.test[1]).tolist() == [1000] * 10
    assert fashion_mnist.train[1][:6].tolist() == [9, 0, 0, 3, 0, 2]


def test_training_pixels_have_mean_zero_and_variance_one(fashion_mnist: Data) -> None:
    counts = np.bincount(
        (fashion_mnist.train[0] * PIXEL_STD + PIXEL_MEAN).mul(255).round().to(torch.uint8).ravel(),
        minlength=256,
    )
    levels = np.arange(256) / 255
    mean = float((counts * levels).sum() / counts.sum())
    std = float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))
    assert (mean, std) == pytest.approx((PIXEL_MEAN, PIXEL_STD), abs=1e-7)
    assert float(fashion_mnist.train[0].double().mean()) == pytest.approx(0.0, abs=1e-6)


def test_loading_twice_gives_the_same_bits(fashion_mnist: Data) -> None:
    again = load_fashion_mnist()
    for name in ("train", "validation", "test"):
        for a, b in zip(getattr(fashion_mnist, name), getattr(again, name), strict=True):
            assert torch.equal(a, b)


def test_the_splits_share_no_memory_and_almost_no_image(fashion_mnist: Data) -> None:
    def images(x: torch.Tensor) -> set[bytes]:
        return {image.tobytes() for image in x.numpy()}

    train, validation, test = (
        images(split[0])
        for split in (fashion_mnist.train, fashion_mnist.validation, fashion_mnist.test)
    )
    # the published set itself repeats a few images; a wrong cut would share thousands
    assert len(train & validation) < 10
    assert len(train & test) < 20
    assert len(validation & test) < 5
