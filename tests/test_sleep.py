"Acceptance of sleep: the published rule written out plainly against both engines, hand-worked steps, bad input."

import copy
import dataclasses
import itertools
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from robustlit.data import load
from robustlit.evaluation import accuracy
from robustlit.sleep import stdp
from robustlit.sleep.conversion import NotAChain, chain, drive_factors, forward_rectified, largest
from robustlit.sleep.networks import READINGS, TRAINING, Dropout, View, descend, reader, report_convnet, square_error
from robustlit.sleep.stdp import (
    REPORT,
    RULES,
    EventEngine,
    Rule,
    TensorEngine,
    gate,
    image_dream,
    masked_mean_dream,
    raster,
    sleep,
    spike_chance,
)
from robustlit.training import set_seed

A = RULES["A"]
ENGINES = [EventEngine, TensorEngine]
QUICK = dict(thresholds=(0.3, 0.3), rate=400.0, steps=20)
seeded = lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def awake(digits):
    "A reader of digits as the authors train theirs."
    set_seed(0)
    net = reader(64, 10, (60, 50), **READINGS["authors"])
    return descend(
        net, digits.x_train, digits.y_train, 30, generator=seeded(), **TRAINING["authors"] | dict(batch_size=10)
    )


def twin(net):
    return copy.deepcopy(net)


def mlp(*sizes, bias=True):
    layers = [nn.Flatten()]
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b, bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small():
    set_seed(0)
    return mlp(64, 20, 10)


