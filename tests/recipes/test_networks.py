"""The named networks: what they are made of is fixed, and the derivatives of every order that the meter takes agree."""

import math
import sys

import numpy as np
import pytest
import torch
from torch.func import functional_call

from etastar import InvalidArgument
from etastar.network import HessianOperator
from etastar.network.parameters import ParameterVector
from etastar.network.persample import per_sample_gradients
from etastar.recipes.networks import NETWORKS, Network, load_network
from etastar.recipes.networks.models import Transformer, tanh_mlp
from etastar.recipes.networks.text import VOCABULARY, encode, load_text
from recipes.digit_files import images_of, write_idx

# Parameters counted by hand: weights and biases of each layer.
SIZES = {
    "digits-mlp": 65 * 100 + 101 * 100 + 101 * 10,
    "digits-cnn": (9 + 1) * 8 + (9 * 8 + 1) * 16 + 65 * 10,
    "mnist5k-mlp": 785 * 200 + 201 * 200 + 201 * 10,
    "text-transformer": (97 + 32) * 200
    + 2 * (201 * 600 + 201 * 200 + 201 * 800 + 801 * 200 + 4 * 200)
    + 2 * 200
    + 201 * 97,
}
SHAPES = {
    "digits-mlp": (1500, 297, (64,), ()),
    "digits-cnn": (1500, 297, (1, 8, 8), ()),
    "mnist5k-mlp": (5000, 5000, (784,), ()),
    "text-transformer": (1000, 500, (32,), (32,)),
}
CASES = [(name, loss) for name, recipe in NETWORKS.items() for loss in recipe.settings]


