"""Tests of scgmvae.datasets, images: values, where files come from, what damage is reported."""

import gc
import gzip
import hashlib
import io
import os
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pooch
import pytest
from sklearn.datasets import load_digits

from scgmvae import datasets
from scgmvae.datasets import files

DATA_DIR = os.environ.get("SCGMVAE_DATA_DIR")
needs_mnist = pytest.mark.skipif(
    not DATA_DIR or not Path(DATA_DIR, "mnist").is_dir(),
    reason="SCGMVAE_DATA_DIR does not name a folder with mnist/*.gz",
)
needs_fashion = pytest.mark.skipif(
    not DATA_DIR or not Path(DATA_DIR, "fashion_mnist").is_dir(),
    reason="SCGMVAE_DATA_DIR does not name a folder with fashion_mnist/*.gz",
)

# pooch leaves the connection of a failed download open until it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

CONTENT_NAMES = [name.removesuffix(".gz") for name in files._IDX_FILES]
TRAIN = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
TEST = 255 - np.arange(40, dtype=np.uint8).reshape(2, 4, 5)
TRAIN_LABELS = np.array([5, 0, 9], dtype=np.uint8)
TEST_LABELS = np.array([2, 5], dtype=np.uint8)


def idx_bytes(array):
    """Bytes of an idx file of unsigned bytes."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def cifar_archive(records):
    """Binary CIFAR archive with one record in each file, in an order other than by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ["readme.html", *reversed(files._CIFAR_BATCHES)]:
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(records.get(name, b"hello"))
            tar.addfile(info, io.BytesIO(records.get(name, b"hello")))
    return buffer.getvalue()


@pytest.fixture
def contents():
    """Content of four small idx files by their names without ``.gz``."""
    arrays = (TRAIN, TRAIN_LABELS, TEST, TEST_LABELS)
    return {name: idx_bytes(array) for name, array in zip(CONTENT_NAMES, arrays, strict=True)}


@pytest.fixture
def cache(tmp_path, monkeypatch, contents):
    """Empty cache, no local folder, a closed port as address, checksums of the small files."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: cache)
    monkeypatch.delenv("SCGMVAE_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    checksums = {f"{name}.gz": sha256(content) for name, content in contents.items()}
    for dataset in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(files.CHECKSUMS, dataset, checksums)
    for dataset in files.ADDRESSES:  # nothing listens on port 9
        monkeypatch.setitem(files.ADDRESSES, dataset, ("http://127.0.0.1:9/",))
    return cache


@pytest.fixture
def local(tmp_path, monkeypatch, cache):
    """Local folder, still empty, that the environment variable names."""
    folder = tmp_path / "local" / "mnist"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SCGMVAE_DATA_DIR", str(tmp_path / "local"))
    return folder


@pytest.fixture
def server(monkeypatch, cache):
    """Server on the loopback; ``served`` holds its files by path, ``requests`` what was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            content = self.server.served.get(self.path)
            self.send_response(404 if content is None else 200)
            length = self.server.announced or len(content or b"")
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.served, server.requests, server.announced = {}, [], None
        server.address = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for dataset in files.ADDRESSES:
            monkeypatch.setitem(files.ADDRESSES, dataset, (f"{server.address}{dataset}/",))
        yield server
        server.shutdown()
        thread.join()
    gc.collect()  # here, where that warning is let through, not in some later test


