"""Tests of data.genes: new data brought to a model's genes, and what absent ones do."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse, special, stats
from scvi import REGISTRY_KEYS as KEYS
from sklearn.metrics import adjusted_rand_score

from scgmvae import SCGMVAE
from scgmvae.data.genes import match_genes, observed_genes
from scgmvae.data.keys import OBSERVED_KEY
from scgmvae.distributions.likelihoods import log_likelihood, make_likelihood
from scgmvae.module.cgmvae import CGMVAE

N, G = 6, 10
GENES = [f"g{i}" for i in range(G)]


def make_adata(names, kind=np.asarray):
    """Counts whose value says cell and gene: 100 · cell + gene + 1."""
    numbers = np.array([int(name[1:]) for name in names])
    x = (100 * np.arange(N)[:, None] + numbers + 1).astype(np.float32)
    adata = AnnData(
        kind(x),
        obs=pd.DataFrame({"batch": list("aabbcc")}, index=[f"c{i}" for i in range(N)]),
        var=pd.DataFrame({"number": numbers}, index=names),
        layers={"double": kind(2 * x)},
        obsm={"X_pca": np.arange(2.0 * N).reshape(N, 2)},
        uns={"note": "kept"},
    )
    return adata


def dense(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


KINDS = [
    pytest.param(np.asarray, id="dense"),
    pytest.param(sparse.csr_matrix, id="csr"),
]


def test_data_with_the_genes_in_order_is_taken_as_it_is():
    adata = make_adata(GENES)
    assert match_genes(adata, GENES) is adata
    assert match_genes(adata, np.array(GENES)) is adata
    assert observed_genes(adata) is None


@pytest.mark.parametrize(
    ("rename", "remedy"),
    [
        (lambda names: names + ".7", r'adata.var_names.str.split(".").str[0]'),
        (lambda names: names.str.upper(), "adata.var_names.str.capitalize()"),
        (lambda names: "x" + names, "adata.var['symbol']"),
    ],
    ids=["versions", "case", "another column"],
)
def test_genes_under_other_names_are_found_and_the_remedy_helps(rename, remedy):
    names = [f"Gene{i}" for i in range(G)]
    adata = make_adata(GENES)
    adata.var["symbol"], adata.var_names = names, names
    model = SCGMVAE(adata, n_hidden=8)
    other = make_adata(GENES)
    other.var_names = rename(pd.Index(names))
    other.var["symbol"] = names
    other.var["id"] = "none"
    if "var[" not in remedy:
        other.var = other.var.drop(columns="symbol")
    with pytest.raises(ValueError, match="50% of the model's genes") as caught:
        match_genes(other, model.get_var_names())
    assert str(caught.value).endswith(f"100% of them are in {remedy}: adata.var_names = {remedy}.")
    fixed = {"adata": other}
    other.var_names = eval(remedy, fixed)
    assert match_genes(other, model.get_var_names()) is other


def test_what_belongs_to_cells_and_genes_comes_along_where_a_gene_is_missing():
    adata = make_adata(GENES[:-1])
    adata.obsp["graph"] = sparse.identity(N, format="csr")
    adata.varm["loadings"] = np.arange(2.0 * (G - 1)).reshape(G - 1, 2)
    adata.raw = make_adata([*GENES, "g77"])
    with pytest.warns(UserWarning, match="treated as unobserved"):
        matched = match_genes(adata, GENES)
    assert matched.raw.shape == (N, G + 1)
    np.testing.assert_array_equal(dense(matched.obsp["graph"]), np.eye(N))
    np.testing.assert_array_equal(matched.varm["loadings"][:-1], adata.varm["loadings"])
    assert np.isnan(matched.varm["loadings"][-1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_genes_are_put_into_order_and_others_left_out(kind):
    adata = make_adata([*GENES[::-1], "g77"], kind)
    matched = match_genes(adata, GENES)
    expected = make_adata(GENES)
    assert matched.var_names.tolist() == GENES
    np.testing.assert_array_equal(dense(matched.X), expected.X)
    np.testing.assert_array_equal(dense(matched.layers["double"]), 2 * expected.X)
    assert matched.var["number"].tolist() == list(range(G))
    assert observed_genes(matched) is None
    assert not matched.is_view
    assert adata.n_vars == G + 1  # the data itself stays


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absent", [["g3"], ["g0", "g9"]], ids=["one", "a_fifth"])
def test_absent_genes_become_zeros_that_are_marked(kind, absent):
    present = [name for name in GENES[::-1] if name not in absent]
    adata = make_adata([*present, "g77"], kind)
    with pytest.warns(UserWarning, match=f"lacks {len(absent)} .*: '{absent[0]}'.*less certain"):
        matched = match_genes(adata, GENES)
    is_present = ~np.isin(GENES, absent)
    expected = make_adata(GENES).X * is_present
    assert matched.var_names.tolist() == GENES
    np.testing.assert_array_equal(dense(matched.X), expected)
    np.testing.assert_array_equal(dense(matched.layers["double"]), 2 * expected)
    assert sparse.issparse(matched.X) == sparse.issparse(adata.X)
    np.testing.assert_array_equal(observed_genes(matched), is_present)
    # all else comes along
    pd.testing.assert_frame_equal(matched.obs, adata.obs)
    np.testing.assert_array_equal(matched.obsm["X_pca"], adata.obsm["X_pca"])
    assert matched.uns["note"] == "kept"
    np.testing.assert_array_equal(matched.var["number"][is_present], np.flatnonzero(is_present))
    assert matched.var["number"][~is_present].isna().all()
    # and the data itself stays
    assert OBSERVED_KEY not in adata.var
    assert adata.n_vars == len(present) + 1


def test_data_without_X_keeps_its_layers():
    adata = make_adata(GENES[1:])
    adata.X = None
    with pytest.warns(UserWarning, match="lacks 1 "):
        matched = match_genes(adata, GENES)
    assert matched.X is None
    assert matched.layers["double"][:, 0].tolist() == [0] * N
    np.testing.assert_array_equal(matched.layers["double"][:, 1:], adata.layers["double"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        pytest.param(
            GENES[6:],
            r"at least 50%.*of the 10 genes.*lacks 6 \(60\.0%\): 'g0', 'g1', 'g2'",
            id="4",
        ),
        pytest.param(["g55", "g66"], r"lacks 10 \(100\.0%\).*named alike", id="other_names"),
    ],
)
def test_too_few_genes_are_refused_with_list_and_share(names, words):
    with pytest.raises(ValueError, match=words):
        match_genes(make_adata(names), GENES)


def test_the_share_that_is_needed_is_four_fifths():
    with pytest.warns(UserWarning, match=r"lacks 2 \(20\.0%\): 'g0', 'g1'"):
        matched = match_genes(make_adata(GENES[2:]), GENES)
    assert observed_genes(matched).sum() == 8


def test_a_long_list_is_cut_short():
    wanted = [*GENES, *(f"h{i}" for i in range(20))]
    with pytest.raises(ValueError, match=r"lacks 20 \(66\.7%\): 'h0', .*'h9' and 10 more"):
        match_genes(make_adata(GENES), wanted)


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_only_genes_of_the_model_have_to_be_unique():
    twice = make_adata([*GENES, "g0"])
    with pytest.raises(ValueError, match="more than once.*'g0'.*var_names_make_unique"):
        match_genes(twice, GENES)
    other = make_adata([*GENES, "g77", "g77"])
    assert match_genes(other, GENES).var_names.tolist() == GENES


# ------------------------------------------------------------- what the model makes of them

OBSERVED = torch.tensor([True] * 8 + [False, True])


def make_module(**settings):
    torch.manual_seed(0)
    module = CGMVAE(
        G, n_components=3, n_latent=3, n_latent_w=2, n_hidden=8, input_dropout_rate=0.0, **settings
    )
    module.mixture_started = True
    return module.eval()


def make_minibatch(x, observed=OBSERVED, size_factor=None):
    tensors = {
        KEYS.X_KEY: x,
        KEYS.BATCH_KEY: torch.zeros(N, 1, dtype=torch.long),
        KEYS.LABELS_KEY: torch.zeros(N, 1, dtype=torch.long),
    }
    if observed is not None:
        tensors[OBSERVED_KEY] = observed
    if size_factor is not None:
        tensors[KEYS.SIZE_FACTOR_KEY] = size_factor
    return tensors


def counts_without_absent_genes():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.poisson(4, size=(N, G)), dtype=torch.float32)
    return x * OBSERVED


def run(module, tensors):
    torch.manual_seed(0)
    with torch.no_grad():
        return module(tensors)


def test_the_encoder_takes_absent_genes_as_hidden_by_dropout():
    module, x = make_module(), counts_without_absent_genes()
    q, _, _ = run(module, make_minibatch(x))
    c = module._conditions(torch.zeros(N, 1), None, None)
    # nine of ten genes are there: dropout at rate 0.1 would scale them by 1 / 0.9
    with torch.no_grad():
        expected = module.encoder.q_z(module.encoder(torch.log1p(x) / 0.9, c), c)
    torch.testing.assert_close(q["qz"].loc, expected.loc)
    torch.testing.assert_close(q["qz"].scale, expected.scale)


def test_the_encoder_sees_what_the_model_expects_of_absent_genes_that_it_knows():
    module, x = make_module(), counts_without_absent_genes()
    module.typical_counts += 4.0
    q, _, _ = run(module, make_minibatch(x))
    c = module._conditions(torch.zeros(N, 1), None, None)
    with torch.no_grad():
        first = module._encoder_input(x, OBSERVED)
        z = module.encoder.q_z(module.encoder(first, c), c).loc
        share = module.decoder(z, c)[0].softmax(-1)
        expected = x.sum(-1, keepdim=True) * share / share[:, OBSERVED].sum(-1, keepdim=True)
        filled = torch.where(OBSERVED, x, expected)
        again = module.encoder(module._encoder_input(filled), c)
    torch.testing.assert_close(q["qz"].loc, module.encoder.q_z(again, c).loc)
    # one gene that training did not see either stays hidden
    module.typical_counts[~OBSERVED] = 0
    hidden, _, _ = run(module, make_minibatch(x))
    assert not torch.allclose(hidden["qz"].loc, q["qz"].loc)
    with torch.no_grad():
        only_seen = module.encoder(module._encoder_input(x, OBSERVED), c)
    torch.testing.assert_close(hidden["qz"].loc, module.encoder.q_z(only_seen, c).loc)


def test_a_cell_without_counts_in_the_genes_that_are_there_is_borne():
    module, x = make_module(), counts_without_absent_genes()
    module.typical_counts += 4.0
    x[0] = 0
    q, _, _ = run(module, make_minibatch(x))
    assert torch.isfinite(q["qz"].loc).all()


def test_a_mask_of_all_genes_changes_nothing():
    module = make_module()
    x = counts_without_absent_genes()
    _, _, without = run(module, make_minibatch(x, observed=None))
    _, _, with_mask = run(module, make_minibatch(x, observed=torch.ones(G, dtype=torch.bool)))
    torch.testing.assert_close(with_mask.loss, without.loss)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_the_observed_genes_are_expected_to_sum_to_the_library(likelihood):
    module, x = make_module(likelihood=likelihood), counts_without_absent_genes()
    _, p, _ = run(module, make_minibatch(x))
    mu = p["px"].rate if likelihood == "poisson" else p["px"].mu
    torch.testing.assert_close(mu[:, OBSERVED].sum(-1), x.sum(-1))
    # absent genes are expected at their share of the whole cell
    share = p["px"].scale
    torch.testing.assert_close(mu / mu.sum(-1, keepdim=True), share)
    assert (mu[:, ~OBSERVED] > 0).all()


def test_a_size_factor_speaks_for_the_whole_cell():
    module, x = make_module(use_size_factor=True), counts_without_absent_genes()
    size_factor = torch.linspace(10, 60, N).unsqueeze(-1)
    _, p, _ = run(module, make_minibatch(x, size_factor=size_factor))
    torch.testing.assert_close(p["px"].mu.sum(-1, keepdim=True), size_factor)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_the_likelihood_does_not_see_absent_genes(likelihood):
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(N, G, generator=generator) for _ in range(2)]
    dispersion = torch.linspace(-1, 1, G)
    x = counts_without_absent_genes()
    if likelihood == "bernoulli":
        x = (x > 3).float()
    other = torch.where(OBSERVED, x, 1.0)
    p_x = make_likelihood(likelihood, heads, x.sum(-1, keepdim=True).log(), dispersion, OBSERVED)
    found = log_likelihood(p_x, x, OBSERVED)
    assert torch.equal(found, log_likelihood(p_x, other, OBSERVED))
    per_gene = {
        "nb": lambda: stats.nbinom(
            *nbinom_parameters(p_x.mu.numpy(), 14 * np.tanh(dispersion.numpy() / 14))
        ).logpmf(x.numpy()),
        "poisson": lambda: stats.poisson(p_x.rate.numpy()).logpmf(x.numpy()),
        "bernoulli": lambda: stats.bernoulli(special.expit(heads[0].numpy())).logpmf(x.numpy()),
        "gaussian": lambda: stats.norm(
            heads[0].numpy(), np.exp(14 * np.tanh(dispersion.numpy() / 14))
        ).logpdf(x.numpy()),
        "zinb": lambda: p_x.log_prob(x).numpy(),
    }[likelihood]()
    np.testing.assert_allclose(found, per_gene[:, OBSERVED.numpy()].sum(1), rtol=1e-4)


def nbinom_parameters(mu, log_theta):
    theta = np.exp(log_theta)
    return theta, theta / (theta + mu)


def test_no_gradient_comes_from_absent_genes():
    module, x = make_module(), counts_without_absent_genes()
    _, _, out = module(make_minibatch(x))
    out.loss.backward()
    gradient = module.raw_dispersion.grad
    assert gradient[~OBSERVED].tolist() == [0.0]
    assert (gradient[OBSERVED] != 0).all()


# --------------------------------------------------------------------- the model of a whole


def without_genes(adata, share, seed=0):
    """The data without a share of its genes, drawn at random."""
    rng = np.random.default_rng(seed)
    absent = rng.choice(adata.n_vars, size=round(share * adata.n_vars), replace=False)
    return adata[:, np.setdiff1d(np.arange(adata.n_vars), absent)].copy()


@pytest.fixture(scope="module")
def well_trained(counts, make_model, train):
    """A model of ``counts`` that has seen them for long; only to be read."""
    model = make_model(counts.copy(), setup={"batch_key": "batch"})
    return train(model, max_epochs=60, pretrain_epochs=60)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_predictions_hold_without_some_genes(well_trained, counts, share):
    new = without_genes(counts, share)
    before = new.copy()
    with pytest.warns(UserWarning, match=rf"lacks {round(60 * share)} \({share:.1%}\)"):
        found = well_trained.predict(new)
    assert (found == well_trained.predict()).mean() > 0.95
    assert found.shape == (300,)
    # what was asked about is as it was
    assert new.var_names.equals(before.var_names)
    pd.testing.assert_frame_equal(new.obs, before.obs)
    assert OBSERVED_KEY not in new.var


def test_unobserved_is_nearer_the_truth_than_measured_as_zero(trained, counts):
    new = without_genes(counts, 0.2)
    with pytest.warns(UserWarning, match="lacks 12"):
        marked = match_genes(new, counts.var_names)
    as_zeros = marked.copy()
    del as_zeros.var[OBSERVED_KEY]
    z = trained.get_latent_representation()
    errors = [
        ((trained.get_latent_representation(data) - z) ** 2).mean() for data in (marked, as_zeros)
    ]
    assert errors[0] < errors[1]
    # the bound is one of the observed genes alone
    terms = [trained.get_elbo_terms(data)["reconstruction_loss"].mean() for data in (marked, None)]
    assert 0.5 < terms[0] / terms[1] < 1


def test_annotation_of_data_without_some_genes(trained, counts):
    new = without_genes(counts, 0.1)
    with pytest.warns(UserWarning, match="lacks 6"):
        marked = match_genes(new, counts.var_names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, when the genes were matched
        trained.annotate(marked, key_added="mapped")
    agreement = marked.obs["mapped"].astype(str) == trained.predict()
    assert agreement.mean() > 0.95
    # every library size is made up for: expected counts of all genes exceed the observed ones
    target = {"batch": "batch_0"}
    rate = trained.predict_counterfactual(marked, target, via="z").layers["rate"]
    observed = marked.var[OBSERVED_KEY].to_numpy()
    np.testing.assert_allclose(
        rate[:, observed].sum(1), np.asarray(marked.X.sum(1)).ravel(), rtol=1e-4
    )
    assert (rate[:, ~observed].sum(1) > 0).all()
    # via x the observed genes keep their counts, and the others have what the model expects
    own = (marked.obs["batch"] == "batch_0").to_numpy()
    found = trained.predict_counterfactual(marked, target, via="x")
    np.testing.assert_array_equal(
        found.X[own].toarray()[:, observed], marked.X[own].toarray()[:, observed]
    )
    np.testing.assert_allclose(
        found.layers["rate"][own][:, ~observed], rate[own][:, ~observed], rtol=1e-3
    )


def test_training_on_data_with_unobserved_genes(counts, make_model, train):
    with pytest.warns(UserWarning, match="lacks 6"):
        marked = match_genes(without_genes(counts, 0.1), counts.var_names)
    model = train(make_model(marked), max_epochs=10, pretrain_epochs=10)
    assert adjusted_rand_score(counts.obs["component"], marked.obs["scgmvae"]) > 0.9
    # a share of the decoder that no data spoke for is still a share
    shares = model.get_normalized_expression(return_numpy=True)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-4)


def test_copies_that_match_genes_are_not_kept(trained, counts):
    reordered = counts[:20, ::-1].copy()
    stores = trained._per_instance_manager_store[trained.id]
    trained.predict(reordered)
    n_known = len(stores)
    for _ in range(3):
        np.testing.assert_array_equal(trained.predict(reordered), trained.predict()[:20])
    assert len(stores) == n_known


def test_a_copy_that_became_the_models_data_is_kept(trained, counts, tmp_path):
    trained.save(tmp_path / "model")
    model = SCGMVAE.load(tmp_path / "model", counts.copy(), accelerator="cpu")
    model.adata = counts[:, ::-1].copy()
    assert model.adata.var_names.equals(counts.var_names)
    for _ in range(2):
        model.predict(counts[:20, ::-1].copy())  # for which another copy is made
        assert model.get_anndata_manager(model.adata) is model.adata_manager
    np.testing.assert_array_equal(model.predict(), trained.predict())
