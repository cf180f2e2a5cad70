"""Files of published datasets: where they are, what must be in them, how they are read."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pooch

from scgmvae.datasets.local import DATA_DIR

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")

# Tried in this order. LeCun's own host of MNIST often refuses, hence PyTorch's copy before it.
ADDRESSES = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion_mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    "cifar10": ("https://www.cs.toronto.edu/~kriz/",),
}
_IDX_FILES = (
    *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)
# The binary version, because its other one for Python is pickled: reading that could run any code.
CIFAR_FILE = "cifar-10-binary.tar.gz"
_CIFAR_BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
# sha256 of the decompressed content, in the order of _IDX_FILES: there are copies of these files
# that were compressed again, with other bytes. For CIFAR-10 it is the md5 of the archive, which
# its author publishes: the archive was not at hand to take the content's from.
_MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
_FASHION_SHA256 = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
CHECKSUMS = {
    "mnist": dict(zip(_IDX_FILES, _MNIST_SHA256, strict=True)),
    "fashion_mnist": dict(zip(_IDX_FILES, _FASHION_SHA256, strict=True)),
    "cifar10": {CIFAR_FILE: "c32a1d4ab5d03f1284b67883e8d87530"},
}
_BLOCK = 1 << 18  # bytes read at a time
_REMEDY = "Remove the file, and it is downloaded anew, or put the original in its place."


def obtain(dataset: str, names: Sequence[str], read: Callable[[Path], T]) -> T:
    """Result of ``read`` for the first of the files; if none exists, download ``names[0]``."""
    cache = Path(pooch.os_cache("scgmvae")) / dataset
    local = os.environ.get(DATA_DIR)
    folders = [Path(local).expanduser() / dataset, cache] if local else [cache]
    for path in (folder / name for folder in folders for name in names):
        if path.is_file():
            return read(path)

    path = cache / names[0]
    failures: list[Exception] = []
    for address in ADDRESSES[dataset]:
        # No checksum for pooch: `read` has its own, of the content.
        store = pooch.create(cache, base_url=address, registry={path.name: None})
        downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=_BLOCK)
        try:
            store.fetch(path.name, downloader=downloader)
            return read(path)
        except OSError as error:  # all of requests' errors are of this class
            failures.append(error)
        except ValueError as error:
            # Another file sent in its place, such as a log-in page, must not stay in the cache.
            path.unlink(missing_ok=True)
            failures.append(error)
    attempts = zip(ADDRESSES[dataset], failures, strict=True)
    tried = "\n".join(f"  {address}: {error}" for address, error in attempts)
    raise FileNotFoundError(
        f"{' or '.join(names)} of {dataset} is not in {' or '.join(map(str, folders))}, and could "
        f"not be downloaded:\n{tried}\n"
        f"Put {', '.join(CHECKSUMS[dataset])} into the folder {dataset} of the folder that the "
        f"environment variable {DATA_DIR} names ({local or 'not set'}), or into {cache}."
    ) from failures[-1]


def read_idx(path: Path, sha256: str) -> NDArray[np.uint8]:
    """Array of an idx file, compressed or not, of the shape its header gives."""
    content, fault = _decompressed(path)
    n_axes = 3 if "idx3" in path.name else 1
    magic, header = bytes([0, 0, 8, n_axes]), 4 + 4 * n_axes  # 8 stands for unsigned bytes
    if not magic.startswith(content[:4]):
        raise ValueError(
            f"{path} must begin with the bytes {magic.hex(' ')} of such an idx file, but begins "
            f"with {content[:4].hex(' ')}. {_REMEDY}"
        )
    shape = np.frombuffer(content, ">u4", n_axes, 4).tolist() if len(content) >= header else [0]
    expected = header + math.prod(shape)
    if fault or len(content) != expected:
        raise ValueError(
            f"{path} is damaged: {expected} bytes of content are expected from its header, but "
            f"{len(content)} were found{f' before an error ({fault})' if fault else ''}. {_REMEDY}"
        ) from fault
    _check_checksum(path, hashlib.sha256(content).hexdigest(), sha256)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _decompressed(path: Path) -> tuple[bytes, Exception | None]:
    """Content as far as it can be read, and the error that ended it, if any."""
    content = path.read_bytes()
    # By the first bytes, because a server may undo the compression of a file named .gz.
    if not content.startswith(b"\x1f\x8b"):
        return content, None
    blocks = []
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            while block := file.read1(_BLOCK):
                blocks.append(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return b"".join(blocks), error
    return b"".join(blocks), None


def read_cifar(path: Path, md5: str) -> list[NDArray[np.uint8]]:
    """Train images ``(n, 32, 32, 3)``, train labels ``(n,)``, and both for test."""
    _check_checksum(path, pooch.file_hash(str(path), "md5"), md5)
    # Members are read in the order of the archive, so that it is decompressed once.
    with tarfile.open(path, "r|gz") as tar:
        found = {
            Path(member.name).name: tar.extractfile(member).read()
            for member in tar
            if Path(member.name).name in _CIFAR_BATCHES
        }
    parts = []
    for names in (_CIFAR_BATCHES[:5], _CIFAR_BATCHES[5:]):
        # A record is one byte of label and a plane of 32 × 32 for each of red, green, blue.
        records = np.frombuffer(b"".join(found[name] for name in names), np.uint8)
        records = records.reshape(-1, 1 + 3 * 32 * 32)
        parts += [records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]]
    return parts


def _check_checksum(path: Path, found: str, expected: str) -> None:
    """Raise ValueError, naming the file, unless the two are equal."""
    if found != expected:
        raise ValueError(
            f"{path} must be the original, with the checksum {expected}, but has {found}: it was "
            f"changed or is damaged. {_REMEDY}"
        )