def snapshot(net):
    "All that a refused sleep must leave alone."
    return dict(
        tensors={k: v.clone() for k, v in net.state_dict().items()},
        modes=[m.training for m in net.modules()],
        grads=[p.requires_grad for p in net.parameters()],
        hooks=[len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        random=torch.get_rng_state(),
    )


def assert_same(a, b, but=()):
    for k in set(a) - {"tensors", "random", *but}:
        assert a[k] == b[k], k
    assert "random" in but or torch.equal(a["random"], b["random"])
    assert "tensors" in but or all(torch.equal(a["tensors"][k], b["tensors"][k]) for k in a["tensors"])


# The published rule, every weight in every step, in double precision; written without a look at the engines.


def plain_g(w, width):
    return 2 * (1 - 1 / (1 + np.exp(np.clip(-w / width, -700, 700))))


def plain_night(weights, spikes, rule, alpha):
    "Counts (steps, layers), fired and membranes of every step and layer, and the weights at the end."
    weights = [np.array(w, dtype=np.float64) for w in weights]
    membranes = [np.zeros(len(w)) for w in weights]
    by_weights, batch = rule.normalise == "weights", rule.rest_after or 10**9
    counts, fired_at, membranes_at = [], [], []
    for t, s in enumerate(np.asarray(spikes, dtype=np.float64).reshape(len(spikes), -1)):
        if by_weights and t % batch == 0:
            weights = [w * rule.scale for w in weights]
        row, whos, ms = [], [], []
        for k, w in enumerate(weights):
            v = membranes[k] = rule.leak * membranes[k] + alpha[k] * (w @ s)
            fired = v > rule.thresholds[k] if rule.strict else v >= rule.thresholds[k]
            if rule.reset == "zero":
                v[fired] = 0
            elif rule.reset == "subtract":
                v[fired] -= rule.thresholds[k]
            change = np.outer(fired, np.where(s > 0, rule.increase, -rule.decrease))
            weights[k] = w + (change * plain_g(w, rule.gate_width) if rule.gated else change)
            row.append(fired.sum()), whos.append(fired), ms.append(v.copy())
            s = fired.astype(np.float64)
        counts.append(row), fired_at.append(whos), membranes_at.append(ms)
        last_of_batch = (t + 1) % batch == 0
        if by_weights and (last_of_batch or t == len(spikes) - 1):
            weights = [w / rule.scale for w in weights]
        if last_of_batch:
            membranes = [np.zeros_like(v) for v in membranes]
    return np.array(counts), fired_at, membranes_at, weights


def plain_spikes(x, rule, seed):
    "The spikes that `sleep` draws from a generator with this seed, all at once."
    ids = torch.arange(rule.steps) // rule.steps_per_image % len(x)
    chance = (rule.per_spike * rule.dt * rule.rate * (x[ids].float() / 255)).clamp(max=1)
    return torch.rand(chance.shape, generator=seeded(seed)) < chance


def weights_of(net):
    return [m.weight.detach().double().numpy() for m in net.modules() if isinstance(m, nn.Linear)]


def setting(number, gated, reset, strict, normalise):
    "A rule and a network; what is not named comes from a generator."
    rng = np.random.default_rng(number)
    sizes = [64, *rng.integers(8, 25, 1 + number % 3), 10]
    rule = Rule(
        rate=float(rng.uniform(100, 400)),
        increase=float(rng.choice([0.0, 0.01, 0.06])),
        decrease=float(rng.choice([0.0, 0.005, 0.02])),
        thresholds=tuple(float(v) for v in rng.uniform(0.02, 0.3, len(sizes) - 1)),
        scale=float(rng.uniform(0.8, 2)),
        steps=int(rng.integers(20, 70)),
        steps_per_image=int(rng.integers(1, 4)),
        leak=float(rng.choice([0.0, 0.9, 0.999, 1.0])),
        gate_width=float(rng.choice([0.001, 0.02])),
        rest_after=[None, 5, 7][rng.integers(3)],
        previous=["applied", "largest"][number % 2],
        gated=gated,
        reset=reset,
        strict=strict,
        normalise=normalise,
    )
    torch.manual_seed(number)
    return rule, mlp(*sizes, bias=bool(number % 2))


SETTINGS = [
    (i, *o)
    for i, o in enumerate(
        itertools.product((True, False), ("zero", "subtract", "none"), (False, True), ("data", "weights", "none"))
    )
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: "-".join(map(str, o)))
def test_events_and_tensors_are_the_plain_rule(digits, options):
    rule, before = setting(*options)
    x = digits.x_train[:40]
    spikes, fired_layers = plain_spikes(x, rule, options[0]), 0
    for engine in ("event", "tensor"):
        net = twin(before)
        night = sleep(net, x, rule, seeded(options[0]), engine=engine, watch=rule.steps)
        counts, fired, membranes, weights = plain_night(weights_of(before), spikes, rule, night.alpha)
        assert (night.spikes == counts).all()
        for k, want in enumerate(weights):
            assert (night.fired[k] == np.array([f[k] for f in fired])).all()
            np.testing.assert_allclose(night.membranes[k], [m[k] for m in membranes], rtol=1e-10, atol=1e-11)
            np.testing.assert_allclose(night.after[k].numpy(), want, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(night.pixels, spikes.sum() / rule.steps)
        np.testing.assert_allclose(weights_of(net)[0], weights[0], rtol=1e-6, atol=1e-7)  # as float32
        fired_layers = (counts.sum(0) > 0).sum()
    assert fired_layers == len(rule.thresholds)


@pytest.mark.parametrize("seed", range(4))
def test_events_with_weights_far_from_and_near_zero(seed):
    "All branches of what is put off: frozen, in transition, and far below zero for many spikes at once."
    rng = np.random.default_rng(seed)
    net = mlp(12, 9, 7, bias=False)
    with torch.no_grad():
        for m in (net[1], net[3]):
            m.weight.copy_(torch.tensor(10.0 ** rng.uniform(-4, 0, m.weight.shape)))
            m.weight.mul_(torch.tensor(rng.choice([-0.1, 1, 1], m.weight.shape)))
    rule = dataclasses.replace(A, thresholds=(0.05, 0.05), increase=0.05, decrease=0.002)
    rare = torch.linspace(
        0.003, 0.2, 12
    )  # the first inputs fire once or twice, after hundreds of their neurons' spikes
    stages, spikes = chain(net, torch.zeros(1, 1, 3, 4)), torch.rand(400, 12, generator=seeded(seed)) < rare
    counts, _, _, weights = plain_night(weights_of(net), spikes, rule, (1.0, 2.0))
    assert counts.sum(0).min() > 100
    far = np.concatenate([w.flatten() for w in weights])
    assert (far > 0.04).any() and (far < -0.04).any() and (abs(far) < 0.04).any()
    for make in ENGINES:
        engine = make(stages, rule, (1.0, 2.0), torch.zeros(1, 1, 3, 4))
        assert (engine.run(spikes)[0] == counts).all()
        for a, b in zip(engine.weights(), weights):
            np.testing.assert_allclose(a.numpy(), b, rtol=0, atol=1e-10)


def test_looking_at_the_weights_on_the_way_changes_nothing():
    spikes = torch.rand(60, 64, generator=seeded()) < 0.3
    rule = dataclasses.replace(A, thresholds=(0.1, 0.1))
    one, many = (EventEngine(chain(small(), torch.zeros(1, 1, 8, 8)), rule, (1.0, 1.0)) for _ in range(2))
    counts = one.run(spikes)[0]
    pieces = []
    for part in spikes.split([1, 9, 0, 30, 20]):
        pieces.append(many.run(part)[0])
        many.weights()
    assert (np.concatenate(pieces) == counts).all()
    assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(one.weights(), many.weights()))


@pytest.mark.parametrize("engine", ["event", "tensor"])
@pytest.mark.parametrize(
    "rule", [dict(), dict(normalise="weights", rest_after=22, steps_per_image=2, reset="subtract")]
)
def test_chunks_do_not_matter(digits, monkeypatch, engine, rule):
    nights = []
    for chunk in (256, 1, 7):
        monkeypatch.setattr(stdp, "CHUNK", chunk)
        rule = dataclasses.replace(A, **QUICK, **rule) if isinstance(rule, dict) else rule
        rule = dataclasses.replace(rule, steps=90)
        nights.append(sleep(small(), digits.x_train, rule, seeded(3), engine=engine, watch=60))
    for night in nights[1:]:
        assert (night.spikes == nights[0].spikes).all() and night.pixels == nights[0].pixels
        for k in range(2):
            assert torch.allclose(night.after[k], nights[0].after[k], rtol=0, atol=1e-13)
            assert (night.fired[k] == nights[0].fired[k]).all() and night.fired[k].shape[0] == 60
            np.testing.assert_allclose(night.membranes[k], nights[0].membranes[k], atol=1e-12)


@pytest.mark.parametrize("engine", ["event", "tensor"])
def test_the_same_seed_is_the_same_night(digits, engine):
    rule = dataclasses.replace(A, **QUICK)
    one, two, other = (sleep(small(), digits.x_train, rule, seeded(s), engine=engine) for s in (1, 1, 2))
    assert (one.spikes == two.spikes).all() and all(torch.equal(a, b) for a, b in zip(one.after, two.after))
    assert not (one.spikes == other.spikes).all()


# D10 to D12 of the acceptance checks


@pytest.mark.parametrize("name", list(RULES))
def test_d10_zero_input_changes_nothing(digits, name):
    set_seed(0)
    net = reader(64, 10, (12, 11), **READINGS["report"])
    dark = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    night = sleep(net, dark, name, seeded(), s=[1.0, 1.0, 1.0], steps=300, shrink=False, biases="keep")
    assert night.spikes.sum() == 0 and night.pixels == 0
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(night.before, night.after))


@pytest.mark.parametrize("make", ENGINES)
def test_d10_a_forced_spike(make):
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 1, bias=False))
    w = torch.tensor([[-0.05, -0.05, 0.05, 0.05, 1.0]])
    net[1].weight.data.copy_(w)
    rule = dataclasses.replace(A, thresholds=(0.5,))
    x = torch.zeros(1, 1, 1, 5)
    engine = make(chain(net, x), rule, (1.0,), x)
    counted, watched = engine.run(torch.tensor([[True, False, True, False, True]]), watch=1)
    moved = (engine.weights()[0] - w.double())[0].tolist()
    assert counted.tolist() == [[1]] and watched[0][1].tolist() == [[0.0]]  # it fired, and its membrane is at zero
    np.testing.assert_allclose(moved[:2], [0.127994, -0.138440], rtol=1e-12)
    assert abs(moved[2]) < 1e-20 and abs(moved[3]) < 1e-20 and moved[4] == 0


def test_d10_the_gate():
    w = torch.tensor([-1.0, -0.05, 0.0, 0.001, 0.05], dtype=torch.float64)
    np.testing.assert_allclose(gate(w), [2, 2, 1, 2 / (1 + math.e), 2 * math.exp(-50)], rtol=1e-12)
    assert A.increase * float(gate(w)[-1]) < 1e-20


