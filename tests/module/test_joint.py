"""The joint module: each term against formulas written out again, and what is missing."""

import numpy as np
import pytest
import torch
from scipy import stats
from scvi import REGISTRY_KEYS as KEYS

from scgmvae.data.keys import GUIDE_KEY, PANEL_KEY, PANELS_KEY
from scgmvae.module import joint
from scgmvae.module.cgmvae import CGMVAE
from scgmvae.module.joint import JointCGMVAE

N, SIZES = 8, (6, 4, 5)
G = sum(SIZES)
MODALITIES = [("rna", "nb", 6), ("protein", "protein", 4), ("atac", "bernoulli", 5)]
SETTINGS = {"n_latent": 3, "n_latent_w": 2, "n_hidden": 16, "n_components": 4}


def make_module(modalities=MODALITIES, started=True, **settings):
    torch.manual_seed(0)
    n_input = sum(size for _, _, size in modalities)
    module = JointCGMVAE(n_input, modalities=modalities, **(SETTINGS | settings))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    module.typical_counts.uniform_(0.5, 3)
    module.mixture_started = started
    return module.eval()


def make_minibatch(panels=None, seed=1, sizes=SIZES, n_batch=1):
    rng = np.random.default_rng(seed)
    x = np.hstack([rng.poisson(3, size=(N, sizes[0])), rng.poisson(9, size=(N, sizes[1]))])
    x = np.hstack([x, rng.integers(0, 2, size=(N, sizes[2]))]).astype(np.float32)
    tensors = {
        KEYS.X_KEY: torch.from_numpy(x),
        KEYS.BATCH_KEY: torch.from_numpy(rng.integers(n_batch, size=(N, 1))),
        KEYS.LABELS_KEY: torch.zeros(N, 1),
    }
    if panels is not None:
        table = torch.tensor(panels, dtype=torch.bool)
        tensors[PANEL_KEY] = torch.arange(N).remainder(len(table)).unsqueeze(1)
        tensors[PANELS_KEY] = table
    return tensors


def panel(rna=1, protein=1, atac=1):
    return [rna] * 6 + [protein] * 4 + [atac] * 5


PANELS = [panel(), panel(protein=0), panel(rna=0), panel(rna=0, atac=0)]
PARTIAL = [panel(), [1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]]


def forward(module, tensors, **kwargs):
    torch.manual_seed(3)
    return module(tensors, **({"compute_loss": True} | kwargs))


def log_nb(x, mu, theta):
    return stats.nbinom.logpmf(x, theta, theta / (theta + mu))


@pytest.mark.parametrize("panels", [None, PANELS, PARTIAL], ids=["whole", "lacking", "partial"])
def test_the_likelihood_is_the_sum_over_what_was_measured(panels):
    module, tensors = make_module(), make_minibatch(panels)
    _, p, loss = forward(module, tensors)
    rna, protein, atac = p["px"].parts
    x = tensors[KEYS.X_KEY].numpy()
    terms = np.hstack(
        [
            log_nb(x[:, :6], rna.mu.detach().numpy(), rna.theta.detach().numpy()),
            protein.log_prob(tensors[KEYS.X_KEY][:, 6:10]).detach().numpy(),
            stats.bernoulli.logpmf(x[:, 10:], atac.probs.detach().numpy()),
        ]
    )
    mask = np.ones((N, G), dtype=bool)
    if panels is not None:
        mask = tensors[PANELS_KEY][tensors[PANEL_KEY][:, 0]].numpy()
    expected = -(terms * mask).sum(1)
    np.testing.assert_allclose(
        loss.reconstruction_loss["reconstruction_loss"].detach(), expected, rtol=1e-4
    )


def test_the_depth_of_a_modality_is_that_of_its_measured_features():
    module, tensors = make_module(), make_minibatch(PARTIAL)
    q, p, _ = forward(module, tensors)
    x, rna = tensors[KEYS.X_KEY], p["px"].parts[0]
    np.testing.assert_allclose(q["library"][:, 0], x[:, :6].sum(1).log(), rtol=1e-5)
    depth = x[:, 10:].sum(1) / module.typical_counts[10:].sum()
    np.testing.assert_allclose(q["library"][:, 2], depth.log(), rtol=1e-4, atol=1e-5)
    measured = torch.tensor(PARTIAL, dtype=torch.bool)[:, :6][tensors[PANEL_KEY][:, 0]]
    of_measured = (rna.mu * measured).sum(1)
    # the counts of all features are those that were seen, scaled to the whole
    np.testing.assert_allclose(of_measured.detach(), x[:, :6].sum(1), rtol=1e-3)


