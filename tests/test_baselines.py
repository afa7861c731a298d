"What sleep is compared with, the experiments on sleep, and claims B-1 to B-9 on made-up rows."

import copy
import dataclasses
import functools
import inspect
import itertools
import math
import os
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import nn

from robustlit import models
from robustlit.benchmark import class_incremental as benchmark_module
from robustlit.benchmark.class_incremental import class_incremental as benchmark_class_incremental
from robustlit.claims import verdict
from robustlit.data import Dataset, as_images, load
from robustlit.evaluation import accuracy
from robustlit.metaplasticity.continual import learn
from robustlit.metaplasticity.layers import binary_mlp, load_bn_state
from robustlit.sleep import ablation as ablation_module
from robustlit.sleep import baselines
from robustlit.sleep import cifar_convnet as cifar_convnet_module
from robustlit.sleep import class_incremental as class_incremental_module
from robustlit.sleep import distillation_weight as distillation_weight_module
from robustlit.sleep import frozen_features as frozen_features_module
from robustlit.sleep import gradient_masking as gradient_masking_module
from robustlit.sleep import patches as patches_module
from robustlit.sleep import rule_search as rule_search_module
from robustlit.sleep import strong_attacks as strong_attacks_module
from robustlit.sleep.ablation import STEPS, SWITCHES, ablation, mixed
from robustlit.sleep.baselines import IMAGES, WEIGHTS, training_part
from robustlit.sleep.baselines import test_part as held_out  # under its own name pytest would take it for a test
from robustlit.sleep.cifar_convnet import cifar_convnet, learned_convnet
from robustlit.sleep.class_incremental import brings_back, class_incremental
from robustlit.sleep.defences import (
    SIGMAS,
    VARIANCES,
    adversarial_copies,
    authors_blur,
    distil,
    distorted_copies,
    distortion,
    report_blur,
    soft_labels,
    softened_loss,
    wrapped_noise,
)
from robustlit.sleep.distillation_weight import distillation_weight
from robustlit.sleep.frozen_features import Features, feature_extractor, frozen_features, sort_by_split
from robustlit.sleep.gradient_masking import gradient_masking
from robustlit.sleep.networks import READINGS, VIEWS, View, reader
from robustlit.sleep.noise_blur_fgsm import (
    ALL_NOISE,
    EPS,
    FOURTEEN,
    LEVELS,
    blur_helps_on_blur,
    constant_under_fgsm,
    control_curves,
    distillation_is_strongest,
    gain,
    lowest_view,
    noise_blur_fgsm,
    noise_helps_on_noise,
    soft_labels_help,
    strongest_of_fourteen,
    worst_on_blur_and_noise,
)
from robustlit.sleep.patches import patches
from robustlit.sleep.rule_search import draw_rule, red_of, score, search, stressed, trials_of, worth_of
from robustlit.sleep.spiking_activity import STRETCHES, by_stretch, little_spiking, runs_away, spiking_activity
from robustlit.sleep.stdp import REPORT, RULES, Night, masked_mean_dream, sleep
from robustlit.sleep.strong_attacks import BOUNDED, NEAREST, bounded, nearest, strong_attacks
from robustlit.sleep.unit_removal import METHODS, unit_removal, without_units
from robustlit.statistics import paired_difference
from robustlit.streams import class_pairs
from robustlit.training import set_seed
from robustlit.zoo import find_network, load_network, networks
from robustlit.zoo import views_of as zoo_views_of

TINY = dict(data="digits", hidden=(20, 16), epochs=2, batch_size=20)
ABLE = dict(data="digits", hidden=(40, 30), epochs=10, batch_size=5)  # enough for the authors' network to read
NETWORKS = [name.removeprefix("sleep/") for name in networks("sleep").index]
AUTHORS = {"authors", "authors_adversarial", "sleep", "sleep_B"}  # the others are of the report's reading
views_of = functools.partial(zoo_views_of, paper="sleep")
seeded = lambda seed=0: torch.Generator().manual_seed(seed)
code_digest = functools.cache(models.code_digest)  # a tenth of a second each time, and no test edits code


def rival(name="control", seed=0, data="mnist", hidden=(1200, 1200), epochs=2, batch_size=None, **more):
    return load_network(name, seed, data, "sleep", hidden=hidden, epochs=epochs, batch_size=batch_size, **more)


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    "Networks of these tests go where nobody else looks."
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path_factory.getbasetemp() / "baselines"))
    monkeypatch.setattr(models, "code_digest", code_digest)
    for device in (torch.cuda, torch.backends.mps):  # networks made here and networks of the zoo must meet
        monkeypatch.setattr(device, "is_available", lambda: False)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    return load("digits", valid=0)


def pixels(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed))


def mlp(*sizes):
    set_seed(0)
    layers = [nn.Flatten()]
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def state(net):
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def percent_right(net, x, y):
    return 100 * float((net(x).argmax(1) == y).double().mean())


def slope(net, x, y, loss=lambda z, y: F.cross_entropy(z, y, reduction="sum")):
    a = x.clone().requires_grad_()
    return torch.autograd.grad(loss(net(a), y), a)[0]


# Blur and noise


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 2.5, 4.0])
def test_the_authors_blur_is_scipys_with_their_kernel(sigma):
    x = pixels(2, 2, 9, 12)
    how = dict(mode="nearest", radius=math.ceil(2 * sigma))
    want = [[gaussian_filter(c, sigma, **how) for c in image] for image in x.double().numpy()]
    np.testing.assert_allclose(authors_blur(x, sigma), want, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 2.5])
def test_the_reports_blur_is_truncated_after_each_axis(sigma):
    levels = torch.randint(256, (2, 1, 28, 28), generator=seeded())
    got = 255 * report_blur(levels / 255, sigma).double()
    once = lambda a, axis: np.floor(gaussian_filter1d(a, sigma, axis) + 1e-9) if sigma else a
    want = once(once(levels.double().numpy(), 2), 3)
    np.testing.assert_allclose(got, want, atol=1e-4)
    single = np.floor(gaussian_filter(levels.double().numpy(), (0, 0, sigma, sigma)) + 1e-9)
    assert (np.abs(single - want).max() == 1) == bool(sigma)


def test_the_reports_blur_refuses_what_is_no_image():
    for bad, sigma, what in ((pixels(1, 1, 8, 8) * 255, 1.0, "must lie in"), (pixels(1, 1, 8, 8), -1, "sigma")):
        with pytest.raises(ValueError, match=what):
            report_blur(bad, sigma)


@pytest.mark.parametrize("ground", [0, 128, 255])
@pytest.mark.parametrize("variance", [0.1, 0.4, 1.0])
def test_wrapped_noise_has_the_density_of_bytes_that_wrap(variance, ground):
    x = torch.full((1, 1, 250, 400), ground / 255)
    got = (255 * wrapped_noise(x, variance, seeded(3))).round().long().flatten()
    below = scipy.stats.norm(scale=math.sqrt(variance)).cdf
    want = {}
    for j in range(-8, 9):  # the sum is cut towards zero: down for positive sums, up for negative ones
        if ground:
            p = below(j + 1) - below(j)
        else:
            p = below(j + 1) - below(j) if j > 0 else below(j) - below(j - 1) if j < 0 else below(1) - below(-1)
        want[(ground + j) % 256] = p
    assert set(got.unique().tolist()) <= set(want)
    near = lambda count, p: abs(count - got.numel() * p) <= 5 * math.sqrt(got.numel() * p * (1 - p)) + 1
    assert all(near((got == value).sum(), p) for value, p in want.items())
    salt = 0.5 * math.erfc(1 / math.sqrt(2 * variance))
    assert ground == 128 or near(((got - ground).abs() > 127).sum(), salt)


def test_noise_has_the_variance_it_is_given_and_is_clipped():
    grey = torch.full((50, 1, 40, 40), 0.5)
    calm, wild = (distortion(grey, "noise", v, seed=1) - 0.5 for v in (0.01, 0.5))
    assert calm.var() == pytest.approx(0.01, rel=0.02) and abs(calm.mean()) < 0.001
    cut = scipy.stats.norm.cdf(-0.5 / math.sqrt(0.5))
    for end in (-0.5, 0.5):
        assert float((wild == end).double().mean()) == pytest.approx(cut, rel=0.02)
    assert wild.abs().max() == 0.5


@pytest.mark.parametrize("stress", LEVELS)
def test_a_distortion_is_fixed_by_its_seed(stress):
    x = pixels(3, 1, 8, 8)
    first, again, other = (distortion(x, stress, 1.0, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, x)
    assert torch.equal(first, other) == stress.endswith("blur")
    assert torch.allclose(distortion(x, "report_blur", 1.0), distortion(x, "blur", 1.0), atol=0.1)
    assert not torch.allclose(distortion(x, "report_blur", 1.0), distortion(x, "blur", 1.0), atol=0.005)


# Copies to train on


def test_copies_are_blurred_by_one_level_each():
    x = pixels(120, 1, 8, 8)
    before = x.clone()
    got = distorted_copies(x, "blur", seeded())
    assert torch.equal(x, before)
    fits = torch.stack([(got - authors_blur(x, s)).abs().flatten(1).amax(1) < 1e-6 for s in SIGMAS])
    assert (fits.sum(0) == 1).all()
    assert all(6 <= n <= 40 for n in fits.sum(1).tolist())  # 20 expected, five standard deviations are 20


def test_copies_are_noisy_by_one_level_each():
    levels = (0.0, 0.0004, 0.01)
    x = torch.full((300, 1, 20, 20), 0.5)
    variance = (distorted_copies(x, "noise", seeded(), levels) - x).flatten(1).square().mean(1)
    groups = [variance == 0, (variance > 0) & (variance < 0.002), variance >= 0.002]
    for level, group in zip(levels, groups):
        assert 60 <= group.sum() <= 140  # 100 expected, five standard deviations are 41
        assert variance[group].mean() == pytest.approx(level, rel=0.03)
        assert variance[group].max() <= 1.5 * level  # 400 pixels: seven standard deviations


def test_levels_by_default_are_the_reports():
    x = torch.zeros(400, 1, 40, 40)
    salt = 100 * (distorted_copies(x, "wrapped_noise", seeded()) > 0.5).float().flatten(1).mean(1)
    want = [50 * math.erfc(1 / math.sqrt(2 * v)) if v else 0.0 for v in VARIANCES]
    nearest_level = (salt[:, None] - torch.tensor(want)).abs().argmin(1)
    assert (nearest_level.bincount(minlength=6)[3:] > 35).all()  # 67 expected; those below are too near each other
    assert all(salt[nearest_level == k].mean() == pytest.approx(want[k], abs=0.4) for k in (3, 4, 5))


def test_unknown_copies_are_refused():
    with pytest.raises(ValueError, match="`kind` is unknown"):
        distorted_copies(pixels(2, 1, 4, 4), "adversarial", seeded())


def test_adversarial_copies_step_by_a_length_of_its_own_in_every_pixel(digits):
    x, y, net = 0.3 + 0.4 * as_images(digits.x_train[:240]), digits.y_train[:240], mlp(64, 20, 10)
    before, kept = x.clone(), state(net)
    got = adversarial_copies(net, x, y, seeded())
    assert torch.equal(x, before) and same(state(net), kept)
    moved = (got != x).flatten(1).any(1)
    assert moved.sum() == 20
    step, uphill = (got - x)[moved], slope(net, x, y)[moved]
    assert torch.equal(step.sign()[uphill != 0], uphill.sign()[uphill != 0])
    sizes = step[uphill != 0].abs().numpy()
    assert sizes.max() <= 0.1 + 1e-6 and scipy.stats.kstest(sizes / 0.1, "uniform").pvalue > 1e-3


def test_adversarial_copies_stay_images(digits):
    x, y = as_images(digits.x_train[:60]), digits.y_train[:60]
    got = adversarial_copies(mlp(64, 20, 10), x, y, seeded(), share=0.5, amplitude=0.8)
    assert got.min() >= 0 and got.max() <= 1
    assert (got != x).flatten(1).any(1).sum() == 30 and (got - x).abs().max() > 0.5
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`share`"):
            adversarial_copies(mlp(64, 20, 10), x, y, seeded(), share=bad)


# Distillation


@pytest.mark.parametrize("weight", [None, 3.0])
def test_the_softened_loss_by_hand(weight):
    z, y, t = 30 * torch.randn(7, 4, generator=seeded()).double(), torch.arange(7) % 4, 20.0
    log_p = z / t - (z / t).exp().sum(1, keepdim=True).log()
    loss, factor = softened_loss(t, weight), t if weight is None else weight
    torch.testing.assert_close(loss(z, y), -factor * log_p[range(7), y].mean())
    soft = torch.rand(7, 4, generator=seeded()).double()
    soft /= soft.sum(1, keepdim=True)
    torch.testing.assert_close(loss(z, soft), -factor * (soft * log_p).sum(1).mean())


def test_first_steps_are_as_long_at_any_temperature():
    y = torch.arange(5)
    plain, soft = (slope(nn.Identity(), torch.zeros(5, 5), y, f) for f in (F.cross_entropy, softened_loss(50.0)))
    torch.testing.assert_close(plain, soft)
    with pytest.raises(ValueError, match="`temperature`"):
        softened_loss(0.0)


def test_soft_labels_are_the_teachers_answers_without_dropout(digits):
    set_seed(0)
    teacher = reader(64, 10, (30,), **READINGS["report"]).train()
    part = digits.x_train[:25]
    got = soft_labels(teacher, part, 5.0, batch_size=10)
    assert teacher.training and not got.requires_grad
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in teacher.parameters())
    h = np.maximum(part.flatten(1).double().numpy() / 255 @ w1.T + b1, 0)
    e = np.exp((h @ w2.T + b2) / 5)
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-6)