def test_d10_chance_of_a_spike(digits):
    x = torch.tensor([0.0, 0.5, 1.0])
    np.testing.assert_allclose(spike_chance(x, A), [0, 0.07807 / 2, 0.07807], atol=5e-6)
    np.testing.assert_allclose(spike_chance(x, REPORT), [0, 0.2, 0.4], atol=1e-6)
    assert spike_chance(torch.tensor(1.0), dataclasses.replace(A, rate=1e6)) == 1
    white = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    night = sleep(small(), white, A, seeded(), thresholds=(1e9, 1e9), steps=2000)
    assert abs(night.pixels / 64 - 0.07807) < 4 * math.sqrt(0.078 * 0.922 / 128_000)


def test_d11_normalisation_factors(digits):
    r = [2, 1.5, 4 / 1.5]
    np.testing.assert_allclose(drive_factors((2, 3, 4)), [1 / v for v in r])
    np.testing.assert_allclose(drive_factors((2, 3, 4)), (0.5, 2 / 3, 0.375))
    np.testing.assert_allclose(drive_factors((2, 3, 4), 2.5), [2.5 / v for v in r])
    np.testing.assert_allclose(drive_factors((2, 3, 4), previous="largest"), [1 / 2, 2 / 3, 3 / 4])
    net = mlp(64, 9, 8, 10)
    night = sleep(net, digits.x_train, "A", s=[2, 3, 4], steps=1)
    np.testing.assert_allclose(night.alpha, [A.scale / v for v in r])
    np.testing.assert_allclose(sleep(net, digits.x_train, "report", steps=0).alpha, [1, 1, 1])


def constant_share(net, x):
    with torch.no_grad():
        return float(net.eval()(x.float() / 255).argmax(1).bincount(minlength=10).max()) / len(x)


def collapses(net, data, images=10):
    "The report's sleep, a hundred steps an image."
    before = accuracy(net, data.x_test, data.y_test)
    sleep(net, data.x_train[:images], "report", seeded(), steps=100 * images)
    return before, accuracy(net, data.x_test, data.y_test), constant_share(net, data.x_test)


@pytest.mark.parametrize("seed", range(2))
def test_the_reports_rule_collapses_on_digits_too(seed):
    data, generator = load("digits", size=28), set_seed(seed)
    net = reader(784, 10, (400, 400), **READINGS["report"])
    descend(net, data.x_train, data.y_train, 10, generator=generator, **TRAINING["report"])
    awake = copy.deepcopy(net)
    before, after, share = collapses(net, data, 40)
    sleep(awake, data.x_train, "A", seeded(), steps=4000)
    assert before > 80 and after < before / 2, (before, after, share)
    assert accuracy(awake, data.x_test, data.y_test) > 80  # the authors' rule, as many steps


def test_d12_the_reports_rule_collapses_within_ten_images_mnist():
    try:
        data = load("mnist", valid=0, download=False).subset(n_train=4000, n_test=1000)
    except (FileNotFoundError, OSError):
        pytest.skip("MNIST is not on this machine")
    generator = set_seed(0)
    net = reader(784, 10, (300, 300), **READINGS["report"])
    descend(net, data.x_train, data.y_train, 3, generator=generator, **TRAINING["report"])
    before, after, share = collapses(net, data)
    assert before > 75 and after < 25, (before, after, share)


# The rule's other details, by hand


def one_neuron(weights, spikes, alpha=1.0, **changes):
    "Membranes of one neuron over some steps, who fired, and its weights at the end, of both engines."
    rule = Rule(**dict(increase=0.0, decrease=0.0, leak=1.0, thresholds=(1.0,)) | changes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(weights), 1, bias=False))
    net[1].weight.data.copy_(torch.tensor([weights]))
    found, x = [], torch.zeros(1, 1, 1, len(weights))
    for make in ENGINES:
        engine = make(chain(net, x), rule, (alpha,), x)
        _, watched = engine.run(torch.tensor(spikes, dtype=torch.bool), len(spikes))
        (fired, membranes), w = watched[0], engine.weights()[0][0].tolist()
        found.append((membranes[:, 0].tolist(), fired[:, 0].tolist(), w))
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    return found[0]


def test_a_neuron_fires_at_its_threshold_or_only_above():
    on = [[1]] * 4
    assert one_neuron([0.5], on)[:2] == ([0.5, 0, 0.5, 0], [False, True, False, True])
    assert one_neuron([0.5], on, strict=True)[:2] == ([0.5, 1, 0, 0.5], [False, False, True, False])


def test_resets():
    on = [[1]] * 3
    assert one_neuron([0.75], on)[0] == [0.75, 0, 0.75]
    assert one_neuron([0.75], on, reset="subtract")[0] == [0.75, 0.5, 0.25]
    assert one_neuron([0.75], on, reset="none")[:2] == ([0.75, 1.5, 2.25], [False, True, True])


def test_leak_and_drive():
    assert one_neuron([0.5], [[1], [0], [0], [1]], leak=0.5)[0] == [0.5, 0.25, 0.125, 0.5625]
    assert one_neuron([0.125], [[1], [1]], alpha=2.0)[0] == [0.25, 0.5]


def test_without_the_gate_all_weights_move_alike():
    _, _, w = one_neuron([2.0, -2.0, 1e-4, 2.0], [[1, 0, 0, 0], [0, 0, 1, 1]], increase=0.25, decrease=0.5, gated=False)
    np.testing.assert_allclose(w, [1.75, -3, -0.2499, 1.75], atol=1e-7)


def test_changes_of_the_first_layer_reach_the_second_only_as_spikes_of_the_same_step():
    net = mlp(2, 1, 1, bias=False)
    net[1].weight.data.copy_(torch.tensor([[1.0, -0.5]])), net[3].weight.data.fill_(-0.25)
    x = torch.zeros(1, 1, 1, 2)
    rule = Rule(thresholds=(0.9, 1e-3), increase=0.5, decrease=0.25, gated=False)
    for make in ENGINES:
        engine = make(chain(net, x), rule, (1.0, -1.0), x)
        counted, _ = engine.run(torch.tensor([[True, False], [True, True]]))
        first, second = (w.flatten().tolist() for w in engine.weights())
        assert counted.tolist() == [[1, 1], [0, 0]]  # 1.5 - 0.75 < 0.9: the first step's change counts in the second
        assert first == [1.5, -0.75] and second == [0.25]