def test_peaks_of_a_deeper_cell_are_open_more_often():
    module, tensors = make_module(), make_minibatch()
    q, _, _ = forward(module, tensors)
    inputs = module._get_generative_input(tensors, q)
    before = module.generative(**inputs)["px"].parts[2].logits
    inputs["library"] = inputs["library"] + torch.tensor([0.0, 0.0, 0.7])
    after = module.generative(**inputs)["px"].parts[2].logits
    torch.testing.assert_close(after - before, torch.full_like(after, 0.7))


@pytest.mark.parametrize("training", [False, True])
def test_what_a_cell_lacks_changes_nothing(training):
    module, tensors = make_module(), make_minibatch(PANELS)
    module.train(training)
    lacks = ~tensors[PANELS_KEY][tensors[PANEL_KEY][:, 0]]
    q, p, loss = forward(module, tensors)
    tensors[KEYS.X_KEY][lacks] = 77.0
    again_q, again_p, again = forward(module, tensors)
    torch.testing.assert_close(q["qz"].loc, again_q["qz"].loc)
    torch.testing.assert_close(loss.loss, again.loss)
    torch.testing.assert_close(p["px"].mean, again_p["px"].mean)


@pytest.mark.parametrize("panels", [None, PANELS, PARTIAL], ids=["whole", "lacking", "partial"])
def test_sparse_and_dense_minibatches_agree(panels):
    module, tensors = make_module(), make_minibatch(panels)
    _, _, loss = forward(module, tensors)
    tensors[KEYS.X_KEY] = tensors[KEYS.X_KEY].to_sparse_csr()
    _, _, again = forward(module, tensors)
    torch.testing.assert_close(loss.loss, again.loss)


def test_blocks_of_a_sparse_minibatch_are_cut_once_and_only_in_training():
    module, x = make_module(), make_minibatch()[KEYS.X_KEY].to_sparse_csr()
    first, again = module._blocks_of(x), module._blocks_of(x)
    assert again is first
    dense = make_minibatch()[KEYS.X_KEY]
    for block, expected in zip(first, dense.split(SIZES, dim=1), strict=True):
        assert torch.equal(block.to_dense(), expected)
    x.values().mul_(2)  # values that change are read again
    for block, expected in zip(module._blocks_of(x), dense.split(SIZES, dim=1), strict=True):
        assert torch.equal(block.to_dense(), 2 * expected)
    with torch.inference_mode():
        assert not any(block.is_inference() for block in first)
        assert module._blocks_of(x) is not module._blocks_of(x)
    n_kept = len(joint._BLOCKS)
    module._blocks_of(dense)
    assert len(joint._BLOCKS) == n_kept
    del x
    assert len(joint._BLOCKS) < n_kept


def test_q_is_the_product_of_what_each_modality_says():
    module, tensors = make_module(), make_minibatch()
    q_z = forward(module, tensors)[0]["qz"]
    precision, weighted = 0, 0
    for only in range(3):
        alone = [[float(m == only)] * size for m, size in enumerate(SIZES)]
        table = torch.tensor([sum(alone, [])]).bool()
        given = tensors | {PANEL_KEY: torch.zeros(N, 1), PANELS_KEY: table}
        q_m = forward(module, given)[0]["qz"]
        precision = precision + q_m.scale**-2
        weighted = weighted + q_m.loc * q_m.scale**-2
    torch.testing.assert_close(q_z.scale, precision.rsqrt())
    torch.testing.assert_close(q_z.loc, weighted / precision)