def test_distillation_by_a_loop(digits):
    "Teacher on labels, student on the teacher's probabilities, both at the temperature, the student then as it is."
    x, y = as_images(digits.x_train[:90]).double(), digits.y_train[:90]
    teacher = mlp(64, 12, 10).double()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(0.9)
    plain, t = [copy.deepcopy(net) for net in (teacher, student)], 20.0
    order = seeded(4)

    def train(net, targets):
        speed = [torch.zeros_like(p) for p in net.parameters()]
        for ids in (part for _ in range(3) for part in torch.randperm(90, generator=order).split(25)):
            log_p = (net(x[ids]) / t).log_softmax(1)
            slopes = torch.autograd.grad(-t * (targets[ids] * log_p).sum(1).mean(), list(net.parameters()))
            for p, v, g in zip(net.parameters(), speed, slopes):
                v.mul_(0.5).add_(g)
                p.data.sub_(0.05 * v)

    train(plain[0], F.one_hot(y, 10).double())
    train(plain[1], (plain[0](x) / t).softmax(1).detach())
    how = dict(lr=0.05, momentum=0.5, batch_size=25)
    assert distil(teacher, student, x, y, t, 3, seeded(4), **how) is student and not student.training
    for ours, theirs in zip((teacher, student), plain):
        for a, b in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(a, b)


# Rivals


def made(n, side, n_classes=10):
    x = torch.randint(256, (n, 1, side, side), generator=seeded(), dtype=torch.uint8)
    y = torch.arange(n) % n_classes
    return Dataset("made", x, y, x[:0], y[:0], x, y, tuple(map(str, range(n_classes))))


@pytest.mark.parametrize("reading, published", [("authors", 50_000), ("report", 27_105)])
def test_training_images_are_the_first_of_those_published(monkeypatch, reading, published):
    large = made(66_000, 1)
    monkeypatch.setattr(baselines, "load", lambda *a, **k: large)
    x, y = training_part(reading)
    assert IMAGES[reading] == len(x) == len(y) == published
    assert torch.equal(x.cpu(), large.x_train[:published]) and torch.equal(y.cpu(), large.y_train[:published])


def test_a_sixth_of_the_images_is_never_trained_on(digits):
    for reading in ("authors", "report"):
        x, y = training_part(reading, "digits")
        n = len(digits.x_train)
        assert len(x) == n * 5 // 6 and torch.equal(x.cpu(), digits.x_train[: n * 5 // 6])


def test_the_fifteen_networks_are_known():
    from_scratch = {"control", "authors", "convnet", "distilled", "distilled_teacher", "convnet_distilled"}
    of_the_authors = {"authors_adversarial", "sleep", "sleep_B"}
    parents = {n: find_network(n, "sleep").parent for n in NETWORKS}
    assert len(NETWORKS) == 15 and {n for n, p in parents.items() if p is None} == from_scratch
    assert {n for n, p in parents.items() if p == "sleep/authors"} == of_the_authors
    assert {n for n, p in parents.items() if p == "sleep/control"} == {*NETWORKS} - from_scratch - of_the_authors


@pytest.mark.parametrize("network", NETWORKS)
def test_each_network_has_its_reading_and_its_parents_weights(monkeypatch, network):
    convolutional, seen, real = network in ("convnet", "convnet_distilled"), [], baselines.begin
    data = made(60, 28) if convolutional else load("digits", valid=0)
    monkeypatch.setattr(baselines, "load", lambda *a, **k: data)
    monkeypatch.setattr(baselines, "begin", lambda reading, *a, **k: seen.append(reading) or real(reading, *a, **k))
    known = find_network(network, "sleep")
    net, train = inspect.unwrap(known.make)(1, "digits", (20, 16), 2, 20)
    assert set(seen) == {"authors" if network in AUTHORS else "report"} and callable(train)
    assert any(isinstance(m, nn.Conv2d) for m in net.modules()) == convolutional
    biased = any(m.bias is not None for m in net.modules() if isinstance(m, nn.Linear))
    assert biased == (network not in AUTHORS)
    if known.parent:
        assert same(state(net), state(rival(known.parent, 1, **TINY)))


def test_test_images_are_stratified_and_always_the_same(digits):
    x, y = held_out("digits", 100)
    again = held_out("digits", 100)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert x.dtype == torch.float32 and 0 <= x.min() and x.max() == 1 and len(x) == 100
    shares = 100 * digits.y_test.bincount() / len(digits.y_test)
    assert ((y.cpu().bincount() - shares).abs() <= 1).all()
    known = {(tuple(a.flatten().tolist()), int(b)) for a, b in zip(digits.x_test, digits.y_test)}
    bytes_of = (255 * x.cpu()).round().byte()
    assert all((tuple(a.flatten().tolist()), int(b)) in known for a, b in zip(bytes_of, y.cpu()))


@pytest.mark.parametrize("network", NETWORKS)
def test_views_differ_and_the_first_is_of_logits(network):
    views = views_of(network)
    assert len(views) == len(set(views)) >= 2
    assert {v for v, _ in views} <= set(VIEWS) and {loss for _, loss in views} <= {"ce", "square"}
    view, loss = views[0]
    temperature = (
        50 if network in ("distilled", "distilled_teacher", "convnet_distilled") else 1
    )  # of the student's training
    z = torch.randn(6, 10, generator=seeded())
    assert loss == "ce" and torch.equal(View(nn.Identity(), view)(z), z / temperature)


@pytest.fixture
def watched(monkeypatch, tmp_path):
    "What is trained, from what, on what, and how; instead of training all weights grow by one."
    seen = []

    def note(net, x, y, epochs, loss="cross_entropy", lr=0.1, momentum=0.5, batch_size=100, generator=None):
        told = dict(epochs=epochs, loss=loss, lr=lr, momentum=momentum, batch_size=batch_size)
        seen.append(SimpleNamespace(start=state(net), x=x, y=y, how=told))
        with torch.no_grad():
            for p in net.parameters():
                p.add_(1)
        return net

    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    monkeypatch.setattr(baselines, "descend", note)
    return seen


TUNED = dict(blur="control", noise="control", wrapped_noise="control", adversarial="control") | dict(
    authors_adversarial="authors"
)
PUBLISHED = dict(
    control=dict(loss="cross_entropy", lr=0.1, momentum=0.5, batch_size=128),
    authors=dict(loss="square", lr=0.1, momentum=0.5, batch_size=100),
)


@pytest.mark.parametrize("network, parent", TUNED.items())
def test_fine_tuning_goes_on_from_the_parent_at_half_the_step(watched, network, parent):
    net = rival(network, 3, "digits", (7, 6), epochs=4)
    first, second = watched
    x, y = training_part("authors" if network in AUTHORS else "report", "digits")
    assert first.how == PUBLISHED[parent] | dict(epochs=4)
    assert second.how == PUBLISHED[parent] | dict(epochs=4, lr=0.05)
    grown = {k: v + 1 for k, v in first.start.items()}
    assert same(second.start, grown) and same(state(net), {k: v + 1 for k, v in grown.items()})
    assert torch.equal(first.x, x) and torch.equal(first.y, y) and torch.equal(second.y, y)
    shown, clean = second.x, as_images(x)
    assert shown.shape == clean.shape and 0 <= shown.min() and shown.max() <= 1
    changed = (shown - clean).abs().flatten(1).amax(1) > 1e-6
    few = network in ("adversarial", "authors_adversarial")
    assert (0.06 < changed.double().mean() < 0.1) if few else (0.6 < changed.double().mean() < 0.9)
    assert ((shown - clean).abs().max() <= 0.1 + 1e-6) == few
    grey_levels = (255 * shown - (255 * shown).round()).abs().max() < 1e-3
    assert grey_levels == (network == "wrapped_noise")


@pytest.mark.parametrize("network, n_classes", [("distilled", 10), ("distilled", 4), ("convnet_distilled", 10)])
def test_the_teacher_is_another_network_of_the_same_shape(monkeypatch, tmp_path, network, n_classes):
    seen, data = [], made(60, 28, n_classes)

    def note(teacher, student, x, y, temperature=1.0, epochs=0, generator=None, weight=None, **how):
        seen.append((teacher, student, x, y, dict(temperature=temperature, epochs=epochs, weight=weight) | how))

    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    monkeypatch.setattr(baselines, "load", lambda *a, **k: data)
    monkeypatch.setattr(baselines, "distil", note)
    rival(network, 0, "digits", (7, 6), epochs=4)
    ((teacher, student, x, y, how),) = seen
    chosen = dict(temperature=50, epochs=4, weight=WEIGHTS[network])
    assert how == chosen | dict(lr=0.1, momentum=0.5, batch_size=128)
    shapes = [[(k, v.shape) for k, v in net.state_dict().items()] for net in (teacher, student)]
    assert shapes[0] == shapes[1] and student[-1].out_features == n_classes
    assert not any(torch.equal(*w) for w in zip(teacher.parameters(), student.parameters()))
    assert torch.equal(x.cpu(), data.x_train[:50]) and torch.equal(y.cpu(), data.y_train[:50])