def test_the_reports_slips_are_switches(digits):
    for shrink, biases in itertools.product((False, True), ("keep", "random")):
        set_seed(0)
        net = mlp(64, 20, 15, 10)
        kept = [m.bias.clone() for m in net if isinstance(m, nn.Linear)]
        night = sleep(net, digits.x_train, "report", seeded(), steps=50, shrink=shrink, biases=biases)
        for m, after, bias in zip((m for m in net if isinstance(m, nn.Linear)), night.after, kept):
            want = after / (2.19 if shrink else 1)
            torch.testing.assert_close(m.weight.detach().double(), want, rtol=1e-6, atol=1e-8)
            assert torch.equal(m.bias, bias) == (biases == "keep")
            assert m.bias.abs().max() <= m.in_features**-0.5


def test_the_published_vectors():
    a, b = RULES["A"], RULES["B"]
    assert (a.rate, a.increase, a.decrease, a.scale, a.steps) == (39.037119, 0.063997, 0.069220, 2.193698, 27105)
    assert a.thresholds == (36.186585, 23.362736, 36.384713)
    assert (b.rate, b.increase, b.decrease, b.scale, b.steps) == (455.364521, 0.066056, 0.054991, 34.657870, 3365)
    assert b.thresholds == (22.687400, 48.092672, 18.983305)
    for rule in (v for k, v in RULES.items() if k != "report"):
        assert (rule.dt, rule.leak, rule.gated, rule.gate_width, rule.reset) == (0.001, 0.999, True, 0.001, "zero")
        assert (rule.normalise, rule.previous, rule.strict, rule.rest_after, rule.per_spike) == (
            "data",
            "applied",
            False,
            None,
            2,
        )
    assert REPORT.steps == 27105 * 100 and REPORT.rest_after == 128 * 100 and REPORT.steps_per_image == 100
    assert REPORT.thresholds == (16.281, 0.369, 16.371) and not REPORT.gated and REPORT.leak == 1


def test_a_switch_of_the_drive_leaves_the_rests_where_they_were():
    rested = lambda rule: [last for _, last, rest in stdp._chunks(dataclasses.replace(rule, steps=30_000)) if rest]
    assert rested(REPORT) == [12_800, 25_600] and rested(A) == []
    assert rested(dataclasses.replace(REPORT, steps_per_image=1, dt=0.001, per_spike=2.0)) == [12_800, 25_600]


# Dreams


def test_images_follow_one_another(digits):
    x = digits.x_train[:5]
    got = image_dream(x, 3)(4, 18, None)
    assert torch.equal(got, x[torch.tensor([1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 0, 0, 0])].float() / 255)
    floats = x.float() / 255
    assert torch.equal(image_dream(floats, 3)(4, 18, None), got)


def test_the_masked_mean_is_a_window_of_the_mean(digits):
    x = digits.x_train
    mean, seen = (x.double() / 255).mean(0)[0], masked_mean_dream(x, 3)(0, 400, seeded())
    tops = set()
    for frame in seen[:, 0]:
        rows, columns = (frame > 0).any(1).nonzero().flatten(), (frame > 0).any(0).nonzero().flatten()
        assert rows[-1] - rows[0] < 3 and columns[-1] - columns[0] < 3
        torch.testing.assert_close(frame[frame > 0].double(), mean[frame > 0], rtol=1e-5, atol=1e-6)
        tops.add((int(rows[0]), int(columns[0])))
    assert len(tops) > 25
    with pytest.raises(ValueError, match="`side`"):
        masked_mean_dream(x, 9)


# Networks and conversion


def test_largest_by_hand_with_the_classic_factor(awake, digits):
    x = digits.x_train
    w1, w2, w3 = (m.weight.detach() for m in awake if isinstance(m, nn.Linear))
    a1 = 0.8 * (x.flatten(1).float() / 255 @ w1.T).relu()
    a2 = 0.8 * (a1 @ w2.T).relu()
    want = [max(float(w.max()), float(a.max())) for w, a in ((w1, a1), (w2, a2), (w3, a2 @ w3.T))]
    awake.train()
    stages = chain(awake, x[:2].float() / 255)
    np.testing.assert_allclose(largest(awake, stages, x, batch_size=77), want, rtol=1e-5)
    np.testing.assert_allclose(largest(awake, stages, x.float() / 255), want, rtol=1e-5)
    assert awake.training
    awake.eval()
    np.testing.assert_allclose(awake(x[:9].float() / 255).detach(), (a2 @ w3.T)[:9], rtol=1e-4, atol=1e-5)


def test_a_large_weight_counts_where_activations_are_small(digits):
    net = small()
    net[1].weight.data.mul_(1e-3)[0, 0] = 50.0  # a pixel that is always black
    x = digits.x_train.clone()
    x[:, :, 0, 0] = 0
    assert largest(net, chain(net, x[:2].float() / 255), x)[0] == 50


def test_square_error_takes_no_notice_of_the_rectifier():
    torch.manual_seed(0)
    z, y = torch.randn(7, 4, requires_grad=True), torch.randint(4, (7,))
    target = F.one_hot(y, 4).float()
    loss = square_error(z, y)
    loss.backward()
    np.testing.assert_allclose(loss.item(), 0.5 * (z.detach().relu() - target).square().sum(1).mean(), rtol=1e-6)
    torch.testing.assert_close(z.grad, (z.detach().relu() - target) / 7)
    assert (z.grad[(z < 0) & (target > 0)] != 0).all()
    torch.testing.assert_close(square_error(z, target), loss)


def test_dropout_of_three_kinds():
    torch.manual_seed(0)
    x = torch.ones(100_000)
    for kind, train, test in (
        ("classic", {0, 1}, {0.8}),
        ("inverted", {0, 1.25}, {1}),
        ("always", {0, 1.25}, {0, 1.25}),
    ):
        layer = Dropout(0.2, kind)
        for mode, want in ((True, train), (False, test)):
            got = layer.train(mode)(x)
            assert {round(v, 4) for v in got.unique().tolist()} == want
            assert len(want) == 1 or abs((got == 0).float().mean() - 0.2) < 0.01
    with pytest.raises(ValueError, match="`kind` is unknown"):
        Dropout(0.2, "classical")
    with pytest.raises(ValueError, match="`p`"):
        Dropout(1.0)