@pytest.mark.parametrize("panels", [None, PANELS], ids=["whole", "lacking"])
def test_in_training_some_cells_count_as_such_of_one_modality(panels):
    module = make_module(hidden_share=0.4)
    many = {key: values.repeat(2500, 1) for key, values in make_minibatch(panels).items()}
    if panels is not None:
        many[PANELS_KEY] = torch.tensor(panels, dtype=torch.bool)
    many[GUIDE_KEY] = torch.arange(len(many[KEYS.X_KEY])).remainder(4)
    torch.manual_seed(0)
    made = module.in_training(many)
    has = torch.ones(20_000, 3) if panels is None else module._panels(many).has()
    still = module._panels(made).has()
    assert not (still & ~has.bool()).any()
    is_changed = made[GUIDE_KEY] == -1
    assert is_changed.float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert (still[is_changed].sum(1) == 1).all()
    assert (still[~is_changed] == has[~is_changed].bool()).all()
    if panels is None:
        np.testing.assert_allclose(still[is_changed].float().mean(0), 1 / 3, atol=0.03)
    assert (many[GUIDE_KEY] >= 0).all()
    # probabilities of a hidden cell's components are 0 where its code is -1
    proba = many | {GUIDE_KEY: torch.nn.functional.one_hot(many[GUIDE_KEY], 4).float()}
    torch.manual_seed(0)
    of_hidden = module.in_training(proba)[GUIDE_KEY]
    torch.testing.assert_close(of_hidden.sum(1), (~is_changed).float())
    assert (proba[GUIDE_KEY].sum(1) == 1).all()
    # what is hidden has no part in the loss either
    torch.testing.assert_close(made[KEYS.X_KEY], many[KEYS.X_KEY])
    lacks = ~made[PANELS_KEY][made[PANEL_KEY][:, 0]]
    _, p, loss = forward(module, made)
    changed = made | {KEYS.X_KEY: made[KEYS.X_KEY].masked_fill(lacks, 50.0)}
    torch.testing.assert_close(forward(module, changed)[2].loss, loss.loss)


def test_nothing_is_hidden_where_there_is_one_modality_or_none_is_asked_to():
    tensors = make_minibatch()
    assert make_module(hidden_share=0.0).in_training(tensors) is tensors
    assert make_module([("rna", "nb", G)]).in_training(tensors) is tensors


@pytest.mark.parametrize("settings", [{}, {"n_batch": 2, "dispersion": "gene-batch"}])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_one_modality_is_the_model_of_one_modality_bit_for_bit(settings, is_sparse):
    modules = []
    for make in (
        lambda: CGMVAE(6, **SETTINGS, **settings),
        lambda: JointCGMVAE(6, modalities=[("rna", "nb", 6)], **SETTINGS, **settings),
    ):
        torch.manual_seed(0)
        module = make()
        module.typical_counts.copy_(torch.arange(1.0, 7.0))
        module.mixture_started = True
        modules.append(module.train())
    tensors = make_minibatch(n_batch=settings.get("n_batch", 1))
    tensors[KEYS.X_KEY] = tensors[KEYS.X_KEY][:, :6]
    if is_sparse:
        tensors[KEYS.X_KEY] = tensors[KEYS.X_KEY].to_sparse_csr()
    gradients = []
    for module in modules:
        loss = forward(module, tensors)[2].loss
        loss.backward()
        gradients.append((loss, *(p.grad for p in module.parameters() if p.grad is not None)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_weights_of_modalities_weigh_their_likelihoods():
    tensors = make_minibatch()
    module = make_module(modality_weights={"protein": 3.0})
    p_x = forward(module, tensors)[1]["px"]
    parts = module.log_likelihoods_of(p_x, tensors)
    torch.testing.assert_close(
        module.log_likelihood_of(p_x, tensors), parts[0] + 3 * parts[1] + parts[2]
    )


def test_a_proteins_background_is_of_the_batch_and_of_new_batches():
    module = make_module(n_batch=2)
    background = module.decoder[1].background
    before = background.offsets["0"].detach().clone()
    module.extend_categories((3,))
    assert background.offsets["0"].shape == (3, 4)
    torch.testing.assert_close(background.offsets["0"][:2], before)
    torch.testing.assert_close(background.offsets["0"][2], before.mean(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "conv"}, "has encoder='mlp' alone, but it is 'conv'"),
        ({"classifier_input": "zx"}, "has classifier_input='z' alone"),
        ({"gaussian_scale": "network"}, "has gaussian_scale='gene' alone"),
        ({"dispersion": "gene-cell"}, "has dispersion='gene' alone"),
        ({"use_observed_lib_size": False}, "is for counts of one modality"),
        ({"modality_weights": {"prot": 2}}, "must name modalities of the model"),
        ({"modality_weights": {"rna": 0}}, "modality_weights of rna must be"),
        ({"hidden_share": 1.5}, "hidden_share must be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(**settings)
