"""Images as AnnData, one image per row: local files, else cached ones, else a download."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from scgmvae.checks import listed
from scgmvae.datasets.files import CHECKSUMS, CIFAR_FILE, obtain, read_cifar, read_idx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["cifar10", "digits", "fashion_mnist", "images_to_anndata", "mnist"]

_DIGITS = tuple("0123456789")
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_OBJECTS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def digits() -> ad.AnnData:
    """Handwritten digits of 8 × 8 pixels, which scikit-learn ships.

    Returns
    -------
    anndata.AnnData
        1,797 images × 64 pixels. ``X``: float32, sixteenths in [0, 1]. ``obs["label"]``: ``"0"``
        to ``"9"``. ``uns["image_shape"]``: (8, 8).

    Examples
    --------
    >>> adata = digits()
    >>> adata.shape, adata.uns["image_shape"].tolist(), float(adata.X.max())
    ((1797, 64), [8, 8], 1.0)
    """
    bunch = load_digits()
    return images_to_anndata(bunch.images / 16, pd.Categorical.from_codes(bunch.target, _DIGITS))


def mnist() -> ad.AnnData:
    """Handwritten digits of 28 × 28 pixels, 60,000 to train on and 10,000 to test.

    Reads ``mnist/train-images-idx3-ubyte.gz`` and its three companions, compressed or not, in the
    folder that the environment variable ``SCGMVAE_DATA_DIR`` names, else in the user's cache, to
    which they are downloaded (12 MB) where they are in neither.

    Returns
    -------
    anndata.AnnData
        70,000 images × 784 pixels, in the original order. ``X``: uint8, where v stands for
        v / 255. ``obs``: categoricals ``"label"`` (``"0"`` to ``"9"``) and ``"split"``
        (``"train"``, then ``"test"``). ``uns["image_shape"]``: (28, 28).

    Raises
    ------
    FileNotFoundError
        If a file is not there and cannot be downloaded; the message says where to put it.
    ValueError
        If a local or cached file is damaged, or its content is not the original.

    References
    ----------
    LeCun et al. (1998), Gradient-based learning applied to document recognition.

    Examples
    --------
    >>> mnist().shape  # doctest: +SKIP
    (70000, 784)
    """
    return _idx_dataset("mnist", _DIGITS)


def fashion_mnist() -> ad.AnnData:
    """Articles of clothing of 28 × 28 pixels, 60,000 to train on and 10,000 to test.

    Files, values and errors are as those of :func:`mnist`, in the folder ``fashion_mnist``
    (31 MB).

    Returns
    -------
    anndata.AnnData
        70,000 images × 784 pixels, as of :func:`mnist`, with the names of ten articles as labels.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`mnist`.

    References
    ----------
    Xiao et al. (2017), Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms.
    """
    return _idx_dataset("fashion_mnist", _CLOTHES)


def cifar10() -> ad.AnnData:
    """Colour photographs of 32 × 32 pixels, 50,000 to train on and 10,000 to test.

    Reads ``cifar10/cifar-10-binary.tar.gz`` from the places where :func:`mnist` looks (170 MB).

    Returns
    -------
    anndata.AnnData
        60,000 images × 3,072 values, ordered by height, width and channel (red, green, blue).
        ``X`` and ``obs`` as of :func:`mnist`, with the names of ten things as labels.
        ``uns["image_shape"]``: (32, 32, 3).

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`mnist`; the checksum is that of the archive.

    References
    ----------
    Krizhevsky (2009), Learning multiple layers of features from tiny images.
    """
    read = partial(read_cifar, md5=CHECKSUMS["cifar10"][CIFAR_FILE])
    return _with_split(obtain("cifar10", (CIFAR_FILE,), read), _OBJECTS)


def images_to_anndata(images: ArrayLike, labels: Sequence | None = None) -> ad.AnnData:
    """AnnData with one image per row, in the form of the datasets here.

    Parameters
    ----------
    images
        Shape ``(n, height, width)`` or ``(n, height, width, channels)``. Either uint8, where v
        stands for v / 255, or floats in [0, 1].
    labels
        One label per image, or None. Categories keep their order, and are sorted where there are
        none.

    Returns
    -------
    anndata.AnnData
        ``X``: a copy, uint8 or float32, shape ``(n, height * width * channels)``.
        ``obs["label"]``: categorical of strings, if given. ``uns["image_shape"]``: integers.

    Raises
    ------
    ValueError
        If shape, type or values of the images are not as above, or there is not one label each.

    Examples
    --------
    >>> adata = images_to_anndata(np.zeros((3, 4, 5), dtype=np.uint8), labels=[7, 10, 7])
    >>> adata.shape, adata.obs["label"].tolist(), adata.uns["image_shape"].tolist()
    ((3, 20), ['7', '10', '7'], [4, 5])
    """
    if np.ma.is_masked(images):
        raise ValueError(
            "images must be whole, but received masked values; fill them in with numpy.ma.filled."
        )
    images = np.asarray(images)
    if images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            "images must have the shape (n, height, width) or (n, height, width, channels), none "
            f"of them 0, but received shape {images.shape}; reshape the array."
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(
            f"images must be uint8 or floats in [0, 1], but received {images.dtype}; convert "
            "whole numbers from 0 to 255 by images.astype(np.uint8)."
        )
    # The condition is negated so that a NaN is refused as well.
    if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            "Floats must lie in [0, 1], but received values from "
            f"{images.min():g} to {images.max():g}; scale the images, or pass uint8 for 0 to 255."
        )
    obs = pd.DataFrame(index=[f"image_{i}" for i in range(len(images))])
    if labels is not None:
        if np.shape(labels) != (len(images),):
            raise ValueError(
                f"labels must have one entry per image, shape ({len(images)},), but received "
                f"shape {np.shape(labels)}; pass one label for each image, or none at all."
            )
        categorical = pd.Categorical(labels)
        names = categorical.categories.astype(str)
        if not names.is_unique:
            raise ValueError(
                "labels are told apart by name, but received different ones of the same name: "
                f"{listed(names[names.duplicated()])}; pass all of them as strings."
            )
        obs["label"] = categorical.rename_categories(names)
    dtype = np.uint8 if images.dtype == np.uint8 else np.float32
    x = np.array(images, dtype=dtype, order="C").reshape(len(images), -1)
    var = pd.DataFrame(index=[f"pixel_{i}" for i in range(x.shape[1])])
    return ad.AnnData(x, obs=obs, var=var, uns={"image_shape": np.array(images.shape[1:])})


def _idx_dataset(dataset: str, classes: Sequence[str]) -> ad.AnnData:
    """One of the two datasets of four idx files."""
    parts = []
    for name, sha256 in CHECKSUMS[dataset].items():
        read = partial(read_idx, sha256=sha256)
        parts.append(obtain(dataset, (name, name.removesuffix(".gz")), read))
    return _with_split(parts, classes)


def _with_split(parts: Sequence[NDArray], classes: Sequence[str]) -> ad.AnnData:
    """AnnData of both splits, each as images ``(n, height, width[, 3])`` and codes ``(n,)``."""
    train, train_codes, test, test_codes = parts
    codes = np.concatenate([train_codes, test_codes])
    labels = pd.Categorical.from_codes(codes, classes)
    adata = images_to_anndata(np.concatenate([train, test]), labels)
    is_test = np.repeat([0, 1], [len(train), len(test)])
    adata.obs["split"] = pd.Categorical.from_codes(is_test, ["train", "test"])
    return adata