def test_the_two_readings_of_the_reader():
    set_seed(0)
    authors, report = (reader(**READINGS[k]) for k in ("authors", "report"))
    kinds = lambda net: [type(m).__name__ for m in net]
    assert kinds(authors) == ["Flatten", *["Linear", "ReLU", "Dropout"] * 2, "Linear"]
    assert kinds(report) == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]
    assert [tuple(p.shape) for p in authors.parameters()] == [(1200, 784), (1200, 1200), (10, 1200)]
    assert len(list(report.parameters())) == 6
    assert all(0.0099 < float(p.detach().abs().max()) <= 0.01 for p in authors.parameters())
    assert 0.035 < float(report[1].weight.detach().abs().max()) <= 784**-0.5
    assert authors[3].kind == "classic" and report[3].kind == "inverted"
    assert [s.name for s in chain(authors, torch.rand(2, 1, 28, 28))] == ["1", "4", "7"]
    assert [s.name for s in chain(report_convnet(), torch.rand(2, 1, 28, 28))] == ["0", "3", "8", "10"]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.p = nn.Linear(64, 30), nn.Linear(30, 10), 0.5

    def forward(self, x):
        x = torch.relu(self.first(x.view(x.size(0), -1)))
        return self.second(F.dropout(x, self.p, self.training))


class SmallConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(96, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.out(torch.flatten(x, 1))


@pytest.mark.parametrize("make", [Functional, SmallConv], ids=["mlp", "conv"])
def test_a_network_of_your_own_sleeps_in_five_lines(digits, make):
    net = make()
    descend(net, digits.x_train, digits.y_train, 3)
    night = sleep(net, digits.x_train, "A", steps=300, rate=400, thresholds=(1, 1), watch=100)
    table = night.summary()
    ax = raster(night)
    assert list(table.layer) == [n for n, m in net.named_modules() if not list(m.children())]
    assert (table.spikes > 0).all() and (table.changed > 0).all() and "300 steps" in repr(night)
    assert ax.get_xlabel() == "time asleep (ms)" and len(ax.get_lines()) >= 2
    plt.close(ax.figure)


def test_forward_rectified_is_the_network(digits):
    for net, x in ((small(), digits.x_train[:5].float() / 255), (report_convnet().eval(), torch.rand(3, 1, 28, 28))):
        layers = forward_rectified(chain(net, x), x)
        torch.testing.assert_close(layers[-1], net(x))
        assert all((a >= 0).all() for a in layers[:-1])


def test_a_view_sleeps_where_its_last_step_can(digits):
    for kind in ("logits", "rectified"):
        night = sleep(View(small(), kind), digits.x_train, A, seeded(), **QUICK)
        assert night.names == ["model.1", "model.3"]
    with pytest.raises(NotAChain, match="softmax"):
        sleep(View(small(), "softmax"), digits.x_train, A, **QUICK)


# Convolutions


def test_a_convolution_of_one_pixel_is_a_linear_layer():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(16, 12, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 10))
    linear = mlp(16, 12, 10)
    linear[1].weight.data.copy_(conv[0].weight[:, :, 0, 0]), linear[1].bias.data.copy_(conv[0].bias)
    linear[3].load_state_dict(conv[3].state_dict())
    x = torch.randint(256, (30, 16, 1, 1), dtype=torch.uint8)
    rule = dataclasses.replace(A, thresholds=(0.2, 0.2), steps=200, rate=200, decrease=0.005)
    a, b = sleep(conv, x, rule, seeded(1)), sleep(linear, x, rule, seeded(1), engine="event")
    assert (a.spikes == b.spikes).all() and a.spikes.sum(0).min() > 100
    torch.testing.assert_close(a.after[0][:, :, 0, 0], b.after[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(a.after[1], b.after[1], rtol=0, atol=1e-10)


def one_kernel(kernel, image, padding=0):
    conv = nn.Conv2d(1, 1, kernel.shape, padding=padding, bias=False)
    conv.weight.data[0, 0] = kernel
    net = nn.Sequential(conv)
    rule = Rule(thresholds=(1.0,), increase=0.5, decrease=0.25, gated=False, leak=1.0)
    engine = TensorEngine(chain(net, image[None, None].float()), rule, (1.0,), image[None, None].float())
    counted, _ = engine.run(image[None, None].bool())
    return int(counted[0, 0]), engine.weights()[0][0, 0]


def test_a_kernel_moves_by_the_mean_over_the_places_that_fired():
    kernel = torch.ones(1, 2)
    fired, w = one_kernel(kernel, torch.tensor([[1, 0, 1, 0, 0]]))
    assert fired == 3  # at 1 0, 0 1 and 1 0, but not at 0 0: the left weight's input came two times in three
    torch.testing.assert_close(w, torch.tensor([[1.25, 1.0]], dtype=torch.float64))


def test_what_lies_outside_the_image_is_silent():
    fired, w = one_kernel(torch.ones(3, 3), torch.ones(1, 1), padding=1)
    want = torch.full((3, 3), 0.75, dtype=torch.float64)
    want[1, 1] = 1.5
    assert fired == 1 and torch.equal(w, want)


@pytest.mark.parametrize("stride,padding,dilation", [(1, 0, 1), (2, 1, 1), (2, 0, 2), (3, 2, 1)])
@pytest.mark.parametrize("gated", [True, False])
def test_a_convolution_by_loops(stride, padding, dilation, gated):
    torch.manual_seed(stride)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride, padding, dilation, bias=False))
    rule = Rule(thresholds=(0.1,), increase=0.02, decrease=0.01, gated=gated, leak=0.9, gate_width=0.05)
    x = torch.zeros(1, 2, 8, 7)
    engine = TensorEngine(chain(net, x), rule, (1.5,), x)
    spikes = torch.rand(12, 2, 8, 7, generator=seeded()) < 0.3
    w = net[0].weight.detach().double().numpy().copy()
    shape = tuple(engine.v[0].shape[1:])
    v, total = np.zeros(shape), 0
    for s in np.pad(spikes.numpy().astype(float), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2)):
        patch = lambda i, j, s=s: s[:, i * stride :, j * stride :][:, : 2 * dilation + 1, : 2 * dilation + 1][
            :, ::dilation, ::dilation
        ]
        places, moved = itertools.product(range(shape[1]), range(shape[2])), np.zeros_like(w)
        counts = np.zeros(3)
        for i, j in places:
            v[:, i, j] = 0.9 * v[:, i, j] + 1.5 * np.einsum("ocab,cab->o", w, patch(i, j))
            for o in np.flatnonzero(v[:, i, j] >= 0.1):
                v[o, i, j], counts[o] = 0, counts[o] + 1
                moved[o] += np.where(patch(i, j) > 0, 0.02, -0.01)
        moved /= np.maximum(counts, 1)[:, None, None, None]
        w, total = w + moved * (plain_g(w, 0.05) if gated else 1), total + counts.sum()
    assert engine.run(spikes)[0].sum() == total > 20
    np.testing.assert_allclose(engine.weights()[0].numpy(), w, rtol=0, atol=1e-12)