def test_the_weight_of_distillation_is_chosen_on_images_never_trained_on(monkeypatch, digits):
    seen = {}

    def note(teacher, student, x, y, temperature, epochs, generator, weight, **how):
        seen.update(teacher=teacher, student=student, x=x, y=y, how=(temperature, epochs, weight), seed=generator)
        return distil(teacher, student, x, y, temperature, epochs, generator, weight, **how)

    monkeypatch.setattr(distillation_weight_module, "distil", note)
    rows = distillation_weight("distilled", 7.0, 5, **TINY).set_index("who")
    n = len(digits.x_train) * 5 // 6
    assert torch.equal(seen["x"].cpu(), digits.x_train[:n]) and torch.equal(seen["y"].cpu(), digits.y_train[:n])
    assert seen["how"] == (50.0, 2, 7.0) and seen["seed"].initial_seed() == 5
    for who in ("teacher", "student"):
        held = as_images(digits.x_train[n:]).to(seen["x"].device), digits.y_train[n:].to(seen["x"].device)
        assert rows.accuracy[who] == pytest.approx(percent_right(seen[who], *held)) and rows.n[who] == len(held[1])
    assert not any(torch.equal(*w) for w in zip(seen["teacher"].parameters(), seen["student"].parameters()))


def test_the_convolutional_network_is_the_reports(watched, monkeypatch):
    data = made(60, 28)
    monkeypatch.setattr(baselines, "load", lambda *a, **k: data)
    net = rival("convnet", 0, "digits")
    sizes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert sizes == [(32, 1, 5, 5), (64, 32, 3, 3), (1200, 1600), (10, 1200)]
    assert watched[0].how == PUBLISHED["control"] | dict(epochs=2)
    assert net(as_images(data.x_test[:2]).to(net[0].weight.device)).shape == (2, 10)


@pytest.mark.parametrize("network, parent, rule", [("sleep", "authors", "A"), ("sleep_B", "authors", "B")])
def test_sleep_is_the_authors_network_asleep(network, parent, rule):
    awake = rival(parent, 1, **ABLE)
    before = state(awake)
    night = sleep(awake, training_part("authors", "digits")[0], rule, seeded(1))
    got = state(rival(network, 1, **ABLE))
    assert same(got, state(awake)) and not same(got, before) and night.spikes.sum() > 0
    strong = {k: v > 0.05 for k, v in before.items()}  # g is nothing there: no night can touch them
    assert all(torch.equal(got[k][strong[k]], before[k][strong[k]]) for k in got)
    assert sum(int(s.sum()) for s in strong.values()) > 100
    assert same(state(rival(parent, 1, **ABLE)), before)


def test_sleep_of_the_control_starts_at_the_control():
    control = rival("control", 2, **TINY)
    before, x = state(control), training_part("report", "digits")[0]
    bias, weight = ([k for k in before if k.endswith(end)] for end in ("bias", "weight"))
    got = state(rival("sleep_control", 2, **TINY))
    sleep(control, x, "A", seeded(2))
    assert same(got, state(control)) and all(torch.equal(got[k], before[k]) for k in bias)
    control.load_state_dict(before)
    night = sleep(control, x[:3], "report", seeded(2), steps=300)
    got = state(rival("sleep_report", 2, **TINY, asleep=3))
    assert same(got, state(control)) and len(night.spikes) == 300
    assert not any(torch.equal(got[k], before[k]) for k in (*bias, *weight))
    for k in bias:
        fan_in = got[k.replace("bias", "weight")].shape[1]
        assert got[k].abs().max() <= fan_in**-0.5


REPEATED = ("authors", "adversarial", "wrapped_noise", "distilled", "sleep_B", "sleep_report")


@pytest.mark.parametrize("network", REPEATED)
def test_arguments_fix_every_weight(monkeypatch, tmp_path, network):
    options = TINY | (dict(asleep=2) if network == "sleep_report" else {})
    first = state(rival(network, 4, **options))
    torch.rand(7), np.random.rand(7)
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    assert same(state(rival(network, 4, **options)), first)  # its parent made anew just before it
    files = sorted((tmp_path / "networks").glob("*.pt"), key=lambda p: p.stat().st_mtime_ns)
    assert len(files) == (1 if network in ("authors", "distilled") else 2)
    files[-1].unlink()
    assert same(state(rival(network, 4, **options)), first)  # its parent read
    other = state(rival(network, 5, **options))
    assert not any(torch.equal(other[k], first[k]) for k in first)


def test_a_network_is_made_once(monkeypatch):
    first = state(rival("blur", 6, **TINY))
    monkeypatch.setattr(baselines, "descend", lambda *a, **k: pytest.fail("trained again"))
    again = rival("blur", 6, **TINY | dict(hidden=[20, 16]))
    assert same(state(again), first) and not again.training


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda: rival("slept", **TINY), "`name` is unknown: 'slept'; did you mean 'sleep'"),
        (lambda: rival("", **TINY), "`name` is unknown"),
        (lambda: training_part("asleep", "digits"), "`reading` is unknown"),
        (lambda: rival("convnet", **TINY), "`data` must hold images of 1 x 28 x 28"),
        (lambda: rival(**TINY | dict(epochs=0)), "`epochs`"),
        (lambda: rival(**TINY | dict(batch_size=0)), "`batch_size`"),
        (lambda: rival("sleep_report", **TINY, asleep=0), "`asleep`"),
        (lambda: rival(**TINY | dict(data="digit")), "did you mean 'digits'"),
        (lambda: held_out("digits", 10**6), "`n_test`"),
    ],
)
def test_baselines_that_are_none(monkeypatch, tmp_path, call, told):
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    with pytest.raises(ValueError, match=told):
        call()
    assert not list(tmp_path.rglob("*.pt"))


# Between the two readings


def differing(a, b):
    return {f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)}


def test_every_difference_between_the_readings_has_one_switch():
    fields = [f for parts in SWITCHES.values() for f in parts]
    assert len(fields) == len(set(fields))
    assert set(fields) == differing(REPORT, RULES["A"]) - {"steps"}  # every run says its own length


def test_the_chain_leads_from_the_report_to_the_authors_one_switch_at_a_time():
    assert mixed("report", "report") == REPORT and STEPS[0] == "report" and STEPS[-1] == "network"
    for before, after in itertools.pairwise(STEPS[:-1]):
        assert differing(mixed("report", before), mixed("report", after)) == set(SWITCHES[after])
    end = RULES["A"]
    for last in STEPS[-2:]:
        assert dataclasses.replace(mixed("report", last), steps=end.steps) == end


@pytest.mark.parametrize("switch", SWITCHES)
def test_from_the_authors_one_switch_alone_is_wrong(switch):
    got = mixed("authors", switch)
    assert differing(got, RULES["A"]) == set(SWITCHES[switch])
    assert all(getattr(got, f) == getattr(REPORT, f) for f in SWITCHES[switch])
    assert mixed("authors", "network") == RULES["A"]


@pytest.mark.parametrize("switch", SWITCHES)
def test_alone_one_switch_of_the_report_is_right(switch):
    got = mixed("alone", switch)
    assert differing(got, REPORT) == set(SWITCHES[switch])
    assert all(getattr(got, f) == getattr(RULES["A"], f) for f in SWITCHES[switch])
    assert mixed("alone", "report") == mixed("alone", "network") == REPORT


@pytest.mark.parametrize("words", [("seed001", "gate"), ("report", "g"), ("authors", "steps")])
def test_unknown_switches_are_refused(words):
    with pytest.raises(ValueError, match="`start`|`switch`"):
        mixed(*words)


@pytest.mark.parametrize(
    "start, switch, network",
    [("report", "amounts", "control"), ("report", "network", "authors"), ("alone", "gate", "control")]
    + [("alone", "network", "authors"), ("authors", "gate", "authors")],
)
def test_what_falls_asleep_between_the_readings(monkeypatch, start, switch, network):
    seen = []
    look_up = lambda name, *a, **k: seen.append(name) or load_network(name, *a, **k)
    monkeypatch.setattr(ablation_module, "load_network", look_up)
    look = lambda net, x, rule, generator: seen.append((x, rule)) or sleep(net, x, rule, generator)
    monkeypatch.setattr(ablation_module, "sleep", look)
    rows = ablation(start, switch, 0, 40, **TINY, images=20)
    (x, rule) = seen[1]
    whose = "authors" if network == "authors" else "report"
    assert seen[0] == network and torch.equal(x, training_part(whose, "digits")[0])
    assert rule == dataclasses.replace(mixed(start, switch), steps=40)
    assert list(zip(rows.stressor, rows.strength)) == [("clean", 0.0), ("blur", 2.5), ("noise", 0.5), ("fgsm", 0.1)]


@pytest.mark.parametrize("start, switch, parent", [("authors", "gate", "authors"), ("report", "division", "control")])
def test_an_ablation_by_hand(start, switch, parent):
    rows = ablation(start, switch, 0, 60, **ABLE, images=90).set_index("stressor")
    net, (x, y) = rival(parent, 0, **ABLE), held_out("digits", 90)
    whose = "authors" if parent == "authors" else "report"
    night = sleep(net, training_part(whose, "digits")[0], mixed(start, switch), seeded(0), steps=60)
    answers = net(x).argmax(1)
    assert rows.accuracy["clean"] == pytest.approx(100 * float((answers == y).double().mean()))
    assert rows.most_given["clean"] == pytest.approx(100 * int(answers.bincount().max()) / 90)
    assert rows.accuracy["blur"] == pytest.approx(percent_right(net, authors_blur(x, 2.5), y))
    moved = (x + 0.1 * slope(net, x, y).sign()).clamp(0, 1)
    assert rows.accuracy["fgsm"] == pytest.approx(percent_right(net, moved, y))
    for k, m in enumerate([m for m in net if isinstance(m, nn.Linear)][:-1], 1):
        opened = []
        handle = m.register_forward_hook(lambda m, a, z, opened=opened: opened.append((z > 0).any(0)))
        net(x)
        handle.remove()
        dead = 100 * float((~opened[0]).double().mean())
        assert rows[f"dead_{k}"].tolist() == pytest.approx([dead] * 4)
        assert (rows[f"spikes_{k}"] == night.spikes[:, k - 1].sum()).all()
    bias = net[-1].bias
    if bias is None:
        assert rows.answer_of_bias.isna().all()
    else:
        same_answer = 100 * float((answers == bias.argmax()).double().mean())
        assert rows.answer_of_bias["clean"] == pytest.approx(same_answer)


# Distorted


def hand_made_square(z, y):
    a = z + (z.relu() - z).detach()
    return 0.5 * (a - F.one_hot(y, z.shape[1])).square().sum()