def write_idx(folder, contents, compress=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_small_mnist(adata):
    """Check the values of the four small files."""
    expected = np.concatenate([TRAIN, TEST]).reshape(5, 20)
    assert isinstance(adata.X, np.ndarray) and adata.X.dtype == np.uint8
    np.testing.assert_array_equal(adata.X, expected)
    assert adata.obs["label"].tolist() == ["5", "0", "9", "2", "5"]
    assert adata.obs["label"].cat.categories.tolist() == list("0123456789")
    assert adata.obs["split"].tolist() == ["train"] * 3 + ["test"] * 2
    assert adata.obs["split"].cat.categories.tolist() == ["train", "test"]
    assert adata.uns["image_shape"].tolist() == [4, 5]
    assert adata.obs_names.tolist() == [f"image_{i}" for i in range(5)]
    assert adata.var_names[[0, 19]].tolist() == ["pixel_0", "pixel_19"]


# --- images_to_anndata, digits -----------------------------------------------------------------


def test_uint8_images_stay_as_they_are():
    """Rows are images in the order height, width, channel; the array given is not shared."""
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    adata = datasets.images_to_anndata(images)
    assert adata.X.dtype == np.uint8 and adata.X.flags.c_contiguous
    np.testing.assert_array_equal(adata.X, np.arange(72).reshape(2, 36))
    assert adata.X[1, (2 * 4 + 3) * 3 + 1] == images[1, 2, 3, 1]
    assert adata.uns["image_shape"].tolist() == [3, 4, 3]
    assert list(adata.obs) == []
    adata.X[:] = 0
    assert images.max() == 71


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_float32(dtype):
    """Values in [0, 1], its ends included, are kept, in memory that does not follow rows too."""
    images = np.linspace(0, 1, 24).reshape(4, 3, 2).astype(dtype).transpose(2, 1, 0)
    adata = datasets.images_to_anndata(images)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X, images.reshape(2, 12).astype(np.float32))


@pytest.mark.parametrize(
    ("labels", "values", "categories"),
    [
        pytest.param([10, 9, 10], ["10", "9", "10"], ["9", "10"], id="numbers_keep_their_order"),
        pytest.param(np.array(["b", "a", "b"]), ["b", "a", "b"], ["a", "b"], id="strings"),
        pytest.param(
            pd.Series(pd.Categorical(["b", "a", "b"], ["c", "b", "a"]), index=[7, 8, 9]),
            ["b", "a", "b"],
            ["c", "b", "a"],
            id="categories_keep_their_order",
        ),
    ],
)
def test_labels_become_categories_of_strings(labels, values, categories):
    """By position, whatever the index of a Series says."""
    adata = datasets.images_to_anndata(np.zeros((3, 2, 2)), labels)
    assert adata.obs["label"].tolist() == values
    assert adata.obs["label"].cat.categories.tolist() == categories


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        pytest.param(np.zeros((3, 4)), None, r"received shape \(3, 4\)", id="flat"),
        pytest.param(np.zeros((1, 2, 2, 3, 1)), None, r"shape \(1, 2, 2, 3, 1\)", id="5_axes"),
        pytest.param(np.zeros((0, 2, 2)), None, r"shape \(0, 2, 2\)", id="no_image"),
        pytest.param(np.zeros((2, 2, 2), int), None, r"received int64; .*astype", id="int64"),
        pytest.param(np.zeros((2, 2, 2), bool), None, "received bool", id="bool"),
        pytest.param(np.full((2, 2, 2), 255.0), None, "from 255 to 255; scale", id="255"),
        pytest.param(np.full((2, 2, 2), -0.1), None, "from -0.1 to -0.1", id="negative"),
        pytest.param(np.full((2, 2, 2), np.nan), None, "from nan to nan", id="nan"),
        pytest.param(np.zeros((2, 2, 2)), ["a"], r"\(2,\), .* shape \(1,\)", id="few_labels"),
        pytest.param(np.zeros((2, 2, 2)), np.eye(2), r"shape \(2, 2\)", id="one_hot"),
    ],
)
def test_bad_images_are_refused(images, labels, message):
    """The message has the rule and what was received."""
    with pytest.raises(ValueError, match=message):
        datasets.images_to_anndata(images, labels)


def test_digits_are_those_of_scikit_learn():
    """Sixteenths, in the original order, with the labels as strings."""
    source = load_digits()
    adata = datasets.digits()
    assert adata.shape == (1797, 64) and adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X * 16, source.data)
    assert adata.obs["label"].tolist() == [str(i) for i in source.target]
    assert list(adata.obs) == ["label"]
    assert adata.uns["image_shape"].tolist() == [8, 8]