# Refusals, errors and what they leave behind


def with_layer(layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), layer, nn.ReLU(), nn.Linear(20, 10))


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        h = torch.relu(self.a(x.flatten(1)))
        return self.c(h + torch.relu(self.b(h)))


class Branching(Skip):
    def forward(self, x):
        h = x.flatten(1)
        return self.c(torch.relu(self.a(h) if h.sum() > 0 else self.b(h)))


class TwoInputs(Skip):
    def forward(self, x, y):
        return self.c(torch.relu(self.a(x.flatten(1))))


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.1))
        self.net = small()

    def forward(self, x):
        return self.net((x - self.mean) / 0.3)


def broken(value):
    net = small()
    net[1].weight.data[0, 0] = value
    return net


def tied():
    net = mlp(64, 20, 20, 10)
    net.add_module("again", nn.Linear(20, 10))
    net[5].weight = net[3].weight = nn.Parameter(torch.rand(20, 20))
    return nn.Sequential(net[0], net[1], nn.ReLU(), net[3], nn.ReLU(), net[5])


def twice():
    layer = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


REFUSED = {
    "batch norm": (lambda: with_layer(nn.BatchNorm1d(20)), "BatchNorm1d; fold it"),
    "layer norm": (lambda: with_layer(nn.LayerNorm(20)), "LayerNorm"),
    "other nonlinearity": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 10)), "Tanh"),
    "no rectifier": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Linear(20, 10)), "no ReLU after layer"),
    "skip connection": (Skip, "skip connection"),
    "branch": (Branching, "cannot be traced"),
    "two inputs": (TwoInputs, "images and nothing else"),
    "normalisation first": (Normalised, "mean"),
    "softmax": (lambda: nn.Sequential(*small(), nn.Softmax(1)), "Softmax"),
    "no layers": (lambda: nn.Sequential(nn.Flatten()), "no Linear or Conv2d"),
    "nothing": (lambda: nn.Sequential(), "no Linear or Conv2d"),
    "NaN weight": (lambda: broken(math.nan), "not all finite"),
    "infinite weight": (lambda: broken(-math.inf), "not all finite"),
    "tied weights": (tied, "share their weights"),
    "one layer twice": (twice, "share their weights"),
    "groups": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)), "one group"),
    "reflecting": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")), "zero padding"),
    "another image size": (lambda: mlp(49, 20, 10), "49"),
}


@pytest.mark.parametrize("why", list(REFUSED))
def test_networks_that_cannot_sleep_are_refused(digits, why):
    make, told = REFUSED[why]
    net = make().train()
    before = snapshot(net)
    with pytest.raises(ValueError, match=told):
        sleep(net, digits.x_train, A, seeded(), steps=5)
    for key, kept in before["tensors"].items():
        assert torch.equal(net.state_dict()[key].nan_to_num(7), kept.nan_to_num(7))
    assert_same(before, snapshot(net), but=("tensors",))


BAD = {
    "brighter than white": (lambda x: dict(x=x.float()), ValueError, r"must lie in \[0, 1\]"),
    "darker than black": (lambda x: dict(x=x.float() / 255 - 0.1), ValueError, r"must lie in \[0, 1\]"),
    "NaN image": (lambda x: dict(x=x.float() / 255 * math.nan), ValueError, "must be finite"),
    "integers": (lambda x: dict(x=x.long()), TypeError, "floats in"),
    "numpy": (lambda x: dict(x=x.numpy()), TypeError, "torch.Tensor"),
    "three axes": (lambda x: dict(x=x[:, 0]), ValueError, "must have shape"),
    "no images": (lambda x: dict(x=x[:0]), ValueError, "at least one image"),
    "thresholds": (lambda x: dict(thresholds=(1.0, 1.0, 1.0)), ValueError, "each of the 2 layers \\(1, 3\\), got 3"),
    "zero threshold": (lambda x: dict(thresholds=(0.0, 1.0)), ValueError, "thresholds"),
    "NaN threshold": (lambda x: dict(thresholds=(math.nan, 1.0)), ValueError, "thresholds"),
    "rate": (lambda x: dict(rate=-1), ValueError, "`rate`"),
    "infinite rate": (lambda x: dict(rate=math.inf), ValueError, "`rate`"),
    "leak": (lambda x: dict(leak=1.1), ValueError, "`leak`"),
    "steps": (lambda x: dict(steps=1.5), TypeError, "`steps`"),
    "rest": (lambda x: dict(rest_after=0), ValueError, "`rest_after`"),
    "reset": (lambda x: dict(reset="zeros"), ValueError, "did you mean 'zero'"),
    "normalise": (lambda x: dict(normalise="datas"), ValueError, "did you mean 'data'"),
    "previous": (lambda x: dict(previous="last"), ValueError, "`previous` is unknown"),
    "rule": (lambda x: dict(rule="reports"), ValueError, "did you mean 'report'"),
    "unknown field": (lambda x: dict(step=3), TypeError, "step"),
    "engine": (lambda x: dict(engine="events"), ValueError, "did you mean 'event'"),
    "too few s": (lambda x: dict(s=[1.0]), ValueError, "`s` must have a positive value"),
    "silent s": (lambda x: dict(s=[1.0, 0.0]), ValueError, "`s` must have a positive value"),
    "NaN s": (lambda x: dict(s=[1.0, math.nan]), ValueError, "`s`"),
    "watch": (lambda x: dict(watch=-1), ValueError, "`watch`"),
}


