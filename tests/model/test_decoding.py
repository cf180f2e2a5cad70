"""Tests of model.decoding: what points of the latent stand for, against the weights by hand."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import special
from sklearn.datasets import load_digits

from scgmvae import SCGMVAE

N = 150
SETUP = {
    "batch_key": "batch",
    "categorical_covariate_keys": ["kind"],
    "continuous_covariate_keys": ["dose"],
}
CONDITIONS = {"batch": "b", "kind": "y", "dose": 0.7}


@pytest.fixture(scope="module")
def images():
    """150 digits under three conditions; only to be read."""
    adata = AnnData((load_digits().data[:N] / 16).astype(np.float32))
    adata.uns["image_shape"] = (8, 8)
    rng = np.random.default_rng(0)
    adata.obs["batch"] = np.array(["a", "b"])[np.arange(N) % 2]
    adata.obs["kind"] = np.array(["x", "y", "z"])[rng.integers(3, size=N)]
    adata.obs["dose"] = rng.normal(size=N)
    return adata


@pytest.fixture(scope="module", params=["bernoulli", "gaussian"])
def image_model(request, images, make_model, train):
    """Model of images under three conditions; only to be read."""
    model = make_model(images.copy(), setup=SETUP, likelihood=request.param, n_hidden=(24, 12))
    return train(model, start="kmeans")


@pytest.fixture(scope="module")
def autoencoder(images, train):
    """Linear autoencoder of images without conditions; only to be read."""
    adata = AnnData(images.X.copy(), uns={"image_shape": (8, 8)})
    return train(
        SCGMVAE(adata, prior="none", n_layers=0, n_latent=3, likelihood="gaussian"), max_epochs=1
    )


def by_hand(model, z, one_hots=(), continuous=None):
    """Outputs of an MLP decoder in evaluation mode, from its weights alone."""
    weights = {
        name.removeprefix("decoder."): value.double().numpy()
        for name, value in model.module.state_dict().items()
    }
    n_layers = len(model.module.decoder.trunk.linears)

    def affine(name, value):
        out = value @ weights[f"{name}.weight"] + weights[f"{name}.bias"]
        for i, one_hot in enumerate(one_hots):
            if f"{name}.offsets.{i}" in weights:
                out = out + one_hot @ weights[f"{name}.offsets.{i}"]
        if f"{name}.slopes" in weights:
            out = out + continuous @ weights[f"{name}.slopes"]
        return out

    value = np.asarray(z, dtype=float)
    for i in range(n_layers):
        value = affine(f"trunk.linears.{i}", value)
        mean, var, scale, bias = (
            weights[f"trunk.norms.{i}.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        value = np.maximum((value - mean) / np.sqrt(var + 1e-3) * scale + bias, 0)
    return affine("heads.0", value)


def one_hot(column):
    names = sorted(set(column))
    return np.eye(len(names))[[names.index(name) for name in column]]


# ------------------------------------------------------------------------------ reconstruction


def test_reconstruction_of_images_is_the_decoded_mean_of_z(image_model, images):
    output = by_hand(
        image_model,
        image_model.get_latent_representation(),
        [one_hot(images.obs["batch"]), one_hot(images.obs["kind"])],
        images.obs[["dose"]].to_numpy(),
    )
    is_gaussian = image_model.module.gene_likelihood == "gaussian"
    expected = output if is_gaussian else special.expit(output)
    reconstruction = image_model.get_reconstruction()
    assert reconstruction.shape == (N, 64)
    assert reconstruction.dtype == np.float32
    np.testing.assert_allclose(reconstruction, expected, rtol=1e-4, atol=1e-5)


def test_reconstruction_of_counts_has_the_library_size_of_the_cell(trained, counts):
    batch = one_hot(counts.obs["batch"].astype(str))
    output = by_hand(trained, trained.get_latent_representation(), [batch])
    library = np.asarray(counts.X.sum(1))
    expected = special.softmax(output, axis=1) * library
    reconstruction = trained.get_reconstruction()
    np.testing.assert_allclose(reconstruction, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reconstruction.sum(1), library[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("indices", "rows"),
    [
        pytest.param([5, 2, 2], [5, 2, 2], id="numbers"),
        pytest.param([-1], [N - 1], id="from_the_end"),
        pytest.param(np.arange(N) == 7, [7], id="mask"),
    ],
)
def test_reconstruction_of_some_cells(image_model, indices, rows):
    expected = image_model.get_reconstruction()[rows]
    actual = image_model.get_reconstruction(indices=indices, batch_size=2)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_reconstruction_of_other_images(image_model, images):
    other = images[::-1].copy()
    np.testing.assert_allclose(
        image_model.get_reconstruction(other),
        image_model.get_reconstruction()[::-1],
        rtol=1e-5,
        atol=1e-6,
    )


# -------------------------------------------------------------------------------- any points


def test_points_at_the_cells_decode_to_their_reconstruction(image_model, images):
    z, expected = image_model.get_latent_representation(), image_model.get_reconstruction()
    for row in range(4):
        conditions = images.obs[["batch", "kind", "dose"]].iloc[row].to_dict()
        decoded = image_model.decode(z[[row]], conditions)
        np.testing.assert_allclose(decoded, expected[[row]], rtol=1e-4, atol=1e-5)


def test_points_without_conditions_decode_to_the_reconstruction(autoencoder):
    z = autoencoder.get_latent_representation()
    np.testing.assert_allclose(autoencoder.decode(z), autoencoder.get_reconstruction(), atol=1e-6)
    np.testing.assert_allclose(autoencoder.decode(z), by_hand(autoencoder, z), atol=1e-5)


def test_points_take_the_conditions_they_are_given(image_model):
    z = np.random.default_rng(0).normal(size=(6, 5))
    decoded = image_model.decode(z, CONDITIONS)
    codes = np.tile([0, 1], (6, 1)), np.tile([0, 1, 0], (6, 1))
    output = by_hand(image_model, z, codes, np.full((6, 1), 0.7))
    is_gaussian = image_model.module.gene_likelihood == "gaussian"
    expected = output if is_gaussian else special.expit(output)
    np.testing.assert_allclose(decoded, expected, rtol=1e-4, atol=1e-5)
    for changed in ({"batch": "a"}, {"kind": "z"}, {"dose": -1.0}):
        assert np.abs(image_model.decode(z, CONDITIONS | changed) - decoded).max() > 1e-3


def test_many_points_decode_as_a_few_do(autoencoder):
    z = np.random.default_rng(0).normal(size=(2500, 3))  # more than are decoded at a time
    decoded = autoencoder.decode(z)
    assert decoded.shape == (2500, 64)
    few = [0, 1024, 2499]
    np.testing.assert_allclose(decoded[few], autoencoder.decode(z[few]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("library_size", [1.0, 5000])
def test_counts_are_decoded_at_a_library_size(trained, library_size):
    z = trained.get_latent_representation()[:5]
    decoded = trained.decode(z, {"batch": "batch_1"}, library_size)
    np.testing.assert_allclose(decoded.sum(1), library_size, rtol=1e-5)
    output = by_hand(trained, z, [np.tile([0, 1], (5, 1))])
    np.testing.assert_allclose(
        decoded, library_size * special.softmax(output, axis=1), rtol=1e-4, atol=1e-6
    )


# -------------------------------------------------------------------------------- components


def component_means(model, w):
    """Means of p(z|w,y) for every y, from the weights, (n_draws, K, L)."""
    weights = {name: value.double().numpy() for name, value in model.module.state_dict().items()}
    layer = "component_prior.trunk.linears.0"
    hidden = np.maximum(w @ weights[f"{layer}.weight"] + weights[f"{layer}.bias"], 0)
    loc = weights["component_prior.loc"]
    shift = (hidden @ weights["component_prior.shift.weight"].T).reshape(len(w), 2, *loc.shape)
    return loc + shift[:, 0]


@pytest.mark.parametrize("library_size", [1.0, 2000.0])
def test_components_are_decoded_at_their_means(trained, library_size):
    where = {"batch": "batch_0"}, library_size
    decoded = trained.decode_components(4, *where, seed=3)
    assert decoded.shape == (4, trained.n_components_, trained.adata.n_vars)
    torch.manual_seed(3)
    means = component_means(trained, torch.randn(4, trained.module.n_latent_w).double().numpy())
    for of_draw, z in zip(decoded, means, strict=True):
        np.testing.assert_allclose(of_draw, trained.decode(z, *where), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(decoded.sum(-1), library_size, rtol=1e-5)


def test_all_components_share_the_draws_of_w(images, make_model, train):
    # With a linear decoder and the same effect of w on every component, what two components
    # differ by is the same in every draw only where the draw is the same for both.
    adata = AnnData(images.X.copy(), uns={"image_shape": (8, 8)})
    model = make_model(adata, n_layers=0, likelihood="gaussian", prior="mixture")
    train(model, start="kmeans")
    with torch.no_grad():
        weight = model.module.component_prior.shift.weight
        weight.copy_(torch.randn(2, 1, 5, weight.shape[1]).expand(2, 3, 5, -1).flatten(0, 2))
    decoded = model.decode_components(5, seed=1)
    assert np.abs(decoded - decoded[:1]).max((1, 2))[1:].min() > 0.01
    difference = decoded - decoded[:, :1]
    assert np.abs(difference[:, 1:]).max((0, 2)).min() > 0.01
    np.testing.assert_allclose(difference, np.tile(difference[:1], (5, 1, 1)), atol=1e-4)


def test_components_under_a_learned_prior_of_w_follow_the_conditions(images, make_model, train):
    model = make_model(
        images.copy(), setup={"batch_key": "batch"}, condition_prior="learned", n_hidden=16
    )
    train(model, start="kmeans")
    module = model.module
    for code, batch in enumerate(["a", "b"]):
        tensors = model._tensors_of(2, {"batch": batch})
        torch.manual_seed(4)
        noise = torch.randn(2, module.n_latent_w)
        with torch.no_grad():
            center = module.condition_prior(module._conditions_of(tensors))
            z = module.component_density(center + noise, tensors).loc.numpy()
        assert tensors["batch"][:, 0].tolist() == [code, code]
        decoded = model.decode_components(2, {"batch": batch}, seed=4)
        for of_draw, means in zip(decoded, z, strict=True):
            np.testing.assert_allclose(of_draw, model.decode(means, {"batch": batch}), atol=1e-5)


def test_draws_follow_from_their_seed_and_leave_the_random_state(trained):
    where = {"batch": "batch_0"}
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    one = trained.decode_components(3, where, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    trained.decode(np.zeros((2, 5)), where)
    trained.get_reconstruction()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(12)
    np.testing.assert_array_equal(trained.decode_components(3, where, seed=1), one)
    assert np.abs(trained.decode_components(3, where, seed=2) - one).max() > 0
    # a mean of a component needs no draw of z, so one component differs between draws by w alone
    assert np.abs(one[0] - one[1]).max() > 0


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 6), (1, 2, 5)])
def test_points_of_another_space_are_refused(trained, shape):
    with pytest.raises(ValueError) as error:
        trained.decode(np.zeros(shape), {"batch": "batch_0"})
    assert "z must have shape (n, 5)" in str(error.value)
    assert f"it has shape {shape}" in str(error.value)


BAD_CONDITIONS = [
    pytest.param(
        None, "every registered condition, but 'batch', 'kind', 'dose' has none", id="no"
    ),
    pytest.param({"batch": "a", "dose": 1}, "condition, but 'kind' has none", id="one_missing"),
    pytest.param(
        CONDITIONS | {"batch": "c"}, "'c' is no value of the condition 'batch'", id="value"
    ),
    pytest.param(
        CONDITIONS | {"dose": "high"}, "'dose' is a continuous condition", id="no_number"
    ),
    pytest.param(CONDITIONS | {"side": 1}, "'side' is no condition that the model", id="unknown"),
    pytest.param([("batch", "a")], "must map columns to values", id="no_mapping"),
]


@pytest.mark.parametrize(("conditions", "message"), BAD_CONDITIONS)
def test_conditions_that_are_missing_or_unknown_are_refused(image_model, conditions, message):
    for decode in (
        lambda: image_model.decode(np.zeros((2, 5)), conditions),
        lambda: image_model.decode_components(2, conditions),
    ):
        with pytest.raises(ValueError) as error:
            decode()
        assert message in str(error.value)


def test_conditions_of_a_model_without_any_are_refused(autoencoder):
    with pytest.raises(ValueError, match="'batch' is no condition .* None is registered"):
        autoencoder.decode(np.zeros((2, 3)), {"batch": "a"})


@pytest.mark.parametrize("n_draws", [0, 1.5])
def test_a_number_of_draws_that_is_none_is_refused(trained, n_draws):
    with pytest.raises(ValueError, match="n_draws must be an integer of at least 1"):
        trained.decode_components(n_draws, {"batch": "batch_0"})


def test_models_without_components_have_none_to_decode(trained_normal, autoencoder):
    for model, prior in ((trained_normal, "normal"), (autoencoder, "none")):
        with pytest.raises(RuntimeError, match=f"no components: its prior is '{prior}'"):
            model.decode_components()


def test_an_untrained_model_decodes_nothing(counts, make_model):
    model = make_model(counts.copy())
    for read in (
        model.get_reconstruction,
        lambda: model.decode(np.zeros((1, 5))),
        model.decode_components,
    ):
        with pytest.raises(RuntimeError, match="[Tt]rain"):
            read()