def test_noise_blur_fgsm_rows_by_hand():
    rows = noise_blur_fgsm("authors", 0, **ABLE, images=80)
    net, (x, y) = rival("authors", 0, **ABLE), held_out("digits", 80)
    assert not rows.duplicated(["stressor", "strength", "view", "attack_loss"]).any() and (rows.n == 80).all()
    assert len(rows) == sum(map(len, LEVELS.values())) + len(EPS) * (len(views_of("authors")) + 1)
    right = lambda net, x: percent_right(net, x, y)
    table = rows.set_index(["stressor", "strength", "view", "attack_loss"]).sort_index()
    assert right(net, x) > 60
    for stress, level in (("blur", 1.5), ("report_blur", 1.0), ("noise", 0.1), ("wrapped_noise", 1.0), ("noise", 0.0)):
        shown = distortion(x, stress, level, 0)
        row = table.loc[(stress, level, "logits", "")]
        assert row.accuracy == pytest.approx(right(net, shown))
        assert row.most_given == pytest.approx(100 * int(net(shown).argmax(1).bincount().max()) / 80)
    hands = dict(ce=lambda z, y: F.cross_entropy(z, y, reduction="sum"), square=hand_made_square)
    found = {}
    for view, loss in views_of("authors"):
        seen = View(net, view)
        uphill = slope(seen, x, y, hands[loss]).sign()
        for eps in EPS:
            moved = (x + eps * uphill).clamp(0, 1)
            found[view, loss, eps] = right(seen, moved)
            row = table.loc[("fgsm", eps, view, loss)]
            assert row.accuracy == pytest.approx(found[view, loss, eps], abs=1.3), (view, loss, eps)  # one image
            most = 100 * int(seen(moved).argmax(1).bincount().max()) / 80
            assert row.most_given == pytest.approx(most, abs=1.3)
    assert found["logits", "ce", 0.1] < found["logits", "ce", 0.0] - 20
    assert len({found[view, loss, 0.1] for view, loss in views_of("authors")}) > 1
    random_signs = table.loc["random_sign"].accuracy
    assert random_signs.loc[0.0].item() == pytest.approx(right(net, x)) and random_signs.loc[0.1].item() > 50


# Fired


def made_night(spikes, units):
    w = [torch.zeros(n, 2) for n in units]
    names, alpha = [str(k) for k in range(len(units))], (1.0,) * len(units)
    return Night(RULES["A"], names, alpha, list(units), np.asarray(spikes), 0.0, w, w, [], [])


def test_spikes_by_stretch():
    spikes = np.random.default_rng(0).integers(0, 4, (3 * STRETCHES, 2))
    spikes[:3] = [[5, 0], [1, 0], [0, 3]]
    rows = by_stretch(made_night(spikes, (10, 4)))
    assert len(rows) == 2 * STRETCHES and set(rows.stretch) == set(range(1, STRETCHES + 1))
    table = rows.set_index(["layer", "stretch"])
    assert table.loc[(1, 1)].tolist() == [6.0, 100 * 6 / 30] and table.loc[(2, 1)].tolist() == [3.0, 100 * 3 / 12]
    assert rows.groupby("layer").spikes.sum().tolist() == spikes.sum(0).tolist()
    assert table.loc[(1, STRETCHES)].spikes == spikes[-3:, 0].sum()


def test_nights_shorter_than_their_stretches():
    rows = by_stretch(made_night([[2], [1]], (4,)))
    assert len(rows) == STRETCHES and rows.spikes.sum() == 3 and rows.rate.max() == 50 and rows.notna().all().all()


@pytest.mark.parametrize("rule, parent", [("B", "authors"), ("report", "control")])
def test_spiking_activity_rows_by_hand(rule, parent):
    rows = spiking_activity(rule, 0.5, "subtract", 0, 150, **ABLE, images=70)
    net, (x, y) = rival(parent, 0, **ABLE), held_out("digits", 70)
    assert rows.awake.unique() == pytest.approx([percent_right(net, x, y)]) and (rows.n == 70).all()
    thresholds = tuple(t / 2 for t in RULES[rule].thresholds)
    part = training_part("authors" if parent == "authors" else "report", "digits")[0]
    night = sleep(net, part, rule, seeded(0), steps=150, reset="subtract", thresholds=thresholds)
    assert rows.groupby("layer").spikes.sum().tolist() == night.spikes.sum(0).tolist()
    assert night.spikes.sum() > 0 and rows.accuracy.unique() == pytest.approx([percent_right(net, x, y)])
    pd.testing.assert_frame_equal(rows[["layer", "stretch", "spikes", "rate"]], by_stretch(night))
    for k, (a, b) in enumerate(zip(night.before, night.after), 1):
        want = 100 * float((b - a).norm() / a.norm())
        assert rows[rows.layer == k].change.tolist() == pytest.approx([want] * STRETCHES)


@pytest.mark.parametrize("bad", [dict(rule="C"), dict(reset="half"), dict(factor=0.0), dict(steps=0), dict(images=0)])
def test_bad_nights_are_refused(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        spiking_activity(**TINY | bad)


# Strong attacks and gradient masking


def constant(answer):
    "A reader that always gives the same answer, with a gradient that is zero."
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.zero_(), net[1].bias.copy_(5.0 * torch.eye(10)[answer])
    return net


def test_the_nearest_wrong_image_of_a_constant_reader(digits, monkeypatch):
    few = dict(jsma=dict(steps=3), carlini_wagner=dict(searches=1, steps=3), boundary=dict(queries=120))
    cheap = tuple((name, options | few.get(name, {})) for name, options in NEAREST)
    monkeypatch.setattr(strong_attacks_module, "NEAREST", cheap)
    x, y = as_images(digits.x_test[:10]), torch.tensor([7, 7, 7, 7, 7, 7, 7, 0, 1, 2])
    rows = nearest(constant(7), x, y)
    assert rows.stressor.tolist() == ["deepfool", "jsma", "carlini_wagner", "boundary"]
    assert (rows.accuracy == 70).all() and (rows.n == 10).all()
    assert rows[["l0", "l2", "linf"]].isna().all().all()  # most are never broken: no median
    rows = nearest(constant(7), x, y.flip(0) % 7)
    assert (rows.accuracy == 0).all() and (rows[["l0", "l2", "linf"]] == 0).all().all()


def test_distances_by_hand(digits):
    "Of a linear reader of two classes the nearest wrong image is known."
    x, y = 0.4 + 0.2 * as_images(digits.x_test[:6]), torch.zeros(6, dtype=torch.int64)
    w = torch.randn(64, generator=seeded())
    ahead = x.flatten(1) @ w
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([w, -w])), net[1].bias.copy_(torch.tensor([0.2, -0.2]) - ahead.min())
        net[1].bias[1] += 2 * ahead.min()
    margin = (net(x)[:, 0] - net(x)[:, 1]).detach()
    assert (margin > 0).all()
    rows = nearest(net, x, y).set_index("stressor")
    want = float(np.median(margin / (2 * w.norm())))
    assert rows.l2["deepfool"] == pytest.approx(1.05 * want, rel=5e-3)  # the overshoot is five percent
    assert want <= rows.l2["carlini_wagner"] <= 1.3 * want and (rows.l2 > 0.999 * want).all()