@pytest.mark.parametrize("why", list(BAD))
def test_bad_arguments_are_refused(digits, why):
    make, error, told = BAD[why]
    net = small()
    before = snapshot(net)
    args = dict(x=digits.x_train, rule="A", generator=seeded()) | QUICK | make(digits.x_train)
    with pytest.raises(error, match=told):
        sleep(net, **args)
    assert_same(before, snapshot(net))


def test_the_event_engine_takes_linear_layers_only(digits):
    with pytest.raises(ValueError, match="linear layers only"):
        sleep(SmallConv(), digits.x_train, A, engine="event", **QUICK)


def test_images_on_another_device_are_refused(digits):
    with pytest.raises(ValueError, match="network's device"):
        sleep(small().to("meta"), digits.x_train, A, **QUICK)
    with pytest.raises(ValueError, match="network's device"):
        sleep(small(), digits.x_train.to("meta"), A, **QUICK)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("engine", ["event", "tensor"])
def test_a_nightmare_leaves_the_network_as_it_was(digits, monkeypatch, error, engine):
    monkeypatch.setattr(stdp, "CHUNK", 10)

    def nightmare(first, last, generator):
        if first >= 10:
            raise error("woken")
        return image_dream(digits.x_train)(first, last, generator)

    net = small().train()
    net[1].eval(), net[3].weight.requires_grad_(False)
    before = snapshot(net)
    with pytest.raises(error):
        sleep(net, digits.x_train, A, seeded(), dream=nightmare, engine=engine, **QUICK)
    assert_same(before, snapshot(net))


def test_infinite_weights_never_reach_the_network(digits):
    net = small()
    before = snapshot(net)
    with pytest.raises(FloatingPointError, match="as it was"):
        sleep(net, digits.x_train, A, seeded(), **QUICK | dict(gated=False, increase=1e308, decrease=0.0))
    assert_same(before, snapshot(net))


def test_a_night_touches_weights_and_nothing_else(digits):
    net = small().train()
    net[1].eval(), net[3].weight.requires_grad_(False)
    before, parameters = snapshot(net), list(net.parameters())
    sleep(net, digits.x_train, A, seeded(), **QUICK)
    after = snapshot(net)
    assert_same(before, after, but=("tensors",))
    changed = {k for k in before["tensors"] if not torch.equal(before["tensors"][k], after["tensors"][k])}
    assert changed == {"1.weight", "3.weight"}
    assert all(a is b for a, b in zip(parameters, net.parameters()))  # an optimizer keeps hold of them
    net(digits.x_train[:2].float() / 255).sum().backward()


def test_no_steps_change_nothing(digits):
    for normalise in ("data", "weights", "none"):
        net = small()
        before = snapshot(net)
        night = sleep(net, digits.x_train, A, seeded(), **QUICK | dict(steps=0, normalise=normalise))
        assert_same(before, snapshot(net))
        assert night.spikes.shape == (0, 2) and len(night.summary()) == 2


def test_one_image_will_do(digits):
    assert sleep(small(), digits.x_train[:1], A, seeded(), **QUICK).spikes.shape == (20, 2)


def test_bytes_and_floats_sleep_alike(digits):
    x, nights = digits.x_train[:50], []
    for images in (x, x.float() / 255):
        nights.append(sleep(small(), images, A, seeded(), **QUICK))
    assert (nights[0].spikes == nights[1].spikes).all()
    assert all(torch.equal(a, b) for a, b in zip(nights[0].after, nights[1].after))


def test_watching(digits):
    night = sleep(small(), digits.x_train, A, seeded(), watch=7, **QUICK)
    assert [f.shape for f in night.fired] == [(7, 20), (7, 10)] == [m.shape for m in night.membranes]
    assert (np.stack([f.sum(1) for f in night.fired], 1) == night.spikes[:7]).all()
    with pytest.raises(ValueError, match="nothing was watched"):
        raster(sleep(small(), digits.x_train, A, seeded(), **QUICK))


def test_the_summary_counts(digits):
    night = sleep(small(), digits.x_train, A, seeded(), **QUICK)
    table = night.summary()
    assert table.spikes.tolist() == night.spikes.sum(0).tolist() and table.units.tolist() == [20, 10]
    np.testing.assert_allclose(table.rate, 100 * night.spikes.sum(0) / (20 * np.array([20, 10])))
    a, b = night.before[0], night.after[0]
    np.testing.assert_allclose(table.change[0], 100 * float((b - a).norm() / a.norm()))
    np.testing.assert_allclose(table.changed[0], 100 * float((a != b).double().mean()))


def test_pooling_between_linear_layers_is_not_lost(digits):
    nights = []
    for engine in ("auto", "tensor"):
        set_seed(0)
        net = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 10))
        nights.append(sleep(net, digits.x_train, A, seeded(), engine=engine, **QUICK))
    assert (nights[0].spikes == nights[1].spikes).all()


def test_a_linear_layer_over_the_rows_of_an_image_is_refused(digits):
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))
    with pytest.raises(NotAChain, match="Flatten"):
        sleep(net, digits.x_train, A, seeded(), **QUICK)


DREAMS = {
    "other size": lambda n: torch.zeros(n, 1, 28, 28),
    "too few": lambda n: torch.zeros(n - 1, 1, 8, 8),
    "NaN": lambda n: torch.full((n, 1, 8, 8), math.nan),
    "nothing": lambda n: None,
}


@pytest.mark.parametrize("engine", ["event", "tensor"])
@pytest.mark.parametrize("why", list(DREAMS))
def test_dreams_of_another_form_are_refused(digits, why, engine):
    net = small()
    before = snapshot(net)
    with pytest.raises((ValueError, TypeError), match="dream"):
        sleep(net, digits.x_train, A, seeded(), dream=lambda a, b, g: DREAMS[why](b - a), engine=engine, **QUICK)
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("width", [3, 63, 65, 784])
def test_spikes_of_another_width_are_refused(width):
    x = torch.zeros(1, 1, 8, 8)
    engine = EventEngine(chain(small(), x), dataclasses.replace(A, **QUICK), (1.0, 1.0), x)
    with pytest.raises(ValueError, match="64"):
        engine.run(torch.ones(3, width, dtype=torch.bool))


