"""Tests of nn.networks and convolutions: bounds, starting values, conditions, shapes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from scgmvae.nn.bounds import LOG_CONCENTRATION_BOUND, LOG_SCALE_BOUND, bounded_exp, full
from scgmvae.nn.convolutions import ConvolutionalDecoder, ConvolutionalTrunk
from scgmvae.nn.layers import ConditionedLinear, Conditions, ConditionSizes, Dropout, Trunk
from scgmvae.nn.networks import (
    Classifier,
    ComponentPrior,
    ConditionPrior,
    Decoder,
    DirichletNetwork,
    Encoder,
)

N, G, L, W, K, S, N_HIDDEN = 6, 7, 3, 2, 4, 5, 16
SIZES = ConditionSizes((2, 3), 2)
SHAPE = (9, 12, 2)  # of images


def conditions(seed=0):
    """Two categorical and two continuous conditions of N cells."""
    generator = torch.Generator().manual_seed(seed)
    one_hots = tuple(
        torch.eye(n)[torch.randint(n, (N,), generator=generator)] for n in SIZES.n_cat_list
    )
    return Conditions(one_hots, torch.randn(N, SIZES.n_cont, generator=generator))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------- bounded_exp


@pytest.mark.parametrize("bound", [1.0, 5.0, 14.0])
def test_bounded_exp_equals_its_formula_and_keeps_its_bounds(bound):
    raw = torch.linspace(-10 * bound, 10 * bound, 401, dtype=torch.float64)
    value = bounded_exp(raw, bound).numpy()
    np.testing.assert_allclose(value, np.exp(bound * np.tanh(raw.numpy() / bound)), rtol=1e-12)
    assert np.exp(-bound) < value.min()
    assert value.max() < np.exp(bound)
    assert np.all(np.diff(value) > 0)


@pytest.mark.parametrize("raw", [-1e30, 1e30])
def test_bounded_exp_of_the_extremes_is_the_bound(raw):
    value = bounded_exp(torch.tensor(raw), 5.0).item()
    assert value == pytest.approx(np.exp(np.sign(raw) * 5), rel=1e-6)


def test_bounded_exp_is_exp_near_zero():
    raw = torch.linspace(-0.1, 0.1, 21, dtype=torch.float64)
    # tanh(r) = r - r^3 / 3, here with r = 0.1 / 5
    np.testing.assert_allclose(bounded_exp(raw, 5.0), np.exp(raw.numpy()), rtol=2e-5)


def test_bounded_exp_has_a_gradient_everywhere():
    # in single precision, to five times the bound: log-scales of 25 where 5 is the limit
    raw = torch.linspace(-25, 25, 501, requires_grad=True)
    value = bounded_exp(raw, 5.0)
    value.sum().backward()
    expected = value.detach().numpy() / np.cosh(raw.detach().double().numpy() / 5) ** 2
    assert raw.grad.min() > 0
    np.testing.assert_allclose(raw.grad, expected, rtol=5e-3)


# ------------------------------------------------------------------------- ConditionedLinear


def weights_side_by_side(layer):
    """The weight that :class:`torch.nn.Linear` would have on inputs, one-hots and covariates."""
    parts = [] if layer.weight is None else [layer.weight.T]
    parts += [offsets.T for offsets in layer.offsets.values()]
    parts += [] if layer.slopes is None else [layer.slopes.T]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(
    ("n_in", "sizes"),
    [
        pytest.param(G, SIZES, id="all"),
        pytest.param(G, ConditionSizes((2, 3)), id="categorical"),
        pytest.param(G, ConditionSizes((2, 1), 2), id="one_of_a_single_category"),
        pytest.param(G, ConditionSizes((1,)), id="no_condition"),
        pytest.param(0, SIZES, id="conditions_alone"),
    ],
)
@pytest.mark.parametrize("shape", [(N,), (S, N)], ids=["cells", "samples"])
def test_conditioned_linear_equals_linear_on_everything_side_by_side(n_in, sizes, shape):
    layer = ConditionedLinear(n_in, 5, sizes)
    c = Conditions(
        tuple(torch.eye(n)[torch.randint(n, (N,))] for n in sizes.n_cat_list),
        torch.randn(N, sizes.n_cont) if sizes.n_cont else None,
    )
    x = torch.randn(*shape, n_in)
    beside = [one_hot for one_hot in c.one_hots if one_hot.shape[1] > 1]
    beside += [] if c.continuous is None else [c.continuous]
    everything = torch.cat([x, *(part.expand(*shape, -1) for part in beside)], dim=-1)
    expected = nn.functional.linear(everything, weights_side_by_side(layer), layer.bias)
    assert layer(x, c).shape == (*shape, 5)
    torch.testing.assert_close(layer(x, c), expected)
    # and starts as nn.Linear of x alone does, uniform up to one over the root of its inputs
    bound = 1 / np.sqrt(n_in or everything.shape[-1])
    for parameter in layer.parameters():
        assert parameter.abs().max() <= bound
        assert parameter.numel() < 20 or parameter.abs().max() > 0.5 * bound


def test_all_else_starts_as_it_does_without_conditions():
    started = []
    for sizes in (ConditionSizes(), SIZES):
        torch.manual_seed(0)
        layers = [ConditionedLinear(G, 5, sizes) for _ in range(2)]
        started.append([part for layer in layers for part in (layer.weight, layer.bias)])
    assert all(torch.equal(*pair) for pair in zip(*started, strict=True))
    of_conditions = [layer.offsets["0"] for layer in layers]
    assert not torch.equal(*of_conditions)  # and these by the seed as well
    torch.manual_seed(0)
    assert torch.equal(ConditionedLinear(G, 5, SIZES).offsets["0"], of_conditions[0])


def test_categories_that_are_added_leave_the_others_to_the_bit():
    layer = ConditionedLinear(G, 5, SIZES)
    x, c = torch.randn(N, G), conditions()
    before = layer(x, c).detach()
    means = [layer.offsets[key].detach().mean(0) for key in ("0", "1")]
    layer.extend((2, 5), (2, 3))
    assert layer.offsets["0"].shape == (2, 5)
    assert layer.offsets["1"].shape == (5, 5)
    first, second = c.one_hots
    wider = Conditions((first, nn.functional.pad(second, (0, 2))), c.continuous)
    assert torch.equal(layer(x, wider), before)
    # a new one starts as the mean of the known ones
    assert torch.equal(layer.offsets["1"][3:], means[1].expand(2, -1))
    layer.extend((4, 5), (2, 5))
    assert torch.equal(layer.offsets["0"][2:], means[0].expand(2, -1))
    assert all(offsets.requires_grad for offsets in layer.offsets.values())


def test_a_condition_of_a_single_category_is_extended_from_zero():
    layer = ConditionedLinear(G, 5, ConditionSizes((1,)))
    x, one_hot = torch.randn(N, G), torch.ones(N, 1)
    before = layer(x, Conditions((one_hot,))).detach()
    assert list(layer.offsets) == []
    layer.extend((3,), (1,))
    assert torch.equal(layer.offsets["0"], torch.zeros(3, 5))
    for k in range(3):
        c = Conditions((torch.eye(3)[[k]].expand(N, -1),))
        assert torch.equal(layer(x, c), before)


# ---------------------------------------------------------------------------- ComponentPrior


@pytest.fixture
def component_prior():
    return ComponentPrior(L, W, SIZES, K, N_HIDDEN)


def test_start_at_puts_the_components_where_told(component_prior):
    loc, scale = 5 * torch.randn(K, L), torch.rand(K, L) * 2 + 0.05
    component_prior.start_at(loc, scale)
    # without what w and c add, exactly
    nn.init.zeros_(component_prior.shift.weight)
    p_z = component_prior(torch.randn(N, W), conditions())
    np.testing.assert_allclose(p_z.loc.detach(), loc.expand(N, K, L), rtol=1e-6)
    np.testing.assert_allclose(p_z.scale.detach(), scale.expand(N, K, L), rtol=1e-5)


def test_w_and_c_hardly_move_the_components_at_the_start(component_prior):
    loc, scale = 5 * torch.randn(K, L), torch.rand(K, L) + 0.5
    component_prior.start_at(loc, scale)
    p_z = component_prior(torch.randn(N, W), conditions())
    assert (p_z.loc - loc).abs().max() < 0.1
    assert (p_z.scale / scale - 1).abs().max() < 0.1
    # but they do move them, or no gradient would ever reach w
    assert p_z.loc.std(0).min() > 1e-4
    assert p_z.scale.std(0).min() > 1e-4


@pytest.mark.parametrize("scale", [1e-8, 0.0, 1e8], ids=["tiny", "zero", "huge"])
def test_start_at_takes_scales_outside_of_the_bounds(component_prior, scale):
    component_prior.start_at(torch.zeros(K, L), torch.full((K, L), scale))
    nn.init.zeros_(component_prior.shift.weight)
    p_z = component_prior(torch.randn(N, W), conditions())
    assert torch.isfinite(component_prior.raw_scale).all()
    # the nearest that the bounds allow, kept off them so that a gradient is left
    expected = LOG_SCALE_BOUND if scale > 1 else -LOG_SCALE_BOUND
    np.testing.assert_allclose(p_z.scale.detach().log(), np.full((N, K, L), expected), rtol=0.02)
    p_z.scale.log().sum().backward()
    assert component_prior.raw_scale.grad.min() > 1e-3


# ---------------------------------------------------------------- conditions, shapes, samples


def make_encoder(sizes, n_latent_w=W, n_layers=1, dropout_rate=0.1, input_dropout_rate=0.3):
    trunk = Trunk(G, sizes, (N_HIDDEN,) * n_layers, dropout_rate)
    return Encoder(trunk, sizes, L, n_latent_w, input_dropout_rate)


# name: network of given conditions, size of its input, shape of its outputs for a cell
NETWORKS = {
    "encoder_z": (lambda sizes: make_encoder(sizes, n_layers=2), G, (2 * L,)),
    "encoder_w": (make_encoder, G, (2 * W,)),
    "encoder_linear": (lambda sizes: make_encoder(sizes, n_layers=0), G, (2 * L,)),
    "classifier": (lambda sizes: Classifier(L, sizes, K, N_HIDDEN), L, (K,)),
    "dirichlet": (lambda sizes: DirichletNetwork(L, sizes, K, N_HIDDEN), L, (K,)),
    "component_prior": (lambda sizes: ComponentPrior(L, W, sizes, K, N_HIDDEN), W, (K, 2 * L)),
    "condition_prior": (lambda sizes: ConditionPrior(W, sizes, N_HIDDEN), W, (W,)),
    "decoder": (lambda sizes: Decoder(L, sizes, G, 2, (N_HIDDEN, 7)), L, (2 * G,)),
    "decoder_linear": (lambda sizes: Decoder(L, sizes, G, 1, ()), L, (G,)),
    "decoder_images": (
        lambda sizes: ConvolutionalDecoder(L, sizes, SHAPE),
        L,
        (math.prod(SHAPE),),
    ),
}
NAMES = pytest.mark.parametrize("name", NETWORKS)


def outputs(name, network, inputs, c):
    """All that a network says of its inputs, concatenated along the last axis."""
    with torch.no_grad():
        if name == "condition_prior":  # which has no input but c
            return network(c).expand(*inputs.shape[:-1], -1)
        value = network(inputs, c)
        if name.startswith("encoder"):
            value = network.q_zw(value, c)[name == "encoder_w"]
        if isinstance(value, torch.distributions.Normal):
            value = [value.loc, value.scale]
        return torch.cat(value, -1) if isinstance(value, list) else value


@pytest.fixture
def evaluate(name):
    """The outputs of the network called ``name``, as a function of its inputs and c."""
    network = NETWORKS[name][0](SIZES).eval()
    return lambda inputs, c: outputs(name, network, inputs, c)


@NAMES
def test_shapes_with_and_without_a_sample_axis(name, evaluate):
    _, n_in, shape = NETWORKS[name]
    inputs, c = torch.randn(S, N, n_in), conditions()
    stacked = evaluate(inputs, c)
    assert stacked.shape == (S, N, *shape)
    # samples do not see one another
    for s in range(S):
        single = evaluate(inputs[s], c)
        assert single.shape == (N, *shape)
        np.testing.assert_allclose(stacked[s], single, rtol=1e-5, atol=1e-6)


@NAMES
@pytest.mark.parametrize("which", ["first", "second", "continuous"])
def test_every_condition_changes_the_outputs(name, evaluate, which):
    inputs, c = torch.randn(N, NETWORKS[name][1]), conditions()
    first, second = c.one_hots
    changed = {
        "first": Conditions((first.roll(1, 1), second), c.continuous),
        "second": Conditions((first, second.roll(1, 1)), c.continuous),
        "continuous": Conditions(c.one_hots, c.continuous + 1),
    }[which]
    difference = evaluate(inputs, changed) - evaluate(inputs, c)
    # for every cell
    assert difference.abs().flatten(1).amax(1).min() > 1e-5


@NAMES
def test_a_condition_of_one_value_takes_no_weights(name):
    def n_weights(*n_categories):
        # a further condition, because p(w|c) is made only where there is one
        network = NETWORKS[name][0](ConditionSizes((3, *n_categories)))
        return sum(p.numel() for p in network.parameters())

    n_units = {
        "encoder_z": 2 * N_HIDDEN,
        "encoder_linear": 2 * L + 2 * W,
        "decoder": N_HIDDEN + 7,
        "decoder_linear": G,
        "decoder_images": 128,  # one pixel that is left of 9 × 12
    }
    assert n_weights(1) == n_weights()
    assert n_weights(2) == n_weights() + 2 * n_units.get(name, N_HIDDEN)


def test_cells_under_the_same_conditions_have_the_same_prior_of_w():
    network, c = ConditionPrior(W, SIZES, N_HIDDEN), conditions()
    alike = Conditions(
        tuple(codes[:1].expand(N, -1) for codes in c.one_hots), c.continuous[:1].expand(N, -1)
    )
    with torch.no_grad():
        value, others = network(alike), network(c)
    assert torch.equal(value, value[:1].expand_as(value))
    torch.testing.assert_close(value[0], others[0])
    assert (others - others[0]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["dirichlet"])
def test_concentrations_are_positive_and_bounded(evaluate):
    a = evaluate(1e6 * torch.randn(N, L), conditions())
    assert a.min() >= np.exp(-LOG_CONCENTRATION_BOUND) * (1 - 1e-5)
    assert a.max() <= np.exp(LOG_CONCENTRATION_BOUND) * (1 + 1e-5)
    # the inputs were large enough to meet both bounds
    assert a.log().max() - a.log().min() > 1.99 * LOG_CONCENTRATION_BOUND


@pytest.mark.parametrize("name", ["classifier", "dirichlet", "component_prior"])
def test_a_cells_component_does_not_depend_on_its_minibatch(name):
    make, n_in, _ = NETWORKS[name]
    network = make(SIZES).train()
    inputs, c = torch.randn(N, n_in), conditions()
    part = Conditions(tuple(codes[:2] for codes in c.one_hots), c.continuous[:2])
    alone = outputs(name, network, inputs[:2], part)
    np.testing.assert_allclose(alone, outputs(name, network, inputs, c)[:2], atol=1e-6)


def test_encoder_without_w_has_no_head_for_it():
    names = dict(make_encoder(SIZES, n_latent_w=0).named_parameters())
    assert not [name for name in names if name.startswith("w_")]
    assert {name for name in names if name.startswith("z_")} == {
        "z_loc.weight",
        "z_loc.bias",
        "z_scale.weight",
        "z_scale.bias",
    }


def test_input_dropout_hides_genes_in_training_only():
    # all of them, so that nothing of x is left but what c tells
    encoder = make_encoder(SIZES, dropout_rate=0.0, input_dropout_rate=1.0)
    c = conditions()
    one, other = torch.randn(N, G), torch.randn(N, G)
    encoder.train()
    assert torch.equal(encoder(one, c), encoder(other, c))
    encoder.eval()
    assert torch.equal(encoder(one, c), encoder(one, c))
    assert (encoder(one, c) - encoder(other, c)).abs().amax(1).min() > 1e-2


def test_dropout_draws_anew_in_training_only():
    encoder = make_encoder(SIZES, dropout_rate=0.5, input_dropout_rate=0.0)
    x, c = torch.randn(N, G), conditions()
    encoder.train()
    draws = torch.stack([encoder(x, c) for _ in range(500)])
    passes_relu = draws.amax(0) > 0  # (N, N_HIDDEN)
    dropped = (draws[:, passes_relu] == 0).float().mean().item()
    # 500 draws of dozens of units: the error of the share is 0.004
    assert dropped == pytest.approx(0.5, abs=0.02)
    encoder.eval()
    assert torch.equal(encoder(x, c), encoder(x, c))


# ------------------------------------------------------------------------------------- images


def test_convolutions_are_those_of_a_plain_computation():
    trunk = ConvolutionalTrunk((8, 8, 3)).eval()
    images = torch.rand(2, 8, 8, 3)
    hidden = images.permute(0, 3, 1, 2)
    with torch.no_grad():
        for conv, norm in ((0, 1), (3, 4), (6, 7)):
            weight = trunk.layers[conv].weight
            hidden = nn.functional.conv2d(hidden, weight, stride=2, padding=1)
            hidden = hidden / math.sqrt(1 + trunk.layers[norm].eps)  # statistics are still 0 and 1
            hidden = hidden.clamp(min=0)
        value = trunk(images.flatten(1), Conditions())
    assert [layer.weight.shape for layer in trunk.layers[::3]] == [
        (32, 3, 4, 4),
        (64, 32, 4, 4),
        (128, 64, 4, 4),
    ]
    torch.testing.assert_close(value, hidden.flatten(1))


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_transposed_convolutions_are_those_of_a_plain_computation(is_training):
    # a side of 9 is halved to 4, 2 and 1, one of 18 to 9, 4 and 2: two roundings to be undone
    decoder = ConvolutionalDecoder(L, ConditionSizes(), (9, 18, 3)).train(is_training)
    z = torch.randn(S, N, L)
    with torch.no_grad():
        decoder.start_at(torch.tensor([0.5, -1.0, 2.0]).repeat(9 * 18))
        hidden = z @ decoder.first.weight + decoder.first.bias
        hidden = hidden.view(S * N, 128, 1, 2)
        for norm, conv, left_out in ((0, 2, (0, 0)), (3, 5, (0, 1)), (6, 8, (1, 0))):
            if is_training:
                mean = hidden.mean((0, 2, 3), keepdim=True)
                var = ((hidden - mean) ** 2).mean((0, 2, 3), keepdim=True)
                hidden = hidden - mean
            else:
                var = torch.ones(())  # statistics are still 0 and 1
            hidden = (hidden / torch.sqrt(var + decoder.layers[norm].eps)).clamp(min=0)
            hidden = nn.functional.conv_transpose2d(
                hidden, decoder.layers[conv].weight, None, 2, 1, left_out
            )
        expected = torch.empty(S * N, 9, 18, 3)
        for channel, mean in enumerate((0.5, -1.0, 2.0)):
            expected[..., channel] = hidden[:, channel] + mean
        (value,) = decoder(z, Conditions())
    assert [decoder.layers[i].weight.shape for i in (2, 5, 8)] == [
        (128, 64, 4, 4),
        (64, 32, 4, 4),
        (32, 3, 4, 4),
    ]
    torch.testing.assert_close(value, expected.view(S, N, -1))


@pytest.mark.parametrize(
    ("shape", "n_hidden"), [((28, 28), 128 * 9), ((32, 32, 3), 128 * 16), ((8, 17, 2), 128 * 2)]
)
def test_the_decoder_of_images_mirrors_the_encoder(shape, n_hidden):
    n_pixels = math.prod(shape)
    trunk, decoder = ConvolutionalTrunk(shape), ConvolutionalDecoder(L, ConditionSizes(), shape)
    assert trunk(torch.rand(N, n_pixels), Conditions()).shape == (N, n_hidden) == (N, trunk.n_out)
    assert decoder(torch.randn(S, N, L), Conditions())[0].shape == (S, N, n_pixels)
    assert decoder.first.weight.shape == (L, n_hidden)


def test_the_decoder_of_images_starts_at_the_mean_of_each_channel():
    decoder = ConvolutionalDecoder(L, ConditionSizes(), (8, 8, 2))
    decoder.start_at(torch.tensor([1.0, -2.0]).repeat(64))
    assert decoder.layers[-1].bias.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_moves_as_a_whole_under_convolutions(channels):
    # a stride of 2 thrice: a shift by 8 pixels is a shift by one unit
    trunk = ConvolutionalTrunk((40, 40, channels)).eval()
    image = torch.zeros(1, 40, 40, channels)
    image[:, 12:20, 12:20] = torch.rand(8, 8, channels)
    with torch.no_grad():
        units = [
            trunk(x.flatten(1), Conditions()).view(128, 5, 5) for x in (image, image.roll(8, 2))
        ]
    torch.testing.assert_close(units[0][:, :, 1:3], units[1][:, :, 2:4])


# ------------------------------------------------------------------------ dropout, precision


def dropped(p, x, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Dropout(p)(x)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    x = torch.ones(1_000_001)  # not divisible by four, the values of one random number
    out = dropped(p, x)
    kept = out != 0
    # five standard errors of a mean of a million
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=5e-3 * math.sqrt(p * (1 - p)))
    assert out.double().mean().item() == pytest.approx(1, abs=5e-3 * math.sqrt(p / (1 - p)))
    # the scale is the exact one of the probability in 65,536ths
    np.testing.assert_allclose(out[kept].unique(), 1 / (1 - round(p * 2**16) / 2**16), rtol=1e-6)


def test_dropout_drops_values_independently():
    kept = (dropped(0.5, torch.ones(400_000)) != 0).double().view(-1, 4)
    # neither the four values of one random number nor those of two are alike
    correlation = np.corrcoef(np.hstack([kept[:-1].numpy(), kept[1:].numpy()]).T)
    assert np.abs(correlation - np.eye(8)).max() < 0.02


def test_dropout_follows_from_the_seed_of_torch():
    x = torch.randn(3, 5, 7)
    assert torch.equal(dropped(0.5, x), dropped(0.5, x))
    assert not torch.equal(dropped(0.5, x), dropped(0.5, x, seed=1))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_dropout_does_nothing_in_evaluation_mode(p):
    x = torch.randn(3, 5)
    assert torch.equal(Dropout(p).eval()(x), x)


@pytest.mark.parametrize(("p", "factor"), [(0.0, 1), (1.0, 0), (1e-9, 1), (1 - 1e-9, 0)])
def test_dropout_of_nothing_and_of_all(p, factor):
    x = torch.randn(3, 5)
    assert torch.equal(dropped(p, x), factor * x)


def test_dropout_passes_gradients_through_what_it_keeps():
    x = torch.ones(40, 25, requires_grad=True)
    out = dropped(0.5, x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())  # 0 or 2, as x is 1
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dropout_keeps_the_type_and_shape(dtype):
    x = torch.ones(3, 5, 1, dtype=dtype)
    out = dropped(0.5, x)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert dropped(0.5, x[:0]).shape == (0, 5, 1)


def test_full_makes_single_precision_of_half_and_leaves_the_rest():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert full(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert full(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_an_encoder_reads_csr_as_it_reads_the_same_with_zeros():
    x = torch.rand(N, G) * (torch.rand(N, G) < 0.4)
    encoder = Encoder(Trunk(G, SIZES, (N_HIDDEN,)), SIZES, L, W, input_dropout_rate=0.0)
    c = conditions()
    torch.testing.assert_close(encoder(x.to_sparse_csr(), c), encoder(x, c))


def test_hidden_genes_of_csr_are_those_that_have_counts():
    x = torch.rand(N, G) * (torch.arange(G) % 2)
    encoder = Encoder(Trunk(G, SIZES, ()), SIZES, L, W, input_dropout_rate=0.5)
    seen = encoder(x.to_sparse_csr(), conditions()).to_dense()
    assert (seen[x == 0] == 0).all()
    np.testing.assert_allclose(seen[seen != 0], 2 * x[seen != 0], rtol=1e-5)
    assert 0 < (seen != 0).sum() < (x != 0).sum()