def test_bounded_rows(digits):
    net, x, y = constant(0), as_images(digits.x_test[:10]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    rows = bounded(net, x, y)
    assert not rows.duplicated(["stressor", "strength"]).any() and set(rows.stressor) == {name for name, _ in BOUNDED}
    assert (rows.n == np.where(rows.stressor == "square", 4, 10)).all()
    assert (rows.accuracy == np.where(rows.stressor == "square", 100.0, 40.0)).all()


def test_strong_attacks_are_on_the_first_view(monkeypatch):
    seen, (x, y) = [], held_out("digits", 50)
    by_class = y.argsort(stable=True)
    x, y = x[by_class], y[by_class]
    look = lambda net, x, y, seed: seen.append((net, x, y, seed)) or pd.DataFrame(dict(n=[len(x)]))
    monkeypatch.setattr(strong_attacks_module, "test_part", lambda data, images: (x, y))
    monkeypatch.setattr(strong_attacks_module, "bounded", look)
    monkeypatch.setattr(strong_attacks_module, "nearest", look)
    rows = strong_attacks("distilled", 3, **TINY, images=50)
    assert rows.n.tolist() == [50, 10] and [s[3] for s in seen] == [3, 3]
    z = rival("distilled", 3, **TINY)(x)
    for net, part, labels, _ in seen:
        at = (part[:, None] == x[None]).flatten(2).all(2)
        assert (at.sum(1) >= 1).all() and torch.equal(labels, y[at.int().argmax(1)])
        torch.testing.assert_close(net(part), z[at.int().argmax(1)] / 50, atol=1e-5, rtol=1e-4)
    assert len(seen[1][2].unique()) > 3  # a fifth of the images, of all classes though they came in order
    with pytest.raises(ValueError, match="`images`"):
        strong_attacks("distilled", 3, **TINY, images=4)


def test_gradient_masking_audits_every_view(monkeypatch):
    seen = []

    def look(net, part, eps, images, seed):
        seen.append((net, *part, eps, images, seed))
        return pd.DataFrame(dict(check=["a", "b"], red=[True, False]))

    monkeypatch.setattr(gradient_masking_module, "audit", look)
    rows = gradient_masking("sleep", 2, **TINY, images=30, eps=0.2)
    assert rows["view"].tolist() == ["logits", "logits", "rectified", "rectified"]
    assert rows["first"].tolist() == [True, True, False, False] and (rows.n == 30).all()
    x, y = held_out("digits", 30)
    z = rival("sleep", 2, **TINY)(x)
    for (net, *part, eps, images, seed), want in zip(seen, (z, z.relu())):
        assert torch.equal(part[0], x) and torch.equal(part[1], y) and (eps, images, seed) == (0.2, None, 2)
        assert torch.equal(net(x), want)


# Class-incremental learning


def test_pairs_of_classes(digits):
    tasks, again, other = (class_pairs(digits, 30, seeded(s)) for s in (0, 0, 1))
    assert [sorted(t.y_train.unique().tolist()) for t in tasks] == [[k, k + 1] for k in range(0, 10, 2)]
    for k, (a, b, c) in enumerate(zip(tasks, again, other)):
        assert len(a.x_train) == len(a.y_train) == 30 and torch.equal(a.x_train, b.x_train)
        assert not torch.equal(a.x_train, c.x_train)
        mine = (digits.y_test // 2 == k).sum()
        assert len(a.x_test) == mine and (a.y_test // 2 == k).all()
        known = {(tuple(x.flatten().tolist()), int(y)) for x, y in zip(digits.x_train, digits.y_train)}
        assert all((tuple(x.flatten().tolist()), int(y)) in known for x, y in zip(a.x_train.cpu(), a.y_train.cpu()))
    assert sum(len(t.x_train) for t in class_pairs(digits, 10**6)) == len(digits.x_train)
    with pytest.raises(ValueError, match="`per_task`"):
        class_pairs(digits, 0)


PAIRS = dict(data="digits", hidden=(20, 16), per_task=40, epochs=3, batch_size=10)


def test_a_night_without_effect_is_no_night(monkeypatch):
    seen = []

    def note(net, x, rule, generator, dream, steps):
        seen.append((len(x), rule, steps, int((dream(0, 50, seeded()) > 0).sum((2, 3)).amax())))

    plain = class_incremental("sequential", 1, **PAIRS)
    monkeypatch.setattr(class_incremental_module, "sleep", note)
    rows = class_incremental("sleep", 1, **PAIRS, steps=70, more_steps=9, side=3)
    assert [s[:3] for s in seen] == [(40 * day, "MNIST", 70 + 9 * (day - 1)) for day in range(1, 6)]
    assert all(0 < s[3] <= 9 for s in seen)  # a window of three by three
    parts = [rows[rows.when == when].drop(columns="when").reset_index(drop=True) for when in ("learned", "slept")]
    for part in parts:
        pd.testing.assert_frame_equal(part, plain.drop(columns="when"))


def test_class_incremental_rows(digits):
    rows = {
        m: class_incremental(m, 1, **PAIRS, steps=150, more_steps=10, side=3) for m in ("sequential", "sleep", "joint")
    }
    for method, df in rows.items():
        assert not df.duplicated(["after", "when", "on"]).any()
        whole = df[df.on == 0].set_index(["after", "when"])
        parts = df[df.on > 0].assign(right=lambda d: d.accuracy * d.n).groupby(["after", "when"])
        assert (whole.n == len(digits.x_test)).all() and (parts.n.sum() == whole.n.loc[parts.n.sum().index]).all()
        np.testing.assert_allclose((parts.right.sum() / parts.n.sum()).loc[whole.index], whole.accuracy)
        assert set(df.after) == ({5} if method == "joint" else set(range(1, 6)))
    same_start = [rows[m].query("after == 1 and when == 'learned'").accuracy.tolist() for m in ("sequential", "sleep")]
    assert same_start[0] == same_start[1]
    slept = rows["sleep"].pivot_table("accuracy", ["after", "on"], "when")
    assert (slept.learned != slept.slept).any()
    pd.testing.assert_frame_equal(
        rows["sleep"], class_incremental("sleep", 1, **PAIRS, steps=150, more_steps=10, side=3)
    )


@pytest.mark.parametrize("bad", [dict(method="joined"), dict(rule="C"), dict(epochs=0), dict(side=0), dict(side=9)])
def test_bad_streams_are_refused(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        class_incremental(**PAIRS | dict(method="sleep", steps=5, more_steps=0) | bad)


def test_the_night_is_the_published_one_for_this_stream():
    "Tadros et al. (2022): an own vector, 15,000 steps and 5000 more each day, a window of 11 x 11 pixels."
    about = class_incremental.bind("paper", dict(method="sleep"))
    got = {k: about[k] for k in ("rule", "steps", "more_steps", "side", "per_task", "epochs")}
    assert got == dict(rule="MNIST", steps=15_000, more_steps=5000, side=11, per_task=5000, epochs=2)
    assert masked_mean_dream(torch.ones(1, 1, 28, 28), 11)(0, 3, seeded()).sum((1, 2, 3)).tolist() == [121.0] * 3


def test_benchmark_rows_by_hand():
    how = dict(data="digits", hidden=(24, 20), per_task=40, epochs=2, batch_size=10)
    rows = benchmark_class_incremental(1.35, 2, **how)
    assert list(rows.columns) == ["after", "bn", "on", "accuracy", "n"]
    assert len(rows) == 5 * 2 * 6 and not rows.duplicated(["after", "bn", "on"]).any()
    table = rows.set_index(["after", "bn", "on"]).accuracy
    generator = set_seed(2)
    tasks = class_pairs(load("digits", valid=0), 40, generator)
    net = binary_mlp(64, (24, 20), 10).to(tasks[0].x_train.device)
    days = []
    for after, shot in enumerate(learn(net, tasks, 2, 10, generator, 1.35), 1):
        days.append(shot["running"])
        for on, t in enumerate(tasks, 1):
            for bn, day in dict(last=after, own=min(on, after)).items():
                apart = copy.deepcopy(net)
                load_bn_state(apart, days[day - 1])
                assert table[after, bn, on] == pytest.approx(accuracy(apart, t.x_test, t.y_test)), (after, bn, on)
    for (after, bn), part in rows.groupby(["after", "bn"]):
        tasks_only = part[part.on > 0]
        assert table[after, bn, 0] == pytest.approx((tasks_only.accuracy * tasks_only.n).sum() / tasks_only.n.sum())
    assert (table.xs("own", level="bn") != table.xs("last", level="bn")).any()


def test_meta_reaches_the_optimizer(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark_module, "learn", lambda *a: seen.append(a) or iter(()))
    benchmark_class_incremental(0.7, 0, "digits", (8,), 20, 3, 5)
    (net, tasks, epochs, batch_size, generator, meta) = seen[0]
    assert (epochs, batch_size, meta, len(tasks)) == (3, 5, 0.7, 5)
    with pytest.raises(ValueError, match="`epochs`"):
        benchmark_class_incremental(0.7, 0, "digits", (8,), 20, 0, 5)


# Silenced


def test_units_are_removed_from_a_copy(digits):
    net = mlp(64, 20, 16, 10)
    before, x, gone = state(net), as_images(digits.x_test[:30]), torch.tensor([1, 4, 19])
    less = without_units(net, gone, digits.x_train)
    assert same(state(net), before)
    h = net[:3](x)
    kept = torch.ones(20).index_fill(0, gone, 0.0)
    torch.testing.assert_close(less(x), net[3:](h * kept))
    assert not torch.allclose(less(x), net(x))
    assert same(state(without_units(net, gone[:0], digits.x_train)), before)


def test_unit_removal_rows_by_hand():
    rows = {m: unit_removal(m, 0, 4000, **ABLE, images=60) for m in METHODS}
    parent, slept, (x, y) = rival("authors", 0, **ABLE), rival("authors", 0, **ABLE), held_out("digits", 60)
    seen = training_part("authors", "digits")[0]
    sleep(slept, seen, "A", seeded(0), steps=4000)
    fired = (parent[1].weight != slept[1].weight).any(1).nonzero()[:, 0]
    assert 0 < len(fired) < 40
    active = parent[1](as_images(seen).flatten(1)).relu().double().mean(0).topk(len(fired)).indices
    networks = dict(awake=parent, sleep=slept, fired=without_units(parent, fired, seen))
    networks["active"] = without_units(parent, active, seen)
    order = parent[1](as_images(seen).flatten(1)).relu().double().mean(0).argsort(descending=True)
    others = order[~torch.isin(order, fired)][: len(fired)]
    networks["next"] = without_units(parent, others, seen)
    assert (rows["next"].overlap == 0).all() and (rows["fired"].overlap == 100).all()
    opened = (slept[1](x.flatten(1))[:, fired] > 0).any(0).double().mean()
    assert rows["awake"].still_open.tolist() == pytest.approx([100 * float(opened)] * 7)
    for method, df in rows.items():
        table = df.set_index(["stressor", "strength"])
        assert (df.units == len(fired)).all() and (df.n == 60).all() and len(df) == len(table.index.unique()) == 7
        if method in networks:
            for stress, level in table.index:
                shown = distortion(x, stress, level, 0) if stress != "clean" else x
                row, net = table.loc[(stress, level)], networks[method]
                assert row.accuracy == pytest.approx(percent_right(net, shown, y))
                assert row.agreement == pytest.approx(percent_right(net, shown, slept(shown).argmax(1)))
    assert (rows["sleep"].agreement == 100).all() and (rows["awake"].agreement < 100).any()
    other = unit_removal("random", 1, 4000, **ABLE | dict(epochs=1), images=60)
    assert rows["random"].agreement.tolist() != other.agreement.tolist()


# Search


def test_rules_are_drawn_from_their_ranges():
    dice = np.random.default_rng(0)
    drawn = [draw_rule(dice, 4, 77) for _ in range(400)]
    assert {r.steps for r in drawn} == {77} and {len(r.thresholds) for r in drawn} == {4}
    ranges = dict(rate=(30, 450), increase=(1e-4, 0.07), decrease=(1e-4, 0.07), scale=(1, 60))
    values = {k: np.array([getattr(r, k) for r in drawn]) for k in ranges}
    for k in range(4):
        ranges[f"theta_{k}"], values[f"theta_{k}"] = (1, 50), np.array([r.thresholds[k] for r in drawn])
    for name, (low, high) in ranges.items():
        at = np.log(values[name] / low) / np.log(high / low)
        assert scipy.stats.kstest(at, "uniform").pvalue > 1e-3, name
        assert at.min() >= 0 and at.max() <= 1
    assert np.abs(np.corrcoef([np.log(v) for v in values.values()]) - np.eye(8)).max() < 0.25
    fixed = {"rate", "increase", "decrease", "thresholds", "scale", "steps"}
    assert all(differing(r, RULES["A"]) <= fixed for r in drawn)


def away(start):
    "How far a network's weights are from these."
    return lambda net: sum(float((v - start[k]).abs().sum()) for k, v in net.state_dict().items())


@pytest.fixture(scope="module")
def sleepy(digits):
    return mlp(64, 20, 16, 10), digits.x_train[:60]


def test_a_search_reports_every_trial_and_hands_over_the_best(sleepy):
    net, x = sleepy
    before = state(net)
    scored = away(before)
    best, trials = search(net, x, scored, 5, 300, 3)
    assert same(state(net), before) and trials.trial.tolist() == list(range(6)) and trials.score[0] == 0
    assert scored(best) == trials.score.max() > 0 and best is not net
    dice, copies = np.random.default_rng(3), []
    for row in trials[1:].itertuples():
        rule, slept = draw_rule(dice, 3, 300), copy.deepcopy(net)
        night = sleep(slept, x, rule, seeded(3))
        copies.append(slept)
        assert all(getattr(row, name) == getattr(rule, name) for name in ("rate", "increase", "decrease", "scale"))
        assert row.spikes == night.spikes.sum() and row.score == scored(slept)
    assert same(state(best), state(copies[int(trials.score[1:].argmax())]))
    again, same_trials = search(net, x, scored, 5, 300, 3)
    pd.testing.assert_frame_equal(trials, same_trials)
    assert same(state(best), state(again))
    assert search(net, x, scored, 5, 300, 4)[1].score.tolist() != trials.score.tolist()


@pytest.mark.parametrize("worse", [lambda d: -d, lambda d: 0.0], ids=["lower", "no higher"])
def test_nothing_that_is_not_better_than_awake_is_handed_over(sleepy, worse):
    net, x = sleepy
    before = state(net)
    scored = lambda n: worse(away(before)(n))
    best, trials = search(net, x, scored, 4, 300, 3)
    assert best is net and same(state(net), before) and trials.score.max() == trials.score[0]
    assert trials.spikes.max() > 0


@pytest.mark.parametrize("bad", [dict(budget=0), dict(steps=0), dict(budget=-1)])
def test_searches_of_nothing_are_refused(sleepy, bad):
    net, x = sleepy
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        search(net, x, lambda n: pytest.fail("scored"), **dict(budget=1, steps=5) | bad)


def test_the_score_by_hand():
    rows = pd.DataFrame(
        [("blur", 0.0, 90.0), ("noise", 0.0, 80.0), ("blur", 1.0, 60.0), ("blur", 2.0, 30.0), ("noise", 0.1, 9.0)]
        + [("fgsm", 0.1, 1000.0)],
        columns=["stressor", "strength", "accuracy"],
    )
    assert score(rows) == pytest.approx((85 + 45 + 9) / 3)


def test_stressed_rows(digits):
    net, x, y = rival("control", 0, **ABLE), *held_out("digits", 60)
    rows = stressed(net, x, y, 3, (0.0, 1.0), (0.0, 0.2), (0.1,)).set_index(["stressor", "strength"])
    assert rows.index.tolist() == [("blur", 0.0), ("blur", 1.0), ("noise", 0.0), ("noise", 0.2)] + [
        ("fgsm", 0.1),
        ("random_sign", 0.1),
    ]
    blurred = [[gaussian_filter(c, 1.0, mode="nearest", truncate=4) for c in i] for i in x.double().cpu().numpy()]
    shown = torch.tensor(np.array(blurred), dtype=x.dtype, device=x.device)
    assert rows.accuracy["blur", 0.0] == rows.accuracy["noise", 0.0] == percent_right(net, x, y)
    assert rows.accuracy["blur", 1.0] == pytest.approx(percent_right(net, shown, y))
    assert rows.accuracy["noise", 0.2] == pytest.approx(percent_right(net, distortion(x, "noise", 0.2, 3), y))
    clean = net(x).argmax(1) == y
    broken = net((x + 0.1 * slope(net, x, y).sign()).clamp(0, 1)).argmax(1) != y
    assert rows.accuracy["fgsm", 0.1] == pytest.approx(100 * float((clean & ~broken).double().mean()))
    assert (rows.n == 60).all() and rows.accuracy["random_sign", 0.1] >= rows.accuracy["fgsm", 0.1]


@pytest.mark.parametrize("by", [(), ("size",)])
def test_what_a_search_found_by_hand(by):
    tried = [(1, 0, 0, 50.0), (1, 0, 1, 40.0), (1, 0, 2, 60.0), (1, 0, 3, 70.0), (1, 1, 0, 5.0), (1, 1, 1, 5.0)]
    df = pd.DataFrame(tried, columns=["size", "seed", "trial", "score"]).assign(part="search", search_s=2.0)
    df = pd.concat([df, pd.DataFrame(dict(part=["test"], size=1, seed=0, accuracy=99.0))], ignore_index=True)
    table = trials_of(df, by)
    assert (
        list(table.index.names) == [*by, "seed"] and table.rules.tolist() == [3, 1] and table.better.tolist() == [2, 0]
    )
    assert table[["awake", "best", "median", "search_s"]].to_numpy().tolist() == [[50, 70, 60, 2], [5, 5, 5, 2]]


def test_what_was_tested_is_compared_with_awake_seed_by_seed():
    rows = [
        dict(part="test", size=size, network=network, seed=seed, stressor=stress, strength=1.0)
        | dict(accuracy=50.0 + seed + (network == "slept") * (size + 0.1 * seed))
        | dict(red="a check" if size == 2 and network == "awake" and seed else "none")
        for size, network, seed, stress in itertools.product((1, 2), ("slept", "awake"), range(3), ("blur", "fgsm"))
    ]
    df = pd.concat([pd.DataFrame(rows)[::-1], pd.DataFrame(dict(part=["search"], size=1, seed=0))], ignore_index=True)
    table = worth_of(df, ("size",))
    assert table.awake.tolist() == [51] * 4 and table.slept.tolist() == pytest.approx([52.1, 52.1, 53.1, 53.1])
    for size, warning in ((1, ""), (2, ", red in 2 of 3")):
        d = paired_difference([size, size + 0.1, size + 0.2], [0, 0, 0])
        want = f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]"
        assert table["slept - awake"].loc[size, "blur", 1.0] == want
        assert table["slept - awake"].loc[size, "fgsm", 1.0] == want + warning
    assert "awake - awake" not in table and table.shape == (4, 3)
    alone = worth_of(df[df["size"] != 1])
    assert alone["slept - awake"].tolist() == table["slept - awake"].loc[2].tolist()
    red = red_of(df, ("size",))
    assert (
        red.loc[2, "awake"].tolist() == ["none", "a check", "a check"] and red.loc[1, "slept"].tolist() == ["none"] * 3
    )


# Patches, features, convolutions


@pytest.fixture
def audited(monkeypatch):
    "What is audited; every audit finds the same at once."
    seen = []

    def look(net, part, eps, images, seed):
        seen.append((net, *part, eps, images, seed))
        return pd.DataFrame(dict(check=["a", "b", "c"], red=[True, False, True]))

    monkeypatch.setattr(rule_search_module, "audit", look)
    monkeypatch.setattr(
        frozen_features_module, "learned_convnet", lambda seed, data, epochs: learned_convnet(seed, data, 1)
    )
    return seen


def test_what_is_tested_is_audited(digits, audited):
    net, x, y = mlp(64, 10), *held_out("digits", 90)
    levels = dict(sigmas=(0.0, 2.0), variances=(0.3,))
    rows = rule_search_module.tested(net, x, y, 4, (0.3, 0.1, 0.2), audited=9, **levels)
    ((who, some, labels, eps, images, seed),) = audited
    assert who is net and (eps, images, seed) == (0.2, None, 4) and set(rows.red) == {"a; c"}
    at = torch.arange(9) * 89 // 8
    assert torch.equal(some, x[at]) and torch.equal(labels, y[at])
    pd.testing.assert_frame_equal(rows.drop(columns="red"), stressed(net, x, y, 4, eps=(0.3, 0.1, 0.2), **levels))
    rule_search_module.tested(net, x[:5], y[:5], audited=9)
    assert torch.equal(audited[1][1], x[:5]) and audited[1][3] == 4 / 255


MODULES = dict(patches=patches_module, frozen_features=frozen_features_module, cifar_convnet=cifar_convnet_module)
SEARCHED = {
    "patches": (lambda: patches(20, 1, (10, 10), 3, 2, 60, 4), ("awake", "slept"), 16),
    "frozen_features": (
        lambda: frozen_features("digits", "digits", 1, None, (12, 10), 2, 50, 2, 40, 20, 30, 25),
        ("awake", "searched", "published"),
        25,
    ),
    "cifar_convnet": (lambda: cifar_convnet(1, "digits", 1, 100, 2, 20, 30, 25), ("awake", "slept"), 25),
}


@pytest.mark.parametrize("name", SEARCHED)
def test_tables_of_searched_sleep(name, audited):
    run, networks, n = SEARCHED[name]
    rows = run()
    assert len(audited) == len(networks) and (rows.red[rows.part == "test"] == "a; c").all()
    trials, tests = rows[rows.part == "search"], rows[rows.part == "test"]
    assert len(trials) + len(tests) == len(rows) and set(tests.network) == set(networks)
    assert trials.trial.tolist() == [0, 1, 2] and (trials.search_s > 0).all() and trials.search_s.nunique() == 1
    assert not tests.duplicated(["network", "stressor", "strength"]).any() and (tests.n == n).all()
    by = tests.pivot(index=["stressor", "strength"], columns="network", values="accuracy")
    assert by.notna().all().all() and {"fgsm", "random_sign", "blur", "noise"} == set(by.index.get_level_values(0))
    assert sorted(by.loc["fgsm"].index) == pytest.approx(sorted(MODULES[name].EPS))
    if trials.score.max() == trials.score.iloc[0]:  # no rule was better: staying awake is handed over
        assert (by[networks[1]] == by["awake"]).all()


@pytest.mark.parametrize("name", SEARCHED)
def test_what_the_search_hands_over_is_what_is_tested(monkeypatch, name, audited):
    given = []

    def found(net, x, scored, budget, steps, seed):
        given.extend([net, copy.deepcopy(net)])
        return given[1], pd.DataFrame(dict(trial=[0], score=[50.0]))

    run, networks, _ = SEARCHED[name]
    monkeypatch.setattr(MODULES[name], "search", found)
    rows = run()
    assert list(rows.network.dropna().unique()) == list(networks)
    heads = [net[1] if name == "frozen_features" else net for net, *_ in audited]
    assert heads[0] is given[0] and heads[1] is given[1]


def test_patches_rows_are_fixed_by_the_seed(audited):
    rows = [patches(20, seed, (10, 10), 3, 2, 60, 4).drop(columns="search_s") for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(rows[0], rows[1])
    assert rows[0].rate.dropna().tolist() != rows[2].rate.dropna().tolist()
    assert rows[0].accuracy.dropna().tolist() != rows[2].accuracy.dropna().tolist()


def test_rules_are_not_chosen_by_the_dice_of_the_test(monkeypatch):
    dice = {}
    for name in ("stressed", "tested"):
        seeds = dice.setdefault(name, set())
        look = lambda net, x, y, seed, *a, seeds=seeds, **k: seeds.add(seed) or stressed(net, x, y, seed)
        monkeypatch.setattr(patches_module, name, look)
    for seed in range(3):
        patches(24, seed, (8, 8), 1, 1, 5, 1)
    assert len(dice["stressed"]) == len(dice["tested"]) == 3 and not dice["stressed"] & dice["tested"]


@pytest.mark.parametrize("bad", [dict(shared=25), dict(shared=-1), dict(budget=0), dict(copies=0)])
def test_bad_patches_are_refused(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        patches(**dict(hidden=(5, 5), epochs=1, steps=5) | bad)


def test_the_published_head_sleeps_by_the_vector_for_features(monkeypatch, audited):
    seen, real = [], frozen_features_module.sleep
    look = lambda net, x, rule, *a, **k: seen.append((x, rule, k)) or real(net, x, rule, *a, **k)
    monkeypatch.setattr(frozen_features_module, "sleep", look)
    frozen_features("digits", "digits", 0, None, (6, 5), 1, 50, 1, 5, 33, 20, 20)
    ((x, rule, how),) = seen
    assert rule == "CIFAR-10 features" and how == dict(steps=33)
    assert x.ndim == 4 and x.shape[2:] == (1, 1) and x.min() >= 0 and x.max() == 1


# The archive's split


def archive(folder, names=("001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auk/c.jpg", "002.Auk/d.jpg")):
    for name in names:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (folder / "images.txt").write_text("".join(f"{7 * k} {name}\n" for k, name in enumerate(names)))
    split = reversed([f"{7 * k} {int(k % 2 == 0)}\n" for k in range(len(names))])  # numbers tell, not lines
    (folder / "train_test_split.txt").write_text("".join(split) + "\n")
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("relative", [False, True])
def test_pictures_are_sorted_by_the_official_split(tmp_path, monkeypatch, relative):
    source, target = archive(tmp_path / "archive"), tmp_path / "deep" / "er" / "cub"
    before = contents(source)
    if relative:
        monkeypatch.chdir(tmp_path)
    got = sort_by_split(*(os.path.relpath(p) if relative else p for p in (source, target)))
    monkeypatch.chdir("/")
    assert got.name == "cub" and contents(source) == before
    assert contents(target) == {
        "train/001.Albatross/a.jpg": b"001.Albatross/a.jpg",
        "test/001.Albatross/b.jpg": b"001.Albatross/b.jpg",
        "train/002.Auk/c.jpg": b"002.Auk/c.jpg",
        "test/002.Auk/d.jpg": b"002.Auk/d.jpg",
    }
    assert all(p.is_symlink() for p in target.rglob("*.jpg"))  # nothing is copied


def test_links_move_with_their_archive(tmp_path):
    (tmp_path / "here").mkdir()
    sort_by_split(archive(tmp_path / "here" / "archive"), tmp_path / "here" / "cub")
    (tmp_path / "here").rename(tmp_path / "there")
    assert len(contents(tmp_path / "there" / "cub")) == 4


def drop_line(path):
    path.write_text("\n".join(path.read_text().strip().splitlines()[1:]))


@pytest.mark.parametrize(
    "harm, told",
    [
        (lambda a: (a / "images/002.Auk/d.jpg").unlink(), "d.jpg"),
        (lambda a: drop_line(a / "images.txt"), "one of the two lists"),
        (lambda a: drop_line(a / "train_test_split.txt"), "one of the two lists"),
        (lambda a: (a / "images.txt").unlink(), "images.txt"),
        (lambda a: (a / "train_test_split.txt").unlink(), "train_test_split.txt"),
    ],
)
def test_an_archive_that_is_not_whole_makes_nothing(tmp_path, harm, told):
    source = archive(tmp_path / "archive")
    harm(source)
    with pytest.raises(FileNotFoundError, match=told):
        sort_by_split(source, tmp_path / "cub")
    assert not (tmp_path / "cub").exists()


def test_a_target_that_exists_is_left_alone(tmp_path):
    source = archive(tmp_path / "archive")
    (tmp_path / "cub").mkdir()
    (tmp_path / "cub" / "mine").write_text("kept")
    with pytest.raises(FileExistsError):
        sort_by_split(source, tmp_path / "cub")
    assert contents(tmp_path / "cub") == dict(mine=b"kept")


# Frozen features


class Small(nn.Module):
    "As torchvision's residual networks end: in `fc`; with batch norm and dropout on the way."

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.fc = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.drop(self.norm(x).relu().flatten(1)))


@pytest.fixture
def small(monkeypatch):
    asked = []
    model = lambda name, weights: asked.append((name, weights)) or Small()
    monkeypatch.setattr(frozen_features_module.models, "get_model", model)
    return asked


def test_frozen_features_are_the_layer_before_the_last_on_normalised_pictures(small):
    x = torch.randint(256, (600, 3, 2, 2), generator=seeded(), dtype=torch.uint8)
    features = feature_extractor("resnet50", x)
    assert small == [("resnet50", "DEFAULT")]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    z = ((x / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)).relu().flatten(1) / math.sqrt(1 + 1e-5)
    got = features.of(x, batch_size=70)
    torch.testing.assert_close(got, z / z.max())
    assert got.min() == 0 and got.max() == 1 and not got.requires_grad
    torch.testing.assert_close(features.of(as_images(x)), got)
    raw = feature_extractor("resnet50")
    torch.testing.assert_close(raw.of(x), z)


def test_a_frozen_network_stays_frozen_inside_another(small):
    x = pixels(8, 3, 2, 2)
    features = feature_extractor("resnet18", (255 * x).byte())
    whole = nn.Sequential(features, nn.Linear(12, 3))
    kept = state(features)
    z = whole.eval()(x)
    whole.train()
    assert whole.training and whole[1].training and not any(m.training for m in features.modules())
    assert torch.equal(whole(x), z)
    opt = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], lr=1.0)
    whole(x).square().sum().backward()
    opt.step()
    assert same(state(features), kept) and all(p.grad is None for p in features.parameters())
    assert not torch.equal(whole(x), z) and [p.shape for p in opt.param_groups[0]["params"]] == [(3, 12), (3,)]


def test_the_picture_still_has_a_gradient(small):
    features = feature_extractor("resnet18", (255 * pixels(8, 3, 2, 2)).byte())
    assert slope(features, pixels(4, 3, 2, 2, seed=1), None, lambda z, y: z.sum()).abs().sum() > 0


def test_features_of_the_small_network():
    x = load("digits", valid=0.1).x_train
    features = feature_extractor("digits", x, epochs=1)
    got = features.of(x)
    assert got.shape == (len(x), 64 * 2 * 2) and got.min() >= 0 and got.max() == 1
    whole = learned_convnet(0, "digits", 1)
    h, start = as_images(x[:20]), next(k for k, m in enumerate(whole) if isinstance(m, nn.Flatten)) + 1
    scale = feature_extractor("digits", epochs=1).of(x).max()
    torch.testing.assert_close(whole[start:](scale * got[:20]), whole(h), atol=1e-4, rtol=1e-4)
    assert isinstance(features, Features)


@pytest.mark.parametrize("error", [URLError("no route to host"), OSError(28, "no space left")])
def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path, error):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(frozen_features_module.models, "get_model", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConnectionError) as e:
        feature_extractor("resnet34", pixels(2, 3, 4, 4))
    told = str(e.value)
    assert "resnet34" in told and f"{tmp_path}/hub/checkpoints" in told and "extractor='cifar10'" in told
    assert e.value.__cause__ is error


@pytest.mark.parametrize("name", ["vgg16", "resnet", "mnist", ""])
def test_unknown_extractors_are_refused(name):
    with pytest.raises(ValueError, match="`extractor` is unknown"):
        feature_extractor(name)


# Claims on made-up rows


def judged(claim, rows):
    "The verdict in one word, by the claim's own choice of rows."
    found = verdict(claim, source=lambda *_: rows)
    assert found.n == rows.seed.nunique() and found.scale == "paper"
    return found.outcome


def measured(accuracy, networks, most_given=50.0, decoy=0.0, seeds=5):
    """Rows as from `noise_blur_fgsm`, from a function of (network, stress, level).

    Seeds differ by a point; differences between the networks differ by half a point from seed to seed, so that the
    95 % interval of five of them is 0.98 to either side. The first network's views that hide something are off by
    `decoy`.
    """
    rows = []
    for (k, network), seed in itertools.product(enumerate(networks), range(seeds)):
        spread = (1 + 0.5 * (k == 0)) * (seed - 2)
        for stress, levels in (LEVELS | dict(fgsm=EPS)).items():
            views = views_of(network) if stress == "fgsm" else [("logits", "")]
            for level, (view, loss) in itertools.product(levels, views):
                value = accuracy(network, stress, level) + spread + decoy * (k == 0 and (view, loss) != views[0])
                most = most_given(network, stress, level) if callable(most_given) else most_given
                about = dict(network=network, seed=seed, stressor=stress, strength=level, view=view, attack_loss=loss)
                rows.append(about | dict(accuracy=value, most_given=most))
    return pd.DataFrame(rows)


SURE, UNSURE = 1.0, 0.96  # mean differences just beyond and just within 0.98


def test_the_difference_is_paired_over_seeds():
    rows = measured(lambda n, s, v: 60.0 + (n == "sleep") * (1 - v), ("sleep", "authors"), decoy=-30.0)
    for stress in ("blur", "fgsm"):
        table = gain(rows, "sleep", "authors", stress).set_index("strength")
        first = rows[(rows.stressor == stress) & (rows["view"] == "logits") & (rows.attack_loss != "square")]
        assert table.index.tolist() == sorted(table.index) and (table.n == 5).all() and (table.stressor == stress).all()
        for level, row in table.iterrows():
            one, other = (
                first[(first.network == n) & (first.strength == level)].accuracy for n in ("sleep", "authors")
            )
            test = scipy.stats.ttest_rel(one, other)
            assert (row["mean"], row.low, row.high) == pytest.approx((1 - level, *test.confidence_interval()))
            assert row.p == pytest.approx(test.pvalue)
    told = gain(rows, "sleep", "authors", "blur").set_index("strength").effect
    assert told[0.0] == "better" and told[1.0] == "not told apart" and told[2.0] == "worse"
    assert told[0.5] == "not told apart"


ASLEEP = ("sleep", "authors", "sleep_report")


def slept(difference, most_given=99.0, report=20.0, decoy=0.0):
    "Sleep above its parent by `difference(stress, level)`; the report's reading constant unless said otherwise."

    def accuracy(network, stress, level):
        if network == "sleep_report":
            return report(stress, level) if callable(report) else report
        return 60.0 + (difference(stress, level) if network == "sleep" else 0.0)

    share = lambda n, s, v: 50.0 if n != "sleep_report" else most_given(s, v) if callable(most_given) else most_given
    return measured(accuracy, ASLEEP, share, decoy)


@pytest.mark.parametrize("where", [("blur", 0.0), ("blur", 4.0), ("noise", 0.1), ("noise", 0.9)])
def test_b1_one_level_that_is_surely_better_is_enough_against_it(where):
    at = lambda amount: lambda s, v: amount if (s, v) == where else -3.0
    constant_reading = slept(at(SURE))
    assert judged(worst_on_blur_and_noise, slept(at(UNSURE))) == "holds"
    assert judged(worst_on_blur_and_noise, constant_reading) == "artefact"
    assert judged(worst_on_blur_and_noise, slept(at(SURE), most_given=98.9)) == "fails"
    assert judged(worst_on_blur_and_noise, slept(at(SURE), report=23.1)) == "fails"  # 25.1 in the best seed


def test_b1_asks_for_a_constant_at_every_level():
    better = lambda s, v: 2.0
    for stress in ("blur", "noise"):
        once = lambda s, v, stress=stress: 90.0 if (s, v) == (stress, 0.5) else 99.0
        assert judged(worst_on_blur_and_noise, slept(better, most_given=once)) == "fails"
    elsewhere = lambda s, v: 99.0 if s in ("blur", "noise") else 10.0
    assert judged(worst_on_blur_and_noise, slept(better, most_given=elsewhere)) == "artefact"
    assert judged(worst_on_blur_and_noise, slept(lambda s, v: 0.0)) == "holds"


def test_b1_counts_blur_and_noise_of_the_authors_kind_only():
    elsewhere = lambda s, v: 0.0 if s in ("blur", "noise") else 30.0
    assert judged(worst_on_blur_and_noise, slept(elsewhere)) == "holds"
    assert {0.0, *ALL_NOISE} == set(VARIANCES)  # without noise it is the image without blur, counted there


def test_b1_shows_the_cost_beside_the_gains_and_the_other_vector_beside_the_verdict():
    rows = slept(lambda s, v: 3.0 if v else -1.25)
    values = worst_on_blur_and_noise(rows).per_seed
    assert values["cost, clean"].mean() == pytest.approx(-1.25) and values["gain, blur 2.5"].mean() == pytest.approx(3)
    other = measured(lambda n, s, v: 60.0 + 3 * (n == "sleep_B") * (1 if s == "blur" else -1), ("sleep_B", "authors"))
    told = worst_on_blur_and_noise(rows, "paper", dict(vector_B=other)).second
    assert told == "the authors' vector B is better than its parent at 9 of 14 levels and worse at 5"


@pytest.mark.parametrize("eps", EPS[1:])
def test_b2_must_be_surely_better_at_every_eps(eps):
    all_but_one = lambda s, v: UNSURE if (s, v) == ("fgsm", eps) else 5.0
    assert judged(constant_under_fgsm, slept(all_but_one)) == "artefact"
    assert judged(constant_under_fgsm, slept(all_but_one, most_given=98.9)) == "fails"


@pytest.mark.parametrize("decoy", [-40.0, 40.0])
def test_b2_leaves_out_eps_zero_and_views_that_hide(decoy):
    above = lambda s, v: SURE if s == "fgsm" and v > 0 else -5.0
    assert judged(constant_under_fgsm, slept(above, decoy=decoy)) == ("holds" if decoy > 0 else "artefact")
    assert judged(constant_under_fgsm, slept(lambda s, v: -above(s, v), decoy=decoy)) == "artefact"


@pytest.mark.parametrize("stress, outcome", [("fgsm", "fails"), ("blur", "artefact"), ("noise", "artefact")])
def test_b2_asks_fgsm_whether_the_reading_is_constant_and_says_what_a_constant_is_worth(stress, outcome):
    once = lambda s, v: 64.0 if s == stress else 99.5
    rows = slept(lambda s, v: 0.0, most_given=once)
    assert judged(constant_under_fgsm, rows) == outcome
    for found in (constant_under_fgsm(rows), constant_under_fgsm(slept(lambda s, v: 5.0))):
        assert "Constant means worthless: who always gives the same answer is right in 20.0 %" in found.measured
    assert f"most frequent answer to {64 if stress == 'fgsm' else 100} to {64 if stress == 'fgsm' else 100} %" in (
        constant_under_fgsm(rows).measured
    )


def test_b2_quotes_the_lowest_view_and_the_authors_attack_beside_it():
    found = constant_under_fgsm(slept(lambda s, v: 4.0, decoy=-1.0))
    assert found.per_seed["gain, eps 0.1"].mean() == pytest.approx(3.0), "the lowest of the views"
    assert "the authors' own attack +3.0 [" in found.measured and "squared error" in found.measured
    attacks = pd.DataFrame(
        dict(suite="attacks", stressor=a, strength=e, network=n, seed=s, l2=1.0, accuracy=v + s * (1 + (n == "sleep")))
        for a, lower in (("pgd", 0), ("square", 5))
        for e in (0.05, 0.1)
        for n, v in (("sleep", 50.0 - lower), ("authors", 52.0))
        for s in range(3)
    )
    told = constant_under_fgsm(slept(lambda s, v: 0.0), "paper", dict(strong=attacks)).second
    assert "(n = 3): -6.0 [" in told and told.count("-6.0") == 2


INSIDE = {("blur", 0.0): 93.7, ("report_blur", 2.5): 77.0, ("fgsm", 0.1): 40.0, ("fgsm", 0.3): 0.5}


@pytest.mark.parametrize(
    "where, low, high",
    [(("blur", 0.0), 93.0, 94.5), (("report_blur", 2.5), 72.0, 82.0), (("fgsm", 0.1), 30.0, 50.0)]
    + [(("fgsm", 0.3), 0.0, 1.0)],
)
def test_b3_four_numbers_within_their_bounds(where, low, high):
    at = lambda value: measured(lambda n, s, v: (INSIDE | {where: value}).get((s, v), 10.0), ["control"], decoy=30.0)
    for value, outcome in ((low, "fails"), (low, "holds"), (high, "holds"), (high, "fails")):
        side = 0.01 if (value == low) == (outcome == "holds") else -0.01
        assert judged(control_curves, at(value + side)) == outcome


def tuned(networks, changed, base=50.0):
    return measured(lambda n, s, v: changed.get((n, s, v), base), networks)


@pytest.mark.parametrize(
    "strong, clean, outcome",
    [(8.01, 1.49, "holds"), (8.01, -1.49, "holds"), (7.99, 0.0, "fails"), (9.0, 1.51, "fails"), (9.0, -1.51, "fails")],
)
def test_b4_strong_blur_and_clean(strong, clean, outcome):
    changed = {("blur", "report_blur", 2.5): 50 + strong, ("blur", "blur", 0.0): 50 + clean}
    changed[("blur", "blur", 2.5)], changed[("control", "blur", 2.5)] = 10.0, 0.0  # the authors' blur: not asked about
    assert judged(blur_helps_on_blur, tuned(("blur", "control"), changed)) == outcome


@pytest.mark.parametrize(
    "right, fine_tuned, control, outcome",
    [
        (10.01, 89.58 + 3.99, 77.36 - 3.99, "holds"),
        (9.99, 89.58, 77.36, "fails"),
        (20.0, 89.58 + 4.01, 77.36, "fails"),
        (20.0, 89.58 - 4.01, 77.36, "fails"),
        (20.0, 89.58, 77.36 + 4.01, "fails"),
        (20.0, 89.58, 77.36 - 4.01, "fails"),
    ],
)
def test_b5_normal_and_wrapped_noise(right, fine_tuned, control, outcome):
    changed = {("noise", "noise", 0.5): 50 + right, ("wrapped_noise", "wrapped_noise", 1.0): fine_tuned}
    changed[("control", "wrapped_noise", 1.0)] = control
    assert judged(noise_helps_on_noise, tuned(("noise", "wrapped_noise", "control"), changed)) == outcome


@pytest.mark.parametrize(
    "other, twin, outcome",
    [(60.0, 80.0, "holds"), (80.0, 80.0, "fails"), (60.0, 79.0, "holds"), (60.0, 90.0, "fails"), (60.0, 70.0, "holds")],
)
def test_b6_the_strongest_of_fourteen_by_its_architecture(other, twin, outcome):
    at = {"convnet": 80.0, "convnet_distilled": twin, "sleep_B": other}
    order = ["convnet", *(n for n in FOURTEEN if n != "convnet")]
    rows = measured(lambda n, s, v: at.get(n, 40.0), order)
    assert judged(strongest_of_fourteen, rows) == outcome
    assert [*strongest_of_fourteen(rows).per_seed][2] == "sleep B"


@pytest.mark.parametrize("more, outcome", [(SURE, "holds"), (UNSURE, "fails")])
def test_b6c_the_student_against_its_teacher(more, outcome):
    rows = measured(lambda n, s, v: 50.0 + more * (n == "distilled"), ("distilled", "distilled_teacher"))
    assert judged(soft_labels_help, rows) == outcome


@pytest.mark.parametrize("more, outcome", [(3.01, "holds"), (2.99, "fails")])
@pytest.mark.parametrize("decoy", [-30.0, 30.0])
def test_b6_where_nothing_is_masked(more, outcome, decoy):
    networks = ("distilled", "control", "convnet", "convnet_distilled")
    here = {"distilled": more, "convnet": 30, "convnet_distilled": 31}
    level = lambda n, s, v: 50 + here.get(n, 0) * ((s, v) == ("fgsm", 0.1))
    rows = measured(level, networks, decoy=decoy)
    rows["accuracy"] += 0.1 * (rows["seed"] - 2) * rows["network"].eq("convnet_distilled")
    assert judged(distillation_is_strongest, rows) == outcome


@pytest.mark.parametrize("more, outcome", [(SURE, "holds"), (UNSURE, "fails"), (-5.0, "fails")])
@pytest.mark.parametrize("decoy", [-30.0, 30.0])
def test_b6_distillation_must_surely_help_the_convolutional_network(more, outcome, decoy):
    networks = ("convnet_distilled", "convnet", "distilled", "control")
    level = lambda n, s, v: 50 + dict(distilled=20.0, convnet_distilled=more).get(n, 0.0)
    assert judged(distillation_is_strongest, measured(level, networks, decoy=decoy)) == outcome


@pytest.mark.parametrize("decoy", [-40.0, 40.0])
def test_the_lowest_view_is_found_seed_by_seed(decoy):
    rows = measured(lambda n, s, v: 60.0, ("sleep", "authors"), decoy=decoy)
    low = lowest_view(rows)
    assert len(low) == 2 * 5 * len(EPS) and set(low.stressor) == {"fgsm"}
    one = low[(low.network == "sleep") & (low.seed == 0) & (low.strength == 0.1)].accuracy.item()
    assert one == 60 - 3 + min(decoy, 0)
    table = gain(low, "sleep", "authors", "fgsm", ("lowest", "any"))
    assert table["mean"].tolist() == pytest.approx([min(decoy, 0)] * len(EPS))
    squares = gain(rows, "sleep", "authors", "fgsm", ("logits", "square"))
    assert squares["mean"].tolist() == pytest.approx([decoy] * len(EPS))


def nights(rate, change=lambda layer, seed: 0.5, rules=("A",), reset="zero", seeds=5):
    "Rows as from `spiking_activity`, from functions of (rule, layer, stretch, seed) and (layer, seed)."
    rows = []
    for rule, seed, layer, t in itertools.product(rules, range(seeds), (1, 2, 3), range(1, STRETCHES + 1)):
        about = dict(rule=rule, factor=1.0, reset=reset, seed=seed, layer=layer, stretch=t)
        value = rate(rule, layer, t, seed)
        rows.append(about | dict(spikes=int(100 * value), rate=value, change=change(layer, seed)))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_b7_every_layer_of_every_seed_counts(layer):
    here = lambda a, b: (a, b) == (layer, 3)
    rate = lambda most: nights(lambda rule, k, t, seed: most if here(k, seed) else 0.01)
    change = lambda most: nights(lambda *_: 0.05, lambda k, seed: most if here(k, seed) else 0.1)
    for rows, outcome in ((rate(0.0999), "holds"), (rate(0.1001), "fails")):
        assert judged(little_spiking, rows) == outcome
    for rows, outcome in ((change(0.99), "holds"), (change(1.01), "fails")):
        assert judged(little_spiking, rows) == outcome


@pytest.mark.parametrize("burst, outcome", [(1.99, "holds"), (2.01, "fails")])
def test_b7_is_about_the_whole_night(burst, outcome):
    rows = nights(lambda rule, layer, t, seed: burst if t == 1 else 0.0)
    assert judged(little_spiking, rows) == outcome


def quarters(a, report):
    "Nights whose rate in each quarter is given, with a fall inside every quarter."
    wiggle = lambda t: 2.0 - (t - 1) % (STRETCHES // 4)
    rate = lambda rule, layer, t, seed: (a if rule == "A" else report)[(t - 1) // (STRETCHES // 4)] + wiggle(t)
    return rate


RISING, LOW, FALLING = (10.0, 30.0, 30.0, 50.1), (10.0, 20.0, 30.0, 49.9), (60.0, 70.0, 69.9, 80.0)


@pytest.mark.parametrize(
    "a, report, outcome",
    [
        (RISING, RISING, "holds"),
        (RISING, LOW, "holds"),
        (LOW, RISING, "artefact"),
        (FALLING, RISING, "artefact"),
        (FALLING, FALLING, "fails"),
        (LOW, LOW, "fails"),
    ],
)
def test_b8_rates_rise_by_quarters_and_end_above_half(a, report, outcome):
    assert judged(runs_away, nights(quarters(a, report), rules=("A", "report"), reset="none", seeds=3)) == outcome


def test_b8_one_seed_is_enough_against_it_and_one_layer_is_not():
    good, bad = quarters(RISING, RISING), quarters(LOW, RISING)
    one_seed = lambda rule, layer, t, seed: (bad if seed == 2 else good)(rule, layer, t, seed)
    one_layer = lambda rule, layer, t, seed: good(rule, layer, t, seed) + {1: -2 * t, 2: 2 * t, 3: 0}[layer]
    for rate, outcome in ((one_seed, "artefact"), (one_layer, "holds")):
        assert judged(runs_away, nights(rate, rules=("A", "report"), reset="none", seeds=3)) == outcome


def test_b8_says_which_part_is_true_and_what_is_not_measured():
    rows = nights(quarters(LOW, LOW), rules=("A", "report"), reset="none", seeds=3)
    found = runs_away(rows)
    assert "true of layer 3 in the report's reading" in found.measured and "with it" not in found.measured
    assert "2,710,500 steps are not measured; `robustlit sweep spiking_activity" in found.second
    calm = nights(lambda *_: 0.01, rules=("report",), reset="zero", seeds=3)
    long = nights(lambda *_: 70.0, rules=("report",), reset="none", seeds=2).assign(steps=2_710_500)
    both = runs_away(rows, "paper", dict(reset=calm, long=long))
    assert "20.0 with it" in both.measured and both.second.endswith("2,710,500 steps: 70.0 % (n = 2)")


def test_b7_quotes_the_reports_own_conversion():
    report = pd.DataFrame(
        dict(seed=range(2), strength=0.0, spikes_1=979, spikes_2=0, spikes_3=0, accuracy=[32.0, 33.0])
    )
    told = little_spiking(nights(lambda *_: 0.05), "paper", dict(report=report, awake=pd.DataFrame(dict(awake=[93.6]))))
    assert (
        told.second
        == "the authors' thresholds in the report's own conversion: 979 / 0 / 0 spikes, accuracy 93.6 to 32.5 %"
    )


@pytest.mark.parametrize("more, outcome", [(15.01, "holds"), (14.99, "fails")])
def test_b9_at_the_end_on_all_digits(more, outcome):
    rows = []
    for method, seed, after, on in itertools.product(("sequential", "sleep"), range(3), range(1, 6), range(6)):
        for when in ("learned", "slept")[: 1 + (method == "sleep")]:
            told = (on, after, when) == (0, 5, "slept")
            decoy = 0.0 if method == "sequential" or told else -40.0 if more > 15 else 40.0
            value = 19.0 + seed * (1 + told) + decoy + (more - 1) * told  # the mean of the seeds adds 1 to the gain
            rows.append(dict(method=method, seed=seed, after=after, when=when, on=on, accuracy=value))
    assert judged(brings_back, pd.DataFrame(rows)) == outcome