# --- idx files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False], ids=["gz", "plain"])
def test_local_files_are_read(local, contents, cache, compress):
    """Compressed or not; nothing is put in the cache."""
    write_idx(local, contents, compress)
    assert_small_mnist(datasets.mnist())
    assert not cache.exists()


def test_decompressed_content_under_a_name_of_gz_is_read(local, contents):
    """A server may decompress what it sends, so the name does not decide."""
    write_idx(local, {f"{name}.gz": content for name, content in contents.items()}, False)
    assert_small_mnist(datasets.mnist())


def test_cached_files_are_read_without_a_local_folder(cache, contents):
    """The cache has a subfolder for each dataset; Fashion-MNIST has names as labels."""
    write_idx(cache / "fashion_mnist", contents)
    adata = datasets.fashion_mnist()
    assert adata.obs["label"].tolist() == ["Sandal", "T-shirt/top", "Ankle boot"] + [
        "Pullover",
        "Sandal",
    ]
    assert adata.obs["label"].cat.categories.size == 10


def test_local_folder_comes_before_the_cache(local, cache, contents):
    """Also where the local files are the damaged ones."""
    write_idx(cache / "mnist", contents)
    assert_small_mnist(datasets.mnist())
    (local / "t10k-labels-idx1-ubyte").write_bytes(b"hello")
    with pytest.raises(ValueError, match=str(local / "t10k-labels-idx1-ubyte")):
        datasets.mnist()


def gzip_without_check(content):
    """Gzip file with a wrong checksum at its end, before the length."""
    compressed = bytearray(gzip.compress(content))
    compressed[-6] ^= 255
    return bytes(compressed)


IMAGES = idx_bytes(TRAIN)  # 16 + 60 bytes


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        pytest.param(IMAGES[:-1], "damaged: 76 bytes .* but 75 were found", id="one_byte_short"),
        pytest.param(IMAGES + b"!", "damaged: 76 bytes .* but 77 were found", id="one_too_many"),
        pytest.param(IMAGES[:10], "16 bytes .* but 10 were found", id="header_cut"),
        pytest.param(b"", "16 bytes .* but 0 were found", id="empty"),
        pytest.param(gzip.compress(IMAGES[:-1]), "76 bytes .* but 75 were", id="gz_of_short"),
        pytest.param(
            gzip.compress(IMAGES)[:-20],
            r"76 bytes .* found before an error \(.*ended before",
            id="gz_cut",
        ),
        pytest.param(gzip.compress(IMAGES)[:5], "but 0 were found before", id="gz_header_cut"),
        pytest.param(
            gzip_without_check(IMAGES), r"found before an error \(CRC check failed", id="gz_crc"
        ),
        pytest.param(
            gzip.compress(IMAGES)[:10] + b"\xff" * 40, r"before an error \(Error -3", id="gz_data"
        ),
        pytest.param(gzip.compress(IMAGES) + b"junk", "Not a gzipped file", id="gz_and_junk"),
        pytest.param(b"<html>", "bytes 00 00 08 03 .* begins with 3c 68 74 6d", id="page"),
        pytest.param(idx_bytes(TRAIN_LABELS), "begins with 00 00 08 01", id="labels_as_images"),
        pytest.param(
            bytes([0, 0, 13]) + IMAGES[3:], "begins with 00 00 0d 03", id="floats_not_bytes"
        ),
        pytest.param(
            IMAGES[:-1] + b"!", f"original, with the checksum {sha256(IMAGES)}", id="changed"
        ),
        pytest.param(
            gzip.compress(IMAGES[:-1] + b"!"),
            f"but has {sha256(IMAGES[:-1] + b'!')}",
            id="gz_changed",
        ),
    ],
)
def test_damaged_files_are_reported(local, contents, stored, message):
    """The message names the file, what is wrong, in bytes, and what to do; the file stays."""
    write_idx(local, contents)
    path = local / "train-images-idx3-ubyte.gz"
    path.write_bytes(stored)
    with pytest.raises(ValueError, match=message) as error:
        datasets.mnist()
    assert str(error.value).startswith(str(path))
    assert "Remove the file" in str(error.value)
    assert path.read_bytes() == stored


