"""Tests of images as rows of X: shape, bytes, distortions, networks, training, refusals."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import LearningRateMonitor
from scipy import sparse, stats
from scvi import REGISTRY_KEYS as KEYS
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from scgmvae import SCGMVAE
from scgmvae.clustering.partition import initial_partition
from scgmvae.data import images
from scgmvae.data.images import check_same_shape, distorted, image_shape_of, pixel_scale
from scgmvae.data.minibatches import MinibatchLoader
from scgmvae.module.cgmvae import CGMVAE
from scgmvae.train.recipe import COUNTS, IMAGES, Length

N = 200
BYTES = np.round(load_digits().data[:N] * 255 / 16).astype(np.uint8)
SMALL = {"n_hidden": (16, 8), "n_components": 3, "n_latent": 3, "n_latent_w": 2}


def make_images(kind="bytes", shape=(8, 8), n=N):
    """Digits as bytes, floats or sparse bytes; of another shape, what fits of noise."""
    x = BYTES[:n]
    if shape is not None and np.prod(shape) != 64:
        x = np.random.default_rng(0).integers(256, size=(n, int(np.prod(shape)))).astype(np.uint8)
    x = {
        "bytes": lambda: x.copy(),
        "floats": lambda: (x / 255).astype(np.float32),
        "sparse_bytes": lambda: sparse.csr_matrix(x),
    }[kind]()
    adata = AnnData(x)
    if shape is not None:
        adata.uns["image_shape"] = shape
    return adata


def manager_of(adata):
    SCGMVAE.setup_anndata(adata)
    return SCGMVAE._get_most_recent_anndata_manager(adata)


# ----------------------------------------------------------------------------- shape and scale


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param((3, 4), (3, 4), id="tuple"),
        pytest.param([3, 4], (3, 4), id="list"),
        # what a file gives back
        pytest.param(np.array([2, 2, 3]), (2, 2, 3), id="array_with_channels"),
        pytest.param(np.array([3.0, 4.0]), (3, 4), id="whole_floats"),
        pytest.param(None, None, id="none"),
    ],
)
def test_the_shape_of_images_comes_as_whole_numbers(given, expected):
    adata = AnnData(np.zeros((2, 12)), uns={"image_shape": given})
    shape = image_shape_of(adata)
    assert shape == expected
    assert shape is None or all(type(size) is int for size in shape)
    assert image_shape_of(AnnData(np.zeros((2, 12)))) is None


BAD_SHAPES = [
    pytest.param((8,), "(8,)", id="one_number"),
    pytest.param((8, 8, 1, 1), "(8, 8, 1, 1)", id="four_numbers"),
    pytest.param((6.4, 10), "(6.4, 10)", id="fraction"),
    pytest.param((-8, -8), "(-8, -8)", id="negative"),
    pytest.param((0, 8), "(0, 8)", id="zero"),
    pytest.param((np.nan, 8), "(nan, 8)", id="nan"),
    pytest.param("8x8", "'8x8'", id="string"),
    pytest.param({"height": 8}, "{'height': 8}", id="mapping"),
]


@pytest.mark.parametrize(("given", "found"), BAD_SHAPES)
def test_a_shape_that_is_none_is_refused(given, found):
    adata = AnnData(np.zeros((2, 64)), uns={"image_shape": given})
    with pytest.raises(ValueError) as error:
        image_shape_of(adata)
    assert "must be (height, width) or (height, width, channels)" in str(error.value)
    assert str(error.value).endswith(f"but it is {found}.")


@pytest.mark.parametrize("shape", [(8, 7), (8, 8, 3)])
def test_a_shape_that_does_not_fill_a_row_is_refused(shape):
    adata = AnnData(np.zeros((2, 64)), uns={"image_shape": shape})
    with pytest.raises(ValueError) as error:
        image_shape_of(adata)
    for part in (str(shape), f"makes {np.prod(shape)} values", "there are 64 columns"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("kind", "shape", "expected", "passes"),
    [
        pytest.param("bytes", (8, 8), (8, 8), True, id="same"),
        pytest.param("bytes", (8, 8), [8, 8], True, id="same_as_a_list"),
        pytest.param("floats", (8, 8), (8, 8), True, id="floats"),
        pytest.param("floats", None, (8, 8), True, id="floats_without"),
        pytest.param("floats", None, None, True, id="no_images"),
        pytest.param("bytes", None, None, True, id="bytes_for_no_images"),
        pytest.param("bytes", None, (8, 8), False, id="bytes_without"),
        pytest.param("sparse_bytes", None, (8, 8), False, id="sparse_bytes_without"),
        pytest.param("floats", (4, 16), (8, 8), False, id="another"),
        pytest.param("floats", (8, 8, 1), (8, 8), False, id="with_a_channel"),
        pytest.param("floats", (8, 8), None, False, id="images_for_no_images"),
    ],
)
def test_new_data_have_the_shape_of_the_model(kind, shape, expected, passes):
    adata = make_images(kind, shape=None)
    if shape is not None:
        adata.uns["image_shape"] = shape
    if passes:
        assert check_same_shape(manager_of(adata), expected) is None
        return
    wanted = None if expected is None else tuple(expected)
    with pytest.raises(ValueError) as error:
        check_same_shape(manager_of(adata), expected)
    message = f"The model reads images of shape {wanted}, but adata.uns['image_shape'] is {shape}."
    if expected is None:
        message = f"had no adata.uns['image_shape'] when it was made, but this has {shape}."
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "shape", "scale"),
    [
        pytest.param("bytes", (8, 8), 1 / 255, id="bytes"),
        pytest.param("sparse_bytes", (8, 8), 1 / 255, id="sparse_bytes"),
        pytest.param("floats", (8, 8), 1.0, id="floats"),
        pytest.param("bytes", None, 1.0, id="counts_as_bytes"),
    ],
)
def test_bytes_of_images_are_parts_of_255(kind, shape, scale):
    manager = manager_of(make_images(kind, shape))
    assert pixel_scale(manager) == scale
    x = torch.cat([batch[KEYS.X_KEY] for batch in MinibatchLoader(manager, batch_size=64)])
    assert x.dtype == torch.float32
    expected = BYTES / 255 if kind == "floats" else BYTES * scale
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-6)
    # a second pass reads the same: nothing was scaled in place
    again = torch.cat([batch[KEYS.X_KEY] for batch in MinibatchLoader(manager, batch_size=64)])
    assert torch.equal(again, x)


# ---------------------------------------------------------------------------------- distortions


def only(monkeypatch, **bounds):
    """Leave one kind of distortion."""
    kinds = ("turn", "shear", "growth", "right", "down")
    monkeypatch.setattr(images, "LARGEST_DISTORTION", [bounds.get(kind, 0.0) for kind in kinds])


def spots(n, shape=(21, 21), places=((10, 10),)):
    """Images with a bright pixel at each of the places, (n, H·W)."""
    x = torch.zeros(n, *shape)
    for row, column in places:
        x[:, row, column] = 1
    return x.flatten(1)


def centers_of(x, shape=(21, 21)):
    """Centre of mass of each image: row and column, (n, 2)."""
    x = x.view(-1, *shape)
    mass = x.sum((1, 2))
    rows = (x.sum(2) * torch.arange(shape[0])).sum(1) / mass
    columns = (x.sum(1) * torch.arange(shape[1])).sum(1) / mass
    return torch.stack([rows, columns], 1)


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 3), (4, 7, 1)])
def test_no_distortion_is_the_identity(shape):
    x = torch.rand(4, int(np.prod(shape)))
    torch.testing.assert_close(distorted(x, shape, 0.0), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "axis"), [("down", 0), ("right", 1)])
@pytest.mark.parametrize("amount", [0.5, 1.0])
def test_images_move_uniformly_up_to_the_bound(monkeypatch, kind, axis, amount):
    only(monkeypatch, **{kind: 4 / 21})
    torch.manual_seed(0)
    moved = (centers_of(distorted(spots(2000), (21, 21), amount)) - 10).numpy()
    largest = 4 * amount  # pixels
    assert np.abs(moved[:, 1 - axis]).max() < 1e-3
    assert stats.kstest(moved[:, axis], "uniform", (-largest, 2 * largest)).pvalue > 1e-3


def test_images_turn_about_their_middle(monkeypatch):
    only(monkeypatch, turn=0.3)
    torch.manual_seed(0)
    start = np.array([0.0, 8.0])  # a spot that far from the middle
    moved = centers_of(distorted(spots(500, places=[(10, 18)]), (21, 21))).numpy() - 10
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 8, atol=0.15)
    angles = np.arctan2(moved[:, 0], moved[:, 1]) - np.arctan2(*start)
    assert 0.27 < np.abs(angles).max() < 0.31
    assert abs(angles.mean()) < 4 * 0.3 / np.sqrt(3 * 500)


def test_images_that_are_no_squares_turn_by_the_angle(monkeypatch):
    only(monkeypatch, turn=0.15)
    torch.manual_seed(0)
    x = spots(300, shape=(21, 63), places=[(10, 51)])
    moved = centers_of(distorted(x, (21, 63)), (21, 63)).numpy() - [10, 31]
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 20, atol=0.3)
    assert np.abs(np.arctan2(moved[:, 0], moved[:, 1])).max() == pytest.approx(0.15, abs=0.01)


def test_distortions_are_as_exact_under_autocast():
    x = torch.rand(5, 28 * 28)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(distorted(x, (28, 28), 0.0), x, atol=1e-4, rtol=0)


def test_images_grow_and_shrink(monkeypatch):
    only(monkeypatch, growth=0.2)
    torch.manual_seed(0)
    moved = centers_of(distorted(spots(500, places=[(10, 16)]), (21, 21))).numpy() - 10
    # the pixel at 6 comes from a place 0.8 to 1.2 times as far out
    assert moved[:, 1].min() == pytest.approx(6 / 1.2, abs=0.15)
    assert moved[:, 1].max() == pytest.approx(6 / 0.8, abs=0.15)
    assert np.abs(moved[:, 0]).max() < 1e-3


def test_images_shear_along_rows(monkeypatch):
    only(monkeypatch, shear=0.5)
    torch.manual_seed(0)
    moved = centers_of(distorted(spots(500, places=[(16, 10)]), (21, 21))).numpy() - 10
    np.testing.assert_allclose(moved[:, 0], 6, atol=1e-3)
    assert np.abs(moved[:, 1]).max() == pytest.approx(3, abs=0.1)


def test_channels_are_distorted_alike_and_images_differently():
    torch.manual_seed(0)
    grey = spots(3, places=[(4, 15)])
    colour = torch.stack([grey, 2 * grey, 3 * grey], -1).flatten(1)
    before = colour.clone()
    moved = distorted(colour, (21, 21, 3)).view(3, -1, 3)
    torch.testing.assert_close(moved, moved[..., :1] * torch.tensor([1.0, 2.0, 3.0]))
    assert not torch.allclose(moved[0], moved[1], atol=1e-2)
    assert torch.equal(colour, before)


def test_the_encoder_sees_distorted_images_and_the_loss_those_that_are(train, monkeypatch):
    seen, loss = {True: [], False: []}, CGMVAE.loss

    def remember(self, tensors, *args, **kwargs):
        x = self._get_inference_input(tensors)["x"]
        seen[self.training].append((tensors[KEYS.X_KEY].clone(), x.clone()))
        return loss(self, tensors, *args, **kwargs)

    monkeypatch.setattr(CGMVAE, "loss", remember)
    adata = make_images("floats", n=40)
    model = SCGMVAE(adata, prior="normal", **SMALL)
    how = {"max_epochs": 1, "pretrain_epochs": 0, "train_size": 0.5, "check_val_every_n_epoch": 1}
    train(model, plan_kwargs={"distortion": 1.0}, **how)
    x, distorted_x = (torch.cat(part) for part in zip(*seen[True], strict=True))
    rows = [int((torch.from_numpy(adata.X) - image).abs().sum(1).argmin()) for image in x]
    np.testing.assert_array_equal(x, adata.X[rows])
    assert sorted(rows) == sorted(model.train_indices)
    difference = (distorted_x - x).abs().mean(1)
    assert 0.005 < difference.min() < difference.max() < 0.3
    held_out, as_seen = seen[False][-1]
    assert torch.equal(held_out, as_seen)


# ------------------------------------------------------------------------- bytes in the model


@pytest.mark.parametrize("kind", ["bytes", "sparse_bytes"])
def test_bytes_train_the_same_model_as_floats_and_stay_bytes(train, kind):
    models = {}
    for name in (kind, "floats"):
        adata = make_images(name)
        before = adata.X.copy()
        model = SCGMVAE(adata, prior="normal", **SMALL)
        models[name] = train(model, seed=3)
        assert adata.X.dtype == before.dtype
        assert type(adata.X) is type(before)
        assert abs(adata.X - before).max() == 0
    weights, expected = (models[name].module.state_dict() for name in (kind, "floats"))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        # Batch normalisation takes a bias before it out again. Its gradient is rounding alone,
        # which Adam turns into steps of full length.
        if ".linears." in name and name.endswith(".bias") or name.endswith(".running_mean"):
            continue
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    np.testing.assert_allclose(
        models[kind].get_reconstruction(), models["floats"].get_reconstruction(), atol=1e-3
    )
    # and each reads the other's data
    np.testing.assert_allclose(
        models[kind].get_reconstruction(make_images("floats")),
        models[kind].get_reconstruction(),
        atol=1e-5,
    )


# ------------------------------------------------------------------------------ default settings


def widths(trunk):
    return [linear.weight.shape[1] for linear in trunk.linears]


@pytest.mark.parametrize(
    ("settings", "encoder", "likelihood"),
    [
        pytest.param({}, [512, 256, 128], "bernoulli", id="defaults"),
        pytest.param({"n_hidden": 32}, [32], "bernoulli", id="one_layer"),
        pytest.param({"n_hidden": (40, 30, 20)}, [40, 30, 20], "bernoulli", id="widths"),
        pytest.param({"n_hidden": [40, 30]}, [40, 30], "bernoulli", id="list"),
        pytest.param({"n_layers": 2}, [128, 128], "bernoulli", id="two_layers"),
        pytest.param({"n_layers": 0}, [], "bernoulli", id="linear"),
        pytest.param({"likelihood": "gaussian"}, [512, 256, 128], "gaussian", id="gaussian"),
    ],
)
def test_networks_and_likelihood_of_images(settings, encoder, likelihood):
    module = SCGMVAE(make_images(), n_components=2, **settings).module
    assert module.gene_likelihood == likelihood
    assert module.image_shape == (8, 8)
    assert module.encoder.trunk.dropout.p == 0
    assert widths(module.encoder.trunk) == encoder
    assert widths(module.decoder.trunk) == encoder[::-1]
    # the small networks are as wide as the layer next to z
    assert widths(module.classifier.trunk) == [encoder[-1] if encoder else 128]


def test_data_without_a_shape_keep_the_settings_of_counts(counts):
    module = SCGMVAE(counts.copy(), n_components=2).module
    assert (module.gene_likelihood, module.image_shape) == ("nb", None)
    assert module.encoder.trunk.dropout.p == 0.1
    assert widths(module.encoder.trunk) == widths(module.decoder.trunk) == [128]


@pytest.mark.parametrize(
    ("n_obs", "n_epochs"),
    [
        pytest.param(128, 60, id="no_more_than_the_longest"),
        pytest.param(4_271, 10, id="minibatches_of_128"),
        pytest.param(60_000, 5, id="no_fewer_than_the_shortest"),
    ],
)
def test_the_length_of_a_stage_is_a_number_of_minibatches(n_obs, n_epochs):
    assert Length(n_steps=320, shortest=5, longest=60).epochs(n_obs) == n_epochs


def test_images_are_trained_by_the_recipe_of_images(train, monkeypatch):
    straightened = []

    def remember(x, n_groups, method, seed, straight):
        straightened.append(straight)
        return np.arange(len(x)) % n_groups

    monkeypatch.setattr("scgmvae.model.start.initial_partition", remember)
    x = np.random.default_rng(0).random((1000, 4), dtype=np.float32)
    images = AnnData(x, uns={"image_shape": (2, 2)})
    history, lengths = {}, {}
    for name, adata in (("images", images), ("values", AnnData(x))):
        model = SCGMVAE(adata, likelihood="bernoulli", **SMALL)
        how = {"callbacks": [LearningRateMonitor()], "log_every_n_steps": 1, "start": "leiden"}
        train(model, pretrain_epochs=None, max_epochs=2, batch_size=1000, **how)
        lengths[name] = model.history["lr-Adam"].to_numpy(float)[:, 0]
        history[name] = {
            key: values.to_numpy(float)[:, 0] for key, values in model.history.items()
        }
    n_pretraining = {
        name: recipe.pretraining.epochs(1000)
        for name, recipe in (("images", IMAGES), ("values", COUNTS))
    }
    for name, top in (("images", IMAGES.plan["max_kl_weight"]), ("values", 1.0)):
        weight = history[name]["kl_weight"]
        assert len(weight) == n_pretraining[name] + 2
        n_warmup = int(np.ceil(0.33 * n_pretraining[name]))
        assert np.all(np.diff(weight[: n_warmup - 1]) > 0)
        # in the rest of pretraining and in the joint stage
        np.testing.assert_allclose(weight[n_warmup:], top, rtol=1e-6)
    assert IMAGES.plan["max_kl_weight"] < 1
    assert straightened == [False, True]
    # half of two joint epochs is left after the first: of 0.64 for each of four pixels, or, of the
    # two thirds over which the guide of other values lasts, a quarter of 10
    for name, weight in (("images", 0.64 * 4 / 2), ("values", 10 * (1 - 1 / 1.34))):
        assert history[name]["guide_weight"][-2] == pytest.approx(weight)
        assert history[name]["guide_weight"][-1] == pytest.approx(0, abs=1e-6)
    # Adam's steps, of one minibatch an epoch: the second of the joint stage has half the length
    for name, length in (("images", 0.5e-3), ("values", 1e-3)):
        assert lengths[name][-2:] == pytest.approx([1e-3, length])


def test_labels_of_images_weigh_with_the_number_of_pixels(train, monkeypatch):
    weights = []
    loss = CGMVAE.loss

    def remember(self, *args, classification_weight, **kwargs):
        weights.append(classification_weight)
        return loss(self, *args, classification_weight=classification_weight, **kwargs)

    monkeypatch.setattr(CGMVAE, "loss", remember)
    adata = make_images(n=60)
    adata.obs["label"] = np.where(np.arange(60) % 2, "odd", "even")
    SCGMVAE.setup_anndata(adata, labels_key="label")
    train(SCGMVAE(adata, **SMALL), start="kmeans")
    assert set(weights) == {0.64 * adata.n_vars}


PRETRAIN_WEIGHT, MAX_WEIGHT = (
    IMAGES.plan[name] for name in ("pretrain_kl_weight", "max_kl_weight")
)


@pytest.mark.parametrize(
    ("settings", "plan", "tops"),
    [
        pytest.param({"prior": "normal"}, {}, (1.0, 1.0), id="vae"),
        pytest.param({}, {"max_kl_weight": 0.5}, (PRETRAIN_WEIGHT, 0.5), id="max"),
        pytest.param({}, {"pretrain_kl_weight": 0.2}, (0.2, MAX_WEIGHT), id="pretraining"),
    ],
)
def test_weights_of_the_divergence_can_be_told_apart_by_stage(train, settings, plan, tops):
    model = SCGMVAE(make_images(n=60), **SMALL, **settings)
    train(model, pretrain_epochs=4, max_epochs=3, start="kmeans", plan_kwargs=plan)
    weight = model.history["kl_weight"].to_numpy(float)[:, 0]
    # written at the end of an epoch, so the last one of pretraining has the joint stage's
    np.testing.assert_allclose(weight[[2, 5]], tops, rtol=1e-6)


# --------------------------------------------------------------------------------- convolutions


@pytest.fixture(scope="module")
def conv_images():
    """Digits of which those of batch b lie on a light background; only to be read."""
    adata = make_images("floats")
    light = np.arange(N) % 2 == 1
    adata.X[light] = np.maximum(adata.X[light], 0.4)
    adata.obs["batch"] = np.where(light, "b", "a")
    return adata


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"likelihood": "bernoulli"}, id="bernoulli"),
        pytest.param({"likelihood": "gaussian", "gaussian_scale": 0.2}, id="gaussian"),
    ],
)
def conv_model(request, conv_images, make_model, train):
    """Convolutional model of images under two conditions; only to be read."""
    model = make_model(
        conv_images.copy(),
        setup={"batch_key": "batch"},
        encoder="conv",
        n_latent=4,
        **request.param,
    )
    how = {"max_epochs": 6, "pretrain_epochs": 200, "start": "kmeans", "batch_size": 25}
    how["guide_weight"] = 10.0  # the images are what is to be learned in so few steps
    return train(model, plan_kwargs={"lr": 3e-3}, **how)


def test_a_convolutional_model_learns_the_images(conv_model, conv_images):
    error = conv_model.history["reconstruction_loss_train"].to_numpy(float)[:, 0]
    assert error[-1] < error[0] - 2
    mean_image = conv_images.to_df().groupby(conv_images.obs["batch"]).transform("mean").to_numpy()
    of_mean = ((conv_images.X - mean_image) ** 2).mean()
    # measured: 0.54 to 0.67 of it, over seeds
    assert ((conv_images.X - conv_model.get_reconstruction()) ** 2).mean() < 0.8 * of_mean
    assert sorted(conv_model.adata.obs["scgmvae"].cat.categories) <= ["0", "1", "2"]


def test_a_convolutional_model_repaints_the_background(conv_model):
    rows = np.flatnonzero(conv_model.adata.obs["batch"] == "a")
    same, other = (
        conv_model.predict_counterfactual(conditions={"batch": batch}, indices=rows)
        for batch in ("a", "b")
    )
    corner = slice(0, 1)  # background in every digit
    assert conv_model.adata.X[rows, corner].max() < 0.3
    assert same.layers["rate"][:, corner].mean() < 0.2
    assert other.layers["rate"][:, corner].mean() > 0.3
    assert set(other.obs["batch"]) == {"b"}
    assert set(other.obs["batch_from"]) == {"a"}


def test_a_convolutional_model_survives_saving(conv_model, conv_images, tmp_path):
    conv_model.save(tmp_path / "model")
    expected = conv_model.get_reconstruction()
    for adata in (conv_images.copy(), False):
        loaded = SCGMVAE.load(tmp_path / "model", adata=adata, accelerator="cpu")
        assert loaded.module.image_shape == (8, 8)
        assert loaded.module.gene_likelihood == conv_model.module.gene_likelihood
        for name, value in conv_model.module.state_dict().items():
            assert torch.equal(loaded.module.state_dict()[name], value), name
        given = None if adata is not False else conv_images.copy()
        np.testing.assert_array_equal(loaded.get_reconstruction(given), expected)
        with pytest.raises(ValueError, match=r"reads images of shape \(8, 8\), but .* is None"):
            loaded.get_reconstruction(with_batch(make_images("bytes", shape=None)))


def with_batch(adata):
    adata.obs["batch"] = "a"
    return adata


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        pytest.param({"encoder": "conv"}, 0.0, id="conv"),
        pytest.param({"encoder": "conv", "input_dropout_rate": 0.2}, 0.2, id="conv_told"),
        pytest.param({"encoder": "mlp"}, 0.3, id="mlp"),
    ],
)
def test_convolutions_are_shown_all_pixels_unless_told_otherwise(settings, hidden):
    model = SCGMVAE(make_images("floats"), n_components=3, **settings)
    model.module.train()
    seen = model.module.encoder.input_dropout(torch.ones(100, 64))
    assert (seen == 0).float().mean().item() == pytest.approx(hidden, abs=0.03)


@pytest.mark.parametrize("shape", [(8, 9), (9, 8, 3)], ids=["grey", "colour"])
def test_convolutions_read_images_of_odd_sides_and_colours(train, shape):
    model = SCGMVAE(make_images("bytes", shape, n=64), encoder="conv", prior="none", n_latent=2)
    train(model, max_epochs=1)
    decoded = model.get_reconstruction()
    assert decoded.shape == (64, np.prod(shape))
    assert ((decoded > 0) & (decoded < 1)).all()
    # the mean of noise is about a half in every channel
    assert np.abs(decoded.mean(0) - 0.5).max() < 0.1


# ----------------------------------------------------------------------------------- bytes on disk


@pytest.mark.parametrize("save", ["write_h5ad", "save_anndata"])
def test_annotated_images_survive_a_file(train, tmp_path, save):
    adata = make_images(shape=np.array([8, 8]))
    model = train(SCGMVAE(adata, **SMALL), start="kmeans")
    if save == "write_h5ad":
        adata.write_h5ad(tmp_path / "images.h5ad")
        again = anndata.read_h5ad(tmp_path / "images.h5ad")
    else:
        model.save(tmp_path / "model", save_anndata=True)
        again = SCGMVAE.load(tmp_path / "model", accelerator="cpu").adata
    assert image_shape_of(again) == (8, 8)
    assert again.X.dtype == np.uint8
    np.testing.assert_array_equal(
        model.get_latent_representation(again), model.get_latent_representation()
    )


# --------------------------------------------------------------------------------- what is refused


BAD_MODELS = [
    pytest.param(
        lambda: make_images("floats"),
        lambda adata: adata.X.__setitem__((3, 4), 1.5),
        {},
        ["'bernoulli' wants values in [0, 1]", "adata.X reach from 0 to 1.5"],
        id="above_one",
    ),
    pytest.param(
        lambda: make_images("floats"),
        lambda adata: adata.X.__setitem__((3, 4), -0.25),
        {},
        ["'bernoulli' wants values in [0, 1]", "adata.X reach from -0.25 to 1"],
        id="below_zero",
    ),
    pytest.param(
        lambda: make_images("floats"),
        lambda adata: adata.X.__setitem__((3, 4), np.nan),
        {},
        ["adata.X holds NaN or infinite values (at least 1)"],
        id="nan",
    ),
    pytest.param(
        lambda: make_images("bytes", shape=None),
        None,
        {"likelihood": "bernoulli"},
        ["'bernoulli' wants values in [0, 1]", "adata.X reach from 0 to 255"],
        id="bytes_without_a_shape",
    ),
    pytest.param(
        make_images,
        lambda adata: adata.uns.__setitem__("image_shape", (8, 9)),
        {},
        ["(8, 9) makes 72 values", "there are 64 columns"],
        id="shape_of_other_columns",
    ),
    pytest.param(
        make_images,
        lambda adata: adata.uns.__setitem__("image_shape", (64,)),
        {},
        ["must be (height, width) or (height, width, channels)", "but it is (64,)"],
        id="shape_of_one_number",
    ),
    pytest.param(
        make_images,
        lambda adata: adata.uns.__setitem__("image_shape", (6.4, 10)),
        {},
        ["must be (height, width) or (height, width, channels)", "but it is (6.4, 10)"],
        id="shape_of_fractions",
    ),
    pytest.param(
        lambda: make_images("floats", shape=None),
        None,
        {"encoder": "conv", "likelihood": "bernoulli"},
        ["encoder='conv' needs the shape of the images", "Set adata.uns['image_shape']"],
        id="conv_without_a_shape",
    ),
    pytest.param(
        lambda: make_images(shape=(4, 16)),
        None,
        {"encoder": "conv"},
        ["halves height and width 3 times", "at least 8", "is (4, 16)", "encoder='mlp'"],
        id="conv_of_small_images",
    ),
    pytest.param(
        lambda: make_images("floats"),
        None,
        {"encoder": "conv", "likelihood": "nb"},
        ["goes with likelihood 'bernoulli' or 'gaussian'", "the likelihood is 'nb'"],
        id="conv_of_counts",
    ),
    pytest.param(
        make_images,
        None,
        {"likelihood": "poisson"},
        ["adata.X holds bytes of images, which are no counts", "the likelihood is 'poisson'"],
        id="bytes_as_counts",
    ),
    pytest.param(
        make_images, None, {"encoder": "cnn"}, ["encoder must be one of", "'cnn'"], id="encoder"
    ),
    pytest.param(
        make_images, None, {"n_hidden": ()}, ["must name at least one width"], id="no_width"
    ),
    pytest.param(
        make_images,
        None,
        {"n_hidden": (4, 0)},
        ["n_hidden must be an integer of at least 1", "but it is 0"],
        id="width_of_0",
    ),
    pytest.param(
        make_images,
        None,
        {"n_hidden": (8, 8), "n_layers": 2},
        ["n_hidden=(8, 8) says how many", "leave out n_layers=2"],
        id="widths_and_layers",
    ),
    pytest.param(
        make_images, None, {"n_layers": -1}, ["n_layers must be an integer of at least 0"], id="-1"
    ),
]


def assert_same(adata, before):
    """X, obs and uns are as in the copy made before."""
    assert adata.X.dtype == before.X.dtype
    np.testing.assert_array_equal(adata.X, before.X)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert dict(adata.uns) == dict(before.uns)
    assert dict(adata.obsm).keys() == dict(before.obsm).keys()


@pytest.mark.parametrize(("make", "spoil", "settings", "parts"), BAD_MODELS)
def test_what_no_model_can_be_made_of_is_refused(make, spoil, settings, parts):
    adata = make()
    if spoil is not None:
        spoil(adata)
    before = adata.copy()
    with pytest.raises(ValueError) as error:
        SCGMVAE(adata, n_components=2, **settings)
    for part in parts:
        assert part in str(error.value)
    assert_same(adata, before)


def test_distortions_of_what_are_no_images_are_refused(counts, make_model, train):
    model = make_model(counts.copy())
    before = model.adata.copy()
    with pytest.raises(ValueError, match=r"distortion is one of images, but the data are none"):
        train(model, plan_kwargs={"distortion": 1.0})
    pd.testing.assert_frame_equal(model.adata.obs, before.obs)
    assert not model.is_trained


def test_a_negative_distortion_is_refused(train):
    model = SCGMVAE(make_images(), **SMALL)
    with pytest.raises(ValueError, match="distortion must be at least 0, but it is -1"):
        train(model, plan_kwargs={"distortion": -1})


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_images_that_are_counts_are_not_distorted(train, likelihood):
    adata = make_images("floats")
    adata.X = np.round(adata.X * 16).astype(np.float32)
    model = SCGMVAE(adata, likelihood=likelihood, **SMALL)
    with pytest.raises(ValueError, match=f"no counts, but the likelihood is '{likelihood}"):
        train(model, plan_kwargs={"distortion": 1.0})
    assert not model.is_trained


@pytest.mark.parametrize("shape", [np.array([8, 8]), [8, 8], (8, 8)])
def test_the_shape_of_images_is_given_in_any_form(shape):
    adata = make_images("floats")
    assert SCGMVAE(adata, image_shape=shape, **SMALL).module.image_shape == (8, 8)
    with pytest.raises(ValueError, match=r"of shape \(4, 16\), but .* is \(8, 8\)"):
        SCGMVAE(make_images("floats"), image_shape=np.array([4, 16]), **SMALL)


@pytest.fixture(scope="module")
def image_model(train):
    """Small model of images as bytes; only to be read."""
    return train(SCGMVAE(make_images(), **SMALL), start="kmeans")


@pytest.mark.parametrize(
    ("kind", "shape", "parts"),
    [
        pytest.param("bytes", (4, 16), ["of shape (8, 8)", "is (4, 16)"], id="another_shape"),
        pytest.param("floats", (8, 8, 1), ["of shape (8, 8)", "is (8, 8, 1)"], id="a_channel"),
        pytest.param("bytes", None, ["of shape (8, 8)", "is None"], id="bytes_without"),
        pytest.param("floats", (8, 7), ["makes 56 values", "64 columns"], id="no_fit"),
    ],
)
def test_new_data_of_another_shape_are_refused(image_model, kind, shape, parts):
    adata = make_images(kind, shape=None)
    if shape is not None:
        adata.uns["image_shape"] = shape
    before = adata.copy()
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            image_model.get_latent_representation(adata)
        for part in parts:
            assert part in str(error.value)
    assert_same(adata, before)


def test_a_query_of_another_shape_is_refused(image_model):
    adata = make_images("bytes", shape=None)
    before = adata.copy()
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\), but .* is None"):
        SCGMVAE.load_query_data(adata, image_model)
    assert_same(adata, before)


def test_a_layer_of_bytes_without_a_shape_is_refused(train):
    def with_layer(shape):
        adata = make_images(shape=shape)
        adata.layers["pixels"] = adata.X
        adata.X = np.zeros(adata.shape, dtype=np.float32)
        return adata

    adata = with_layer((8, 8))
    SCGMVAE.setup_anndata(adata, layer="pixels")
    model = train(SCGMVAE(adata, likelihood="gaussian", **SMALL), start="kmeans")
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\), but .* is None"):
        model.get_latent_representation(with_layer(None))


@pytest.mark.filterwarnings("ignore:Some genes are treated as unobserved")
def test_images_of_bytes_that_lack_a_pixel_are_read_as_those_of_floats(train):
    model = train(SCGMVAE(make_images(), likelihood="gaussian", **SMALL), start="kmeans")
    values = []
    for kind in ("bytes", "floats"):
        adata = make_images(kind)[:, :-1].copy()
        values.append(model.get_latent_representation(adata))
    np.testing.assert_allclose(*values, atol=1e-4)


# ------------------------------------------------------------------------------ straight borders


def test_straight_borders_put_each_cell_to_the_nearest_mean():
    # a long group beside a round one: the ends of the long one are nearer to the other's mean
    rng = np.random.default_rng(0)
    round_group = rng.normal(scale=0.3, size=(200, 2)) + [4, 1.5]
    x = np.concatenate([rng.normal(size=(200, 2)) * [2.5, 0.1], round_group]).astype(np.float32)
    ragged = initial_partition(x, 2, straight=False)
    straight = initial_partition(x, 2)
    means = np.stack([x[ragged == k].mean(0) for k in (0, 1)])
    nearest = ((x[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest != ragged).sum() > 5
    assert adjusted_rand_score(straight, nearest) == 1


# -------------------------------------------------------------------- models that meet new images


@pytest.mark.parametrize("way", ["load", "query"])
def test_images_of_another_shape_are_refused(train, tmp_path, way):
    model = train(SCGMVAE(make_images(), **SMALL), start="kmeans")
    other = make_images(shape=(4, 16))
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\), but .* is \(4, 16\)"):
        if way == "load":
            SCGMVAE.load(tmp_path / "model", other, accelerator="cpu")
        else:
            SCGMVAE.load_query_data(other, model)


def test_a_shape_that_is_given_must_fit_the_columns():
    with pytest.raises(ValueError, match=r"image_shape \(5, 5\) makes 25 values, but x has 64"):
        SCGMVAE(make_images("floats", shape=None), image_shape=(5, 5), **SMALL)


@pytest.mark.parametrize("settings", [{"encoder": "conv"}, {"n_hidden": 16, "n_layers": 0}])
def test_a_query_of_images_leaves_the_reference_as_it_was(train, settings):
    reference, new = make_images(n=120), make_images(n=80)
    reference.obs["batch"] = np.repeat(["a", "b"], 60)
    new.obs["batch"] = "c"
    SCGMVAE.setup_anndata(reference, batch_key="batch")
    model = train(SCGMVAE(reference, **SMALL | settings), start="kmeans")
    before = model.get_latent_representation()
    mapped = SCGMVAE.load_query_data(new, model)
    start = mapped.get_latent_representation()
    train(mapped, max_epochs=2)
    assert np.array_equal(mapped.get_latent_representation(reference), before)
    assert not np.array_equal(mapped.get_latent_representation(), start)


def test_generated_images_keep_their_shape(train):
    model = train(SCGMVAE(make_images(), **SMALL), start="kmeans")
    drawn = model.sample(5)
    assert image_shape_of(drawn) == (8, 8)
    assert set(np.unique(drawn.X)) <= {0.0, 1.0}


# ------------------------------------------------------------------------- models without mixture


@pytest.mark.parametrize("prior", ["normal", "none"])
def test_without_a_mixture_max_epochs_is_all_that_trains(prior):
    model = SCGMVAE(make_images(), prior=prior, **SMALL)
    model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False)
    assert len(model.history["elbo_train"]) == 3


def test_labels_do_not_change_how_often_a_vae_sees_cells():
    adata = make_images()
    adata.obs["label"] = ["a", "b"] + ["unknown"] * (N - 2)
    SCGMVAE.setup_anndata(adata, labels_key="label")
    copies = {
        prior: SCGMVAE(adata, prior=prior, **SMALL)._copies(None)
        for prior in ("normal", "dirichlet")
    }
    assert copies["normal"] is None
    assert copies["dirichlet"][:2].sum() == pytest.approx(0.1 * copies["dirichlet"].sum())


def test_a_guide_without_components_is_refused():
    adata = make_images()
    adata.obs["group"] = "a"
    model = SCGMVAE(adata, prior="normal", **SMALL)
    with pytest.raises(ValueError, match="guide_key gives components their start, but prior="):
        model.train(guide_key="group", accelerator="cpu", enable_progress_bar=False)
