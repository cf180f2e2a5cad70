"""The short forms of the benchmarks of images, and of what was made with images, run through."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from scgmvae import SCGMVAE
from scgmvae.datasets import files


@pytest.mark.parametrize(
    ("script", "results"),
    [
        pytest.param("estimators.py", {"estimators": (4, None)}, id="estimators"),
        pytest.param(
            # one task of each kind
            "images.py --tasks mnist-20 mnist-100 fashion-10pct vae cifar speed",
            {
                "images-mnist-20": (1, "ACC"),
                "images-mnist-100": (1, "ACC"),
                "images-fashion-10pct": (1, "ACC"),
                "images-vae": (12, None),
                "images-cifar": (2, None),
                "images-speed": (1, None),
            },
            id="images",
        ),
        pytest.param(
            "studies/image_start.py",
            {
                "image_start-fashion": (24, "ACC"),
                "image_start-mnist": (24, "ACC"),
                "image_start-mnist-uneven": (24, "ACC"),
            },
            id="image_start",
        ),
        pytest.param(
            "studies/tested_images.py --tasks fashion",  # both are digits in the short form
            {"tested_images-fashion": (4, "ACC")},
            id="tested_images",
        ),
        pytest.param(
            "dual.py",
            {
                "dual-separation": (4, "sectors"),
                "dual-interactions": (3, "sectors"),
                "dual-strengths": (4, "sectors"),
                "dual-encoders": (2, "sectors"),
                "dual-decoders": (5, "sectors"),
                "dual-shaded": (3, "sectors"),
            },
            id="dual",
        ),
        pytest.param(
            "studies/ambient.py",
            {"ambient-10pct": (4, "specificity"), "ambient-20pct": (4, "specificity")},
            id="ambient",
        ),
    ],
)
def test_a_benchmark_writes_its_rows_with_machine_and_versions(script, results, check_benchmark):
    check_benchmark(script, results)


# ------------------------------------------------------------------------- photographs


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """The script of images, with a folder of data that is empty."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setenv("SCGMVAE_DATA_DIR", str(tmp_path))
    import images

    for cached in (images.load, images.photographs):
        cached.cache_clear()
    yield images
    for cached in (images.load, images.photographs):
        cached.cache_clear()


def write_archive(folder, monkeypatch, n_per_file=8):
    """A small archive in place of CIFAR-10, random images with labels."""
    rng = np.random.default_rng(0)
    records = rng.integers(256, size=(6, n_per_file, 1 + 3072), dtype=np.uint8)
    records[..., 0] %= 10
    path = folder / "cifar10" / files.CIFAR_FILE
    path.parent.mkdir()
    with tarfile.open(path, mode="w:gz") as tar:
        for name, content in zip(files._CIFAR_BATCHES, records, strict=True):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = content.nbytes
            tar.addfile(info, io.BytesIO(content.tobytes()))
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(files.CHECKSUMS, "cifar10", {files.CIFAR_FILE: md5})
    return records


def write_subset(folder, n=3510):
    path = folder / "cifar10_subset" / "cifar10_4000.npz"
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(256, size=(n, 8, 8, 3), dtype=np.uint8))


def test_all_photographs_are_trained_on_as_the_text_has_it(benchmark, tmp_path, monkeypatch):
    records = write_archive(tmp_path, monkeypatch)
    write_subset(tmp_path)  # of no account beside all of them
    train, test, is_all = benchmark.photographs(False)
    assert (train.shape, test.shape, is_all) == ((40, 3072), (8, 3072), True)
    planes = test.X.reshape(8, 32, 32, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(planes.reshape(8, -1), records[5, :, 1:])
    trainings = []

    def recorded(self, **settings):
        trainings.append((self, settings))
        train_model(self, **(settings | {"accelerator": "cpu"}))

    train_model = SCGMVAE.train
    monkeypatch.setattr(SCGMVAE, "train", recorded)
    rows = benchmark.cifar(3, False)
    assert [row["network"] for row in rows] == ["FC, all images", "CNN, all images"]
    for (model, settings), row in zip(trainings, rows, strict=True):
        assert (settings["max_epochs"], settings["seed"]) == (25, 3)
        assert settings["plan_kwargs"] == {"weight_decay": 1e-5}
        assert model.module.n_latent == 256
        assert len(model.history["elbo_train"]) == 25
        terms = model.get_elbo_terms(test).mean()
        assert row["reconstruction"] == pytest.approx(terms["reconstruction_loss"], rel=1e-5)
        assert row["loss"] > row["reconstruction"] > 0.69 * 3072  # noise has more than log 2


def test_a_part_of_the_photographs_has_500_held_out(benchmark, tmp_path):
    write_subset(tmp_path)
    train, test, is_all = benchmark.photographs(False)
    assert (train.n_obs, test.n_obs, is_all) == (3500, 10, False)
    assert train.uns["image_shape"].tolist() == [8, 8, 3]