def test_every_part_of_a_gzip_file_is_read(tmp_path):
    """Files made by parallel compressors have several members."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(IMAGES[:30]) + gzip.compress(IMAGES[30:]))
    np.testing.assert_array_equal(files.read_idx(path, sha256(IMAGES)), TRAIN)


# --- CIFAR-10 ----------------------------------------------------------------------------------


@pytest.fixture
def archive(monkeypatch, cache):
    """Small archive in place of CIFAR-10: one image per file, random, labels 0 to 5."""
    planes = np.random.default_rng(0).integers(256, size=(6, 3, 32, 32), dtype=np.uint8)
    records = {
        name: bytes([i]) + planes[i].tobytes() for i, name in enumerate(files._CIFAR_BATCHES)
    }
    content = cifar_archive(records)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(files.CHECKSUMS, "cifar10", {files.CIFAR_FILE: md5})
    return content, planes


def test_cifar_planes_become_channels(local, archive):
    """Label, then the planes of red, green and blue; test images last, whatever the order."""
    content, planes = archive
    folder = local.parent / "cifar10"
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)
    adata = datasets.cifar10()
    assert adata.shape == (6, 3072) and adata.X.dtype == np.uint8
    assert adata.uns["image_shape"].tolist() == [32, 32, 3]
    images = adata.X.reshape(6, 32, 32, 3)
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], planes[:, channel])
    assert adata.obs["label"].tolist() == "airplane automobile bird cat deer dog".split()
    assert adata.obs["label"].cat.categories[-1] == "truck"
    assert adata.obs["split"].tolist() == ["train"] * 5 + ["test"]
    assert files_below(folder) == [folder / "cifar-10-binary.tar.gz"]


def test_cifar_archive_with_another_checksum_is_refused(local, archive):
    """Before anything in it is looked at."""
    folder = local.parent / "cifar10"
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(archive[0][:-1])
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz must be the original"):
        datasets.cifar10()


# --- downloads ---------------------------------------------------------------------------------


def serve(server, contents, dataset="mnist"):
    for name, content in contents.items():
        server.served[f"/{dataset}/{name}.gz"] = gzip.compress(content)


def test_download_happens_once(server, contents, cache, capsys):
    """Four requests, with bars of progress; the second call reads the cache."""
    serve(server, contents)
    assert_small_mnist(datasets.mnist())
    assert "100%" in capsys.readouterr().err
    expected = [f"/mnist/{name}" for name in files._IDX_FILES]
    assert server.requests == expected
    assert sorted(files_below(cache)) == sorted(cache / "mnist" / n for n in files._IDX_FILES)
    assert_small_mnist(datasets.mnist())
    assert server.requests == expected


def test_only_missing_files_are_downloaded(server, contents, local):
    """What is in the local folder is not asked for."""
    serve(server, contents)
    missing = "t10k-labels-idx1-ubyte"
    write_idx(local, {name: c for name, c in contents.items() if name != missing})
    assert_small_mnist(datasets.mnist())
    assert server.requests == [f"/mnist/{missing}.gz"]


def test_cifar_is_downloaded(server, archive):
    """The archive is asked for under its own name."""
    server.served["/cifar10/cifar-10-binary.tar.gz"] = archive[0]
    assert datasets.cifar10().shape == (6, 3072)
    assert server.requests == ["/cifar10/cifar-10-binary.tar.gz"]


def test_second_address_is_tried(server, contents, monkeypatch):
    """After an address that does not answer, and after one without the file."""
    serve(server, contents)
    addresses = ("http://127.0.0.1:9/", f"{server.address}gone/", f"{server.address}mnist/")
    monkeypatch.setitem(files.ADDRESSES, "mnist", addresses)
    assert_small_mnist(datasets.mnist())
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    ("fault", "reason", "cause"),
    [
        pytest.param("closed", "Connection refused", OSError, id="closed_port"),
        pytest.param("absent", "404", OSError, id="server_without_the_file"),
        pytest.param("cut", "IncompleteRead|Connection broken", OSError, id="cut_off"),
        pytest.param("page", "must begin with the bytes", ValueError, id="page_in_its_place"),
        pytest.param("changed", "must be the original", ValueError, id="changed_file"),
    ],
)
def test_failed_downloads_tell_what_to_do(
    server, contents, cache, monkeypatch, fault, reason, cause
):
    """The message has files, folders, addresses and reasons; nothing stays in the cache."""
    first = "/mnist/train-images-idx3-ubyte.gz"
    serve(server, contents)
    if fault == "closed":
        monkeypatch.setitem(files.ADDRESSES, "mnist", ("http://127.0.0.1:9/",))
    elif fault == "absent":
        server.served.clear()
    elif fault == "cut":
        server.announced = 10_000
    elif fault == "page":
        server.served[first] = b"<html>Please log in</html>"
    else:
        server.served[first] = gzip.compress(IMAGES[:-1] + b"!")
    with pytest.raises(FileNotFoundError, match=reason) as error:
        datasets.mnist()
    message = str(error.value)
    assert isinstance(error.value.__cause__, cause)
    assert files.ADDRESSES["mnist"][0] in message
    assert f"is not in {cache / 'mnist'}" in message
    assert ", ".join(files._IDX_FILES) in message
    assert f"SCGMVAE_DATA_DIR names (not set), or into {cache / 'mnist'}" in message
    assert files_below(cache) == []


def test_failed_download_names_the_local_folder(local, cache):
    """With the variable set, both folders were looked in."""
    with pytest.raises(FileNotFoundError, match="could not be downloaded") as error:
        datasets.cifar10()
    folders = f"{local.parent / 'cifar10'} or {cache / 'cifar10'}"
    assert f"cifar-10-binary.tar.gz of cifar10 is not in {folders}" in str(error.value)
    assert f"names ({local.parent})" in str(error.value)


# --- the published files -----------------------------------------------------------------------


@needs_mnist
def test_real_mnist(tmp_path):
    """Known first labels and class counts; the shape survives a file."""
    adata = datasets.mnist()
    assert adata.shape == (70000, 784) and adata.X.dtype == np.uint8
    assert adata.uns["image_shape"].tolist() == [28, 28]
    label, split = adata.obs["label"], adata.obs["split"]
    assert label.iloc[:5].tolist() == ["5", "0", "4", "1", "9"]
    assert (split.iloc[:60000] == "train").all() and (split.iloc[60000:] == "test").all()
    assert label.iloc[60000] == "7"
    assert (label[split == "train"].value_counts()[["0", "9"]] == [5923, 5949]).all()
    assert (label[split == "test"].value_counts()[["0", "9"]] == [980, 1009]).all()
    # Mean and standard deviation of the training pixels, as they are given everywhere.
    train = adata.X[:60000] / np.float32(255)
    assert train.mean() == pytest.approx(0.1307, abs=5e-5)
    assert train.std() == pytest.approx(0.3081, abs=5e-5)
    adata[:100].copy().write_h5ad(tmp_path / "mnist.h5ad")
    again = ad.read_h5ad(tmp_path / "mnist.h5ad")
    assert again.X.dtype == np.uint8
    np.testing.assert_array_equal(again.X, adata.X[:100])
    assert again.uns["image_shape"].tolist() == [28, 28]
    assert tuple(again.uns["image_shape"]) == (28, 28)


@needs_fashion
def test_real_fashion_mnist():
    """Classes of equal size, an ankle boot first."""
    adata = datasets.fashion_mnist()
    assert adata.shape == (70000, 784)
    assert adata.obs["label"].iloc[[0, 60000]].tolist() == ["Ankle boot", "Ankle boot"]
    sizes = adata.obs.groupby(["split", "label"], observed=True).size()
    assert (sizes["train"] == 6000).all() and (sizes["test"] == 1000).all()