@pytest.fixture(scope="module", autouse=True)
def digits(tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        directory, labels = tmp_path_factory.mktemp("mnist"), np.arange(10_000) % 10
        write_idx(directory, "train", images_of(labels), labels)
        patch.setenv("ETASTAR_DATA", str(directory))
        yield


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_and_shapes(name):
    network = load_network(name)
    training, held_out, sample, target = SHAPES[name]
    assert sum(parameter.numel() for parameter in network.model.parameters()) == SIZES[name]
    assert {parameter.dtype for parameter in network.model.parameters()} == {torch.float32}
    for (inputs, targets), number in ((network.train, training), (network.held_out, held_out)):
        assert inputs.shape == (number, *sample)
        assert targets.shape == (number, *target)
    assert math.prod(network.model(network.train[0][:3]).shape) == 3 * math.prod(target) * len(
        {"text-transformer": range(97)}.get(name, range(10))
    )
    settings = network.settings
    assert settings == next(iter(NETWORKS[name].settings.values()))
    assert (network.step_size, network.batch_size, network.rank) == (
        settings.step_size,
        settings.batch_size,
        settings.rank,
    )
    assert sum(len(labels) for _, labels in network.curvature_batches()) == settings.curvature_samples


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_a_loss_is_the_mean_over_samples_and_starts_where_nothing_is_known(name, loss):
    network = load_network(name, loss)
    inputs, targets = (part[:12] for part in network.train)
    whole, *singles = (
        network.loss_fn(network.model, (inputs[part], targets[part])).item()
        for part in (slice(None), *(slice(i, i + 1) for i in range(12)))
    )
    assert whole == pytest.approx(sum(singles) / 12, rel=1e-5)
    if loss == "cross-entropy":
        assert whole == pytest.approx(math.log(97 if name == "text-transformer" else 10), rel=0.1)
    else:
        outputs = network.model(inputs).detach().double()
        expected = sum(
            0.5 * sum((float(outputs[i, j]) - float(j == targets[i])) ** 2 for j in range(10)) for i in range(12)
        )
        assert whole == pytest.approx(expected / 12, rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_is_all_that_the_initialisation_depends_on(name):
    before = torch.get_rng_state()
    first, again, other = (load_network(name, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    values = [
        torch.cat([p.detach().reshape(-1) for p in network.model.parameters()]) for network in (first, again, other)
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    for left, right in ((first.train, other.train), (first.held_out, other.held_out)):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_minibatches_are_drawn_with_replacement_from_the_generator_alone():
    network = load_network("digits-mlp")
    inputs, labels = network.draw(torch.Generator().manual_seed(3), 4000)
    expected = torch.randint(1500, (4000,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(inputs, network.train[0][expected])
    assert torch.equal(labels, network.train[1][expected])
    # 1 − (1 − 1/n)^m of the samples are expected; the standard deviation is below 0.01
    assert len(expected.unique()) / 1500 == pytest.approx(1 - (1 - 1 / 1500) ** 4000, abs=0.04)


def test_losses_are_over_the_samples_that_are_watched():
    network = load_network("text-transformer")
    with torch.no_grad():
        expected = [
            float(network.loss_fn(network.model, (inputs[:128], targets[:128])))
            for inputs, targets in (network.train, network.held_out)
        ]
    assert network.losses() == tuple(expected)
    digits = load_network("digits-cnn")
    with torch.no_grad():
        assert digits.losses()[1] == float(digits.loss_fn(digits.model, digits.held_out))


def small(name, loss):
    """The recipe's network; the transformer narrowed to what a dense check can afford."""
    network = load_network(name, loss)
    if name != "text-transformer":
        return network
    torch.manual_seed(0)
    model = Transformer(VOCABULARY, context=32, width=16, depth=2, heads=2)
    return Network(
        name, loss, model, network.loss_fn, network.train, network.held_out, network.settings, network.watched
    )


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_vectorised_gradients_of_single_samples_are_the_looped_ones(name, loss, monkeypatch):
    import etastar.network.persample as persample

    def refuse(*_):
        raise AssertionError("fell back to the loop")

    monkeypatch.setattr(persample, "_looped", refuse)
    network = load_network(name, loss)
    batch = tuple(part[:5] for part in network.train)
    vector = ParameterVector.of(network.model)
    rows = torch.cat(list(per_sample_gradients(network.model, network.loss_fn, vector, batch)))
    assert rows.shape == (5, SIZES[name])
    for index, row in enumerate(rows):
        network.model.zero_grad()
        network.loss_fn(network.model, tuple(part[index : index + 1] for part in batch)).backward()
        expected = torch.cat([parameter.grad.reshape(-1) for parameter in network.model.parameters()])
        assert float((row - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_the_hessian_is_symmetric_and_the_gradient_s_derivative(name, loss):
    network = small(name, loss)
    network.model.double()
    inputs, targets = (part[:8] for part in network.train)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    operator = HessianOperator(network.model, network.loss_fn, [(inputs, targets)])
    block = torch.randn(operator.shape[0], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = operator @ block
    crossed = block.mT @ images
    assert float((crossed[0, 1] - crossed[1, 0]).abs()) <= 1e-11 * float(images.norm() * block.norm())
    names = [found for found, _ in network.model.named_parameters()]
    ends = []
    for sign in (1.0, -1.0):
        moved = ParameterVector.of(network.model).split(operator.vector.current() + sign * 1e-5 * block[:, 0])
        values = {found: piece.detach().requires_grad_() for found, piece in zip(names, moved, strict=True)}
        loss_there = network.loss_fn(lambda x, at=values: functional_call(network.model, at, (x,)), (inputs, targets))
        ends.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_there, list(values.values()))]))
    assert float(((ends[0] - ends[1]) / 2e-5 - images[:, 0]).norm()) <= 1e-5 * float(images[:, 0].norm())


def test_the_transformer_does_not_look_ahead():
    model = load_network("text-transformer").model
    codes = load_text()[0][0][:2].clone()
    before = model(codes)
    codes[:, 20:] = (codes[:, 20:] + 1) % VOCABULARY
    after = model(codes)
    torch.testing.assert_close(after[:, :20], before[:, :20])
    assert not torch.allclose(after[:, 20], before[:, 20])


def test_an_attention_head_is_the_formula():
    torch.manual_seed(0)
    attention = Transformer(VOCABULARY, context=5, width=6, depth=1, heads=2).blocks[0].attention.double()
    stream = torch.randn(1, 4, 6, dtype=torch.float64)
    query, key, value = (stream[0] @ attention.project.weight.T + attention.project.bias).detach().split(6, dim=1)
    rows = []
    for t in range(4):
        parts = []
        for head in (slice(0, 3), slice(3, 6)):
            scores = [math.exp(float(query[t, head] @ key[s, head]) / math.sqrt(3)) for s in range(t + 1)]
            parts.append(sum(w / sum(scores) * value[s, head] for s, w in enumerate(scores)))
        rows.append(torch.cat(parts) @ attention.out.weight.T + attention.out.bias)
    future = torch.ones(4, 4, dtype=torch.bool).triu(1)
    torch.testing.assert_close(attention(stream, future)[0], torch.stack(rows))


def test_the_mlp_is_layers_with_tanh_between_them():
    model = tanh_mlp(3, 4, 2)
    x = torch.randn(5, 3)
    torch.testing.assert_close(model(x), model[2](torch.tanh(model[0](x))))


def test_text_is_coded_by_character_and_split_by_position():
    assert encode("\n ~Aé\t").tolist() == [1, 2, 96, ord("A") - 30, 0, 0]
    topics = __import__("pydoc_data.topics").topics.topics
    text = encode("".join(topics[name] for name in sorted(topics)))
    (inputs, targets), (later, _) = load_text()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs[0], text[:32])
    cut = len(text) * 9 // 10
    assert torch.equal(targets[-1], text[cut - 32 : cut])
    assert torch.equal(later[0], text[cut : cut + 32])


def test_a_python_without_its_help_topics_is_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InvalidArgument, match="needs the help topics of the standard library"):
        load_network("text-transformer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet"},
            "recipe: got 'resnet'; must be one of digits-mlp, digits-cnn, mnist5k-mlp, text-transform",
        ),
        (
            {"name": "text-transformer", "loss": "mse"},
            "loss: got 'mse'; text-transformer is trained with cross-entropy$",
        ),
        (
            {"name": "digits-mlp", "loss": "hinge"},
            "loss: got 'hinge'; digits-mlp is trained with mse or cross-entropy$",
        ),
        ({"name": "digits-mlp", "data": "here"}, "data: got 'here'; digits-mlp brings its own data$"),
        ({"name": "digits-mlp", "seed": 10**30}, "seed: got 10+; must be between 0 and 4611686018427387903$"),
        ({"name": "digits-mlp", "seed": -1}, "seed: got -1; must be between 0 and"),
    ],
)
def test_what_a_recipe_has_not_is_refused_by_name(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        load_network(**arguments)


@pytest.mark.parametrize("samples", [-1, 1501])
def test_more_curvature_samples_than_there_are_is_refused(samples):
    with pytest.raises(InvalidArgument, match=f"curvature_samples: got {samples}; must be between 1 and 1500"):
        load_network("digits-mlp").curvature_batches(samples)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "text-transformer"])
def test_sgd_lowers_the_loss_at_the_recipe_s_own_settings(name):
    for loss in NETWORKS[name].settings:
        network = load_network(name, loss)
        optimizer = torch.optim.SGD(network.model.parameters(), lr=network.step_size)
        generator = torch.Generator().manual_seed(0)
        before = network.losses()[0]
        for _ in range(60):
            optimizer.zero_grad()
            network.loss_fn(network.model, network.draw(generator, network.batch_size)).backward()
            optimizer.step()
        assert network.losses()[0] < before