@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_same_is_padding_in_numbers(digits, dilation):
    nights = []
    for padding in ("same", dilation):
        set_seed(0)
        conv = nn.Conv2d(1, 4, 3, padding=padding, dilation=dilation)
        net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
        nights.append(sleep(net, digits.x_train, A, seeded(), **QUICK))
    assert all(torch.equal(a, b) for a, b in zip(nights[0].after, nights[1].after))


COMPUTED = {
    "weight norm": lambda layer: parametrizations.weight_norm(layer),
    "spectral norm": lambda layer: parametrizations.spectral_norm(layer),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("how", list(COMPUTED))
def test_weights_that_are_computed_are_refused(digits, how):
    net = small()
    COMPUTED[how](net[1])
    with pytest.raises(NotAChain, match="`1`"):
        sleep(net, digits.x_train, A, seeded(), **QUICK)


@pytest.mark.parametrize("kind", ["inverted", "classic"])
def test_biases_that_are_not_finite_are_refused(digits, kind):
    net = reader(64, 10, (20,), bias=True, dropout_kind=kind)
    net[1].bias.data[0] = math.nan
    with pytest.raises(NotAChain, match="not all finite"):
        sleep(net, digits.x_train, A, seeded(), **QUICK)


def test_all_that_is_random_comes_from_the_generator(digits):
    biases = []
    for _ in range(2):
        net = small()
        torch.manual_seed(len(biases))
        before = torch.get_rng_state()
        sleep(net, digits.x_train, "report", seeded(5), thresholds=(1.0, 1.0), steps=20)
        assert torch.equal(before, torch.get_rng_state())
        biases.append(net[3].bias.detach())
    assert torch.equal(*biases)


def test_dropout_that_is_always_on_is_off_in_sleep(digits):
    nights = []
    for _ in range(2):
        set_seed(0)
        net = reader(64, 10, (20,), dropout_kind="always")
        torch.manual_seed(len(nights))
        before = snapshot(net)
        nights.append(sleep(net, digits.x_train, A, seeded(), **QUICK | dict(steps=1)))
        assert torch.equal(before["random"], torch.get_rng_state())
        assert [m.p for m in net.modules() if isinstance(m, Dropout)] == [0.2]
    assert nights[0].alpha == nights[1].alpha


@pytest.mark.parametrize("kind", ["inverted", "classic", "always"])
def test_a_wrong_reading_is_noticed_whatever_the_dropout(digits, kind):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.ReLU(), Dropout(0.2, kind), nn.Flatten(), nn.Linear(36, 10)
    )
    with pytest.raises(NotAChain, match="one after the other"):
        sleep(net, digits.x_train, A, seeded(), **QUICK)


def test_a_network_in_double_precision_sleeps(digits):
    net = small().double()
    night = sleep(net, digits.x_train.double() / 255, A, seeded(), **QUICK)
    assert torch.equal(net[1].weight, night.after[0])
    sleep(net, digits.x_train, A, seeded(), **QUICK)


def test_no_float_images(digits):
    with pytest.raises(ValueError, match="at least one image"):
        sleep(small(), digits.x_train[:0].float(), A, **QUICK)


def test_a_network_may_end_in_pooling(digits):
    for size, pool in ((1, nn.AdaptiveAvgPool2d(1)), (6, nn.Identity())):
        head = nn.Conv2d(4, 10, size)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), head, pool, nn.Flatten())
        assert sleep(net, digits.x_train, A, seeded(), **QUICK).spikes.shape == (20, 2)


class Pair(SmallConv):
    def forward(self, x):
        return (super().forward(x),)


class Global(SmallConv):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 10)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.out(F.avg_pool2d(x, x.size()[2:]).flatten(1))


@pytest.mark.parametrize("make", [Pair, Global])
def test_forwards_of_another_form_are_refused_as_such(digits, make):
    with pytest.raises(NotAChain):
        sleep(make(), digits.x_train, A, **QUICK)


def test_images_the_network_cannot_take_are_named(digits):
    with pytest.raises(ValueError, match=r"\(2?,? ?1, 8, 8\)|8 ?x ?8"):
        sleep(mlp(49, 20, 10), digits.x_train, A, **QUICK)


def test_drive_factors_knows_its_words():
    with pytest.raises(ValueError, match="`previous` is unknown"):
        drive_factors((1, 2), previous="last")


# Accelerators

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@cuda
@pytest.mark.parametrize("name", ["A", "report"])
def test_cuda_dreams_what_the_cpu_dreams(digits, name):
    nights = []
    for device in ("cpu", "cuda"):
        net = small().to(device)
        rule = dataclasses.replace(RULES[name], thresholds=(0.3, 0.3), steps=300, shrink=False, biases="keep")
        nights.append(sleep(net, digits.x_train.to(device), rule, seeded(), watch=9))
        assert net[1].weight.device.type == device
    assert (nights[0].spikes == nights[1].spikes).all() and nights[0].spikes.sum(0).min() > 10
    for a, b in zip(nights[0].after, nights[1].after):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-9, atol=1e-10)


@cuda
@pytest.mark.parametrize("make", [small, SmallConv], ids=["mlp", "conv"])
def test_cuda_never_waits_within_the_steps(make):
    x, waits = torch.rand(1, 1, 8, 8, device="cuda"), []
    net = make().cuda()
    engine = TensorEngine(chain(net, x), dataclasses.replace(A, thresholds=(0.3, 0.3)), (1.0, 1.0), x)
    for steps in (3, 3, 30):
        spikes = torch.rand(steps, 1, 8, 8, device="cuda") < 0.3
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                engine.run(spikes)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(w.message) for w in seen))
    assert waits[1] == waits[2] <= 4  # to hand over the counts, however many steps there were


@cuda
def test_cuda_images_and_network_on_one_device(digits):
    with pytest.raises(ValueError, match="network's device"):
        sleep(small().cuda(), digits.x_train, A, **QUICK)
