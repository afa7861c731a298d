"Paper 3: masks, counts, networks and the map of filtered layers."

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import simpson
from torch import nn
from torchvision import models

from robustlit.attacks import attack_images
from robustlit.data import Dataset, load
from robustlit.filtering import filter_map as M
from robustlit.filtering.filter_map import filter_map
from robustlit.filtering.filters import (
    CONTROLS,
    FILTERS,
    PAPER,
    active_weights,
    filter_steps,
    filterable_layers,
    filtered,
    keep_mask,
    step_masks,
)
from robustlit.filtering.networks import BUILDERS, build
from robustlit.filtering.scores import (
    area,
    combined_response,
    filter_scores,
    label,
    normalised_scores,
    response,
    to_layers,
)
from robustlit.zoo import load_network

VIT_ATTENTION = "encoder.layers.encoder_layer_0.self_attention.out_proj"
WIDTHS = dict(resnet18=8, resnet50=4, squeezenet=8, shufflenet=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bytes_of(model):
    return {k: v.detach().contiguous().numpy().tobytes() for k, v in model.state_dict().items()}


def images(n=8, channels=1, side=28, seed=0):
    return torch.rand(n, channels, side, side, generator=seeded(seed)), torch.arange(n) % 10


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 10)
    ).eval()


# ---------------------------------------------------------------- masks and counts


def plain_mask(w, name, alpha, width):
    "The three equations, one weight at a time."
    keeps = dict(
        high_pass=lambda v: v > alpha,
        low_pass=lambda v: v < alpha,
        pulse=lambda v: not alpha - width / 2 <= v < alpha + width / 2,
        magnitude=lambda v: abs(v) > alpha,
    )[name]
    return torch.tensor([keeps(v) for v in w.flatten().tolist()]).view(w.shape)


@pytest.mark.parametrize("name", FILTERS.names())
def test_masks_are_those_of_the_equations(name):
    w = torch.randn(6, 7, generator=seeded())
    for step in filter_steps({"a": w}, [name], 9):
        assert torch.equal(keep_mask(w, name, step.alpha, step.width), plain_mask(w, name, step.alpha, step.width))
        assert step.n_zero == int((~plain_mask(w, name, step.alpha, step.width)).sum())


@pytest.mark.parametrize("name", PAPER)
def test_ends_of_the_grid(name):
    w = torch.randn(500, generator=seeded(1))
    steps = filter_steps({"a": w}, [name], 25)
    assert [s.alpha for s in steps] == sorted(s.alpha for s in steps) and len(steps) == 25
    assert (steps[0].alpha, steps[-1].alpha) == (w.min().item(), w.max().item())
    assert (steps[0].alpha_norm, steps[-1].alpha_norm) == (0, 1)
    n = [s.n_zero for s in steps]
    if name == "high_pass":
        assert n[0] == 1 and n[-1] == 500 and n == sorted(n)
    if name == "low_pass":
        assert n[0] == 500 and n[-1] == 1 and n == sorted(n, reverse=True)
    if name == "pulse":
        assert max(n) < 150 and np.isclose(steps[0].width, (w.max() - w.min()).item() / 25)


def test_high_and_low_pass_and_the_threshold_itself_give_the_layer_back():
    w = torch.tensor([-2.0, -0.5, 0.3, 0.3, 1.0])
    high, low = (keep_mask(w, k, float(w[2])) for k in ("high_pass", "low_pass"))
    assert torch.equal(high.int() + low.int() + (w == w[2]).int(), torch.ones(5, dtype=torch.int32))


def test_windows_that_tile_the_range_remove_each_weight_once():
    w = torch.arange(-8, 9) / 8
    gone = [~keep_mask(w, "pulse", a, 0.25) for a in (torch.arange(-4, 5) / 4).tolist()]
    assert (torch.stack(gone).sum(0) == 1).all()


@pytest.mark.parametrize("name", CONTROLS)
def test_random_controls_remove_as_many_and_others(name):
    w = torch.randn(400, generator=seeded(2))
    theirs = filter_steps({"a": w}, [name.removeprefix("random_")], 9)
    ours = filter_steps({"a": w}, [name], 9)
    assert [s.n_zero for s in ours] == [s.n_zero for s in theirs]
    assert any(s.key != t.key for s, t in zip(ours, theirs))
    assert [s.key for s in ours] == [s.key for s in filter_steps({"a": w}, [name], 9)]
    assert [s.key for s in ours] != [s.key for s in filter_steps({"a": w}, [name], 9, seed=1)]
    assert [s.key for s in ours] != [s.key for s in filter_steps({"b": w}, [name], 9)]


def test_range_of_several_layers_is_that_of_all():
    weights = {"a": torch.linspace(-1, 0, 11), "b": torch.linspace(0.5, 3, 6)}
    steps = filter_steps(weights, ["high_pass"], 5)
    assert [s.alpha for s in steps] == [-1, 0, 1, 2, 3]
    assert [s.n_zero for s in steps] == [2, 11, 13, 15, 17] and steps[0].n_total == 17


def test_weights_that_are_zero_already_count_as_zero_but_not_as_removed():
    w = torch.tensor([-1.0, 0.0, 0.0, 2.0])
    first = filter_steps({"a": w}, ["high_pass"], 3)[0]
    assert (first.n_zero, first.n_removed, first.compactness()) == (3, 1, 0.75)


def test_released_choices():
    weights = {"a": 0.1 * torch.randn(50, generator=seeded()), "b": 0.1 * torch.randn(50, generator=seeded(1))}
    fixed = filter_steps(weights, ["low_pass"], 5, compat=["fixed_grid"])
    assert [s.alpha for s in fixed] == [-1, -0.5, 0, 0.5, 1]
    assert {s.n_zero for s in filter_steps(weights, ["pulse"], 5, compat=["inert_pulse"])} == {0}
    alone = filter_steps({"a": weights["a"]}, ["pulse"], 5, compat=["inert_pulse"])
    assert max(s.n_zero for s in alone) > 0
    right, slip = (filter_steps(weights, ["high_pass"], 5, compat=c)[2] for c in ((), ["last_layer"]))
    assert right.n_zero == slip.n_zero and right.key != slip.key
    masks = step_masks(weights, slip, ["last_layer"])
    assert masks["a"].all() and torch.equal(masks["b"], weights["b"] > slip.alpha)


# ---------------------------------------------------------------- active weights


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 3, 3, 2, 1),
        nn.Conv2d(2, 4, 5, 1, 2, groups=2),
        nn.Conv2d(2, 3, 3, 1, 2, dilation=2),
        nn.Conv2d(2, 3, 3, padding="same"),
        nn.Conv2d(2, 3, (1, 3), 1, (0, 1)),
        nn.Conv2d(2, 3, 3, 1, 1, padding_mode="circular"),
    ],
)
@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_active_weights_are_those_with_a_gradient(conv, side):
    x = torch.rand(30, 2, side, side, generator=seeded()) + 0.1
    conv.zero_grad()
    conv(x).square().sum().backward()
    assert torch.equal(active_weights(conv, x)[""], conv.weight.grad != 0)


def test_removing_inactive_weights_changes_nothing():
    net = build("resnet18", tiny_data(1, 28), width=8).eval()
    x, _ = images()
    active = active_weights(net, x)
    dead = sum(int((~m).sum()) for m in active.values())
    assert dead / sum(m.numel() for m in active.values()) > 0.5
    with torch.no_grad():
        before = net(x)
        with filtered(net, active):
            assert (net(x) - before).abs().max() < 1e-5


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_weights_come_back_bit_for_bit(small, error):
    with torch.no_grad():
        small[0].weight[0, 0, 0, 0] = -0.0
    before, version = bytes_of(small), [p.requires_grad for p in small.parameters()]
    try:
        with filtered(small, {"0": small[0].weight > 0, "4": torch.zeros(10, 196, dtype=torch.bool)}):
            assert bytes_of(small) != before and not small[4].weight.any()
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt) as e:
        assert type(e) is error
    assert bytes_of(small) == before and [p.requires_grad for p in small.parameters()] == version


def broken(what, net):
    if what == "nan":
        net[4].weight.data[0, 0] = torch.nan
    if what == "complex":
        net[4].weight = nn.Parameter(net[4].weight.data.to(torch.complex64))
    if what == "tied":
        net.append(nn.Linear(196, 10))
        net[5].weight = net[4].weight
    return net


@pytest.mark.parametrize(
    "what, error, words",
    [
        ("nan", ValueError, "NaN or infinity in '4'"),
        ("complex", TypeError, "real floating-point weights, got torch.complex64 in '4'"),
        ("tied", ValueError, "must not share weights, but '4' and '5' do"),
    ],
)
def test_weights_that_cannot_be_filtered_are_refused(small, what, error, words):
    with pytest.raises(error, match=words):
        filterable_layers(broken(what, small))


def test_bad_arguments_are_refused(small):
    for layers, words in ((["nowhere"], "`layers` is unknown"), (["1"], "BatchNorm2d"), ([], "at least one")):
        with pytest.raises(ValueError, match=words):
            filterable_layers(small, layers)
    with pytest.raises(ValueError, match="thresholds"):
        filter_steps({"a": torch.randn(3)}, thresholds=1)
    with pytest.raises(ValueError, match="all are 2 in 'a'"):
        filter_steps({"a": torch.full((3,), 2.0)})
    with pytest.raises(ValueError, match="did you mean 'pulse'"):
        filter_steps({"a": torch.randn(3)}, ["pulses"])
    with pytest.raises(ValueError, match=r"booleans of shape \(10, 196\) for '4', got torch.float32"):
        with filtered(small, {"4": torch.ones(10, 196)}):
            pass


# ---------------------------------------------------------------- networks


def tiny_data(channels, side, classes=10):
    x, y = torch.zeros(1, channels, side, side, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    return Dataset("tiny", x, y, x, y, x, y, tuple(map(str, range(classes))))


SIZES = {
    "resnet18": (21, 20, (11_175_370, 11_181_642, 11_279_112), (11_165_760, 11_172_032, 11_269_312)),
    "resnet50": (54, 53, (23_522_250, 23_528_522, 23_917_832), (23_469_120, 23_475_392, 23_864_512)),
    "squeezenet": (26, 0, (726_474, 727_626, 825_096), (723_520, 724_672, 821_952)),
    "shufflenet": (57, 56, (1_263_422, 1_263_854, 1_458_604), (1_247_232, 1_247_664, 1_442_224)),
}
DEAD = dict(resnet18=6_946_816, resnet50=5_505_024, squeezenet=409_600, shufflenet=7_888)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_paper(name):
    layers, norms, parameters, weights = SIZES[name]
    for i, (c, side, k) in enumerate(((1, 28, 10), (3, 32, 10), (3, 64, 200))):
        net = build(name, tiny_data(c, side, k))
        found = filterable_layers(net)
        assert sum(p.numel() for p in net.parameters()) == parameters[i]
        assert (len(found), sum(m.weight.numel() for m in found.values())) == (layers, weights[i])
        assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == norms
        dead = sum(int((~m).sum()) for m in active_weights(net, torch.zeros(1, c, side, side)).values())
        assert dead == (0 if side == 64 else DEAD[name])


@pytest.mark.parametrize("name", SIZES)
def test_thin_networks_have_the_same_layers(name):
    shapes = []
    for width in (None, WIDTHS[name]):
        found = filterable_layers(build(name, tiny_data(1, 28), width))
        shapes.append([(k, type(m).__name__, getattr(m, "kernel_size", 0)) for k, m in found.items()])
    assert shapes[0] == shapes[1]


def test_half_width_shufflenet_is_that_of_the_released_code():
    assert sum(p.numel() for p in build("shufflenet", tiny_data(1, 28), 48).parameters()) == 351_610


@pytest.mark.parametrize("name", SIZES)
def test_networks_of_the_zoo(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    how = dict(data="digits", width=WIDTHS[name], epochs=1, n_train=100, size=28 if name == "squeezenet" else None)
    nets = [load_network(f"filtering/{name}", seed, **how) for seed in (0, 1, 0)]
    first, other, again = (bytes_of(n) for n in nets)
    assert first == again and all(first[f"{k}.weight"] != other[f"{k}.weight"] for k in filterable_layers(nets[0]))
    assert (
        not nets[0].training and len(list((tmp_path / "networks").glob("*.pt"))) == 4
    )  # the weights, and the state from which a longer training goes on


def test_every_builder_is_in_the_zoo():
    assert set(BUILDERS.names()) == set(SIZES) and load("digits").n_classes == 10


# ---------------------------------------------------------------- the map

CUTS = {
    "resnet18": ["conv1", "layer1.0.conv2", "layer3.0.downsample.0", "fc"],
    "resnet50": ["layer2.0.downsample.0", "layer2.1.conv2"],
    "squeezenet": ["features.0", "features.4.expand3x3", "features.7.squeeze", "classifier.1"],
    "shufflenet": ["stage2.0.branch1.0", "stage3.1.branch2.3", "conv5.0"],
}


def lively(name, seed=0):
    "A network whose batch norm has seen images and whose logits differ."
    torch.manual_seed(seed)
    net = build(name, tiny_data(1, 28), WIDTHS[name])
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5), m.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            net.train()(torch.rand(32, 1, 28, 28))
    return net.eval()


def alone(net, layer, mask, run):
    "The independent loop: another weight, the network, and the old weight back."
    w = dict(net.named_modules())[layer].weight
    old = w.data
    w.data = torch.where(mask, old, torch.zeros_like(old))
    try:
        return run()
    finally:
        w.data = old


def input_gradient(net, x, y):
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(net(x), y, reduction="sum").backward()
    return x.grad


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name, layer", [(n, k) for n, layers in CUTS.items() for k in layers])
def test_fast_logits_and_gradients_are_those_of_the_plain_loop(name, layer, memory):
    net, (x, y) = lively(name), images(6)
    module = filterable_layers(net, layer)[layer]
    masks = [step_masks({layer: module.weight}, s)[layer] for s in filter_steps({layer: module.weight}, PAPER, 3)]
    with torch.no_grad():
        cut = M._Attackable(M._traced(net, memory), layer, memory)
        fast = cut.logits(cut.prefix(x), masks)
        several = torch.stack([images(6, seed=i)[0] for i in range(len(masks))])
        own = cut.logits_of_each(several, masks)
    z, grads = cut.gradients(x, y, masks)
    for i, mask in enumerate(masks):
        with torch.no_grad():
            want, theirs = (alone(net, layer, mask, lambda v=v: net(v)) for v in (x, several[i]))
        gradient = alone(net, layer, mask, lambda: input_gradient(net, x, y))
        for got in (fast[i], z[i]):
            assert (got - want).abs().max() <= 1e-4 and torch.equal(got.argmax(1), want.argmax(1))
        assert (own[i] - theirs).abs().max() <= 1e-4
        assert (grads[i] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-12


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("adversary", ["static", "adaptive"])
def test_fast_map_is_the_independent_loop(name, adversary):
    net, (x, y), layer, eps = lively(name), images(6), CUTS[name][1], 0.1
    rows = filter_map(net, (x, y), layer, thresholds=3, eps=eps, adversary=adversary, chunk=2, batch_size=4)
    assert set(rows.engine[2:]) == {"batched"} and len(rows) == 2 + 2 * 9
    weight = filterable_layers(net)[layer].weight
    fgsm = lambda: attack_images(net, x, y, eps, "fgsm", early_stop=False).x
    share = lambda v: 100 * (net(v).argmax(1) == y).double().mean().item()
    fixed, wrong = fgsm(), 0
    with torch.no_grad():
        for i, s in enumerate(filter_steps({layer: weight}, PAPER, 3)):
            clean, attacked = rows.iloc[2 + 2 * i], rows.iloc[3 + 2 * i]
            mask = plain_mask(weight, s.filter, s.alpha, s.width)
            want = alone(net, layer, mask, lambda: (share(x), share(fixed if adversary == "static" else fgsm())))
            assert (clean.stressor, clean.strength, clean.eps, clean.accuracy) == (s.filter, s.alpha, 0, want[0])
            assert (attacked.eps, attacked.n_zero) == (eps, int((~mask | (weight == 0)).sum()))
            wrong += abs(attacked.accuracy - want[1]) > 1e-9
    assert wrong == 0 if adversary == "static" else wrong <= 1


def test_chunk_batch_and_engine_change_nothing(small):
    data = images(10)
    how = dict(thresholds=5, eps=0.05)
    tables = [filter_map(small, data, chunk=c, batch_size=b, **how) for c, b in ((1, 3), (4, 10), (50, 7))]
    tables.append(filter_map(small, data, engine="plain", **how).assign(engine=tables[0].engine))
    for t in tables[1:]:
        assert t.equals(tables[0])


class Loop(nn.Module):
    "A layer used several times."

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(784, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x):
        h = self.first(x.flatten(1)).relu()
        for _ in range(3):
            h = h + self.again(h).tanh()
        return self.last(h)


class InPlace(nn.Module):
    "Changes in place what another branch reads."

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.Linear(784, 10)

    def forward(self, x):
        h = self.a(x)
        side = 2 * h
        h.relu_()
        side += self.b(h)
        return self.c(side.flatten(1))


class Mixing(nn.Module):
    "Lets the images of a batch speak with one another."

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(784, 20), nn.Linear(20, 10)

    def forward(self, x):
        h = self.a(x.flatten(1))
        return self.b(h - h.mean(0))


class Choosing(Loop):
    "Takes another way for dark images."

    def forward(self, x):
        return super().forward(x if x.mean() > 0.1 else 1 - x)


@pytest.mark.parametrize(
    "kind, how", [(Loop, {"batched"}), (InPlace, None), (Mixing, {"batched", "single"}), (Choosing, {"plain"})]
)
def test_other_peoples_networks(kind, how):
    torch.manual_seed(0)
    net, data = kind().eval(), images(9)
    fast, plain = (filter_map(net, data, thresholds=4, eps=0.05, engine=e) for e in ("auto", "plain"))
    assert fast.drop(columns="engine").equals(plain.drop(columns="engine"))
    assert how is None or set(fast.engine[2:]) == how


def test_networks_that_no_paper_uses():
    torch.manual_seed(0)
    data = images(5, 3, 32)
    mobile = models.mobilenet_v3_small(num_classes=10).eval()
    vit = models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10).eval()
    wanted = {"batched"}, {"single", "batched", "plain"}
    layers = ["features.4.block.1.0"], ["conv_proj", "encoder.layers.encoder_layer_1.mlp.0", VIT_ATTENTION]
    for net, chosen, how in zip((mobile, vit), layers, wanted):
        fast, plain = (filter_map(net, data, chosen, thresholds=3, eps=0.05, engine=e) for e in ("auto", "plain"))
        assert fast.drop(columns="engine").equals(plain.drop(columns="engine")) and set(fast.engine[2:]) == how


def test_global_scope_filters_all_layers(small):
    x, y = images(12)
    rows = filter_map(small, (x, y), scope="global", filters=["low_pass"], thresholds=4)
    weights = {k: m.weight for k, m in filterable_layers(small).items()}
    top = max(w.max().item() for w in weights.values())
    low = min(w.min().item() for w in weights.values())
    for row, alpha in zip(rows[1:].itertuples(), np.linspace(low, top, 4)):
        with torch.no_grad(), filtered(small, {k: w < row.strength for k, w in weights.items()}):
            assert row.accuracy == 100 * (small(x).argmax(1) == y).double().mean().item()
        assert np.isclose(row.strength, alpha) and row.n_total == 36 + 1960


def test_other_attacks_and_released_choices(small):
    data = images(6)
    rows = filter_map(small, data, "4", thresholds=2, eps=0.1, attack="pgd", options=dict(steps=2))
    assert set(rows.engine) == {"plain"} and set(rows.attack) == {"", "pgd"}
    net = lively("resnet18")
    rows = filter_map(net, data, "fc", thresholds=2, eps=0.1, compat=["batch_statistics", "normalised_fgsm"])
    assert set(rows.bn_mode) == {"batch"} and not net.training
    fast = filter_map(net, data, "fc", thresholds=2, eps=0.1, compat=["normalised_fgsm"])
    with pytest.raises(ValueError, match="normalised_fgsm"):
        filter_map(small, data, eps=0.1, compat=["normalised_fgsm"])
    assert set(fast.engine[2:]) == {"batched"}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize(
    "engine, place, compat",
    [("plain", "_plain", ()), ("auto", "_fast", ()), ("plain", "_plain", ("batch_statistics",))],
)
def test_everything_is_as_before(error, engine, place, compat, monkeypatch):
    net, calls = lively("resnet18").train(), []
    net.layer1.eval(), net.fc.weight.requires_grad_(False)
    real = getattr(M, place)

    def interrupted(*args):
        calls.append(1)
        if error and len(calls) == 4:
            raise error
        return real(*args)

    monkeypatch.setattr(M, place, interrupted)
    look = lambda: (bytes_of(net), [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()])
    before, dice = look(), torch.get_rng_state()
    try:
        filter_map(net, images(4), ["conv1", "fc"], thresholds=5, eps=0.1, engine=engine, chunk=2, compat=compat)
    except KeyboardInterrupt:
        assert error
    assert len(calls) >= 4 and look() == before and torch.equal(torch.get_rng_state(), dice)
    assert all(p.grad is None for p in net.parameters())


def test_bad_input_is_refused(small):
    x, y = images(4)
    cases = [
        (ValueError, "`layers` is unknown: 'convl'", dict(layers="convl")),
        (ValueError, "`eps`", dict(eps=-1.0)),
        (ValueError, "`thresholds`", dict(thresholds=1)),
        (ValueError, "`scope` is unknown", dict(scope="layer")),
        (ValueError, "`adversary` is unknown", dict(adversary="adaptiv")),
        (ValueError, "at least one image", dict(data=(x[:0], y[:0]))),
        (ValueError, "does not take images", dict(data=(x[..., :20], y))),
        (TypeError, "or a pair", dict(data=(x,))),
        (ValueError, "fast_grid", dict(compat=["fast_grid"])),
    ]
    for error, words, bad in cases:
        with pytest.raises(error, match=words):
            filter_map(small, **dict(data=(x, y)) | bad)
    with torch.no_grad():
        small[4].weight.fill_(0.5)
    with pytest.raises(ValueError, match="all are 0.5 in '4'"):
        filter_map(small, (x, y))
    small[0].weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity in '0'"):
        filter_map(small, (x, y))


def test_images_are_stratified():
    x, y = torch.rand(50, 1, 4, 4), torch.arange(50) % 3
    few, labels = M.stratified_images((x, y), 10)
    assert sorted(labels.bincount().tolist()) == [3, 3, 4] and all((x == f).flatten(1).all(1).any() for f in few)


def test_interrupted_map_goes_on_with_the_layers_that_are_lacking(small, tmp_path, monkeypatch):
    how = dict(thresholds=4, eps=0.1, engine="plain", keep=tmp_path)
    data, real, calls = images(5), M._plain, []
    whole = filter_map(small, data, **how | dict(keep=None))

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(M, "_plain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        filter_map(small, data, **how)
    assert len(list(tmp_path.iterdir())) == 1
    calls.clear()
    monkeypatch.setattr(M, "_plain", lambda *args: calls.append(1) or real(*args))
    pd.testing.assert_frame_equal(filter_map(small, data, **how), whole)
    assert 1 < len(calls) <= 13 and len(list(tmp_path.iterdir())) == 2
    calls.clear()
    pd.testing.assert_frame_equal(filter_map(small, data, **how), whole)
    assert len(calls) == 1
    with torch.no_grad():
        small[4].bias[0] += 1
    filter_map(small, data, **how)
    assert len(list(tmp_path.iterdir())) == 4


# ---------------------------------------------------------------- scores


def a_map(curves, eps=0.1, whole=(90.0, 45.0), n=25, layer="a", **more):
    "A table as `filter_map` gives it, from curves (filter, attacked) to accuracies, of a layer spread evenly."
    at = np.linspace(0, 1, n)
    about = dict(suite="filters", unit="weight", n_total=1000, n_active=500, n=100, classes=10, **more)
    rows = [dict(stressor="unfiltered", layer="", eps=e, accuracy=a, strength=0.0) for e, a in zip((0.0, eps), whole)]
    for (name, attacked), values in curves.items():
        share = dict(high_pass=at, low_pass=1 - at, pulse=np.full(n, 1 / n))[name.removeprefix("random_")]
        for x, value, s in zip(at, values, share):
            one = dict(stressor=name, layer=layer, eps=eps * attacked, accuracy=value, strength=x, alpha_norm=x)
            rows.append(one | dict(n_zero=1000 * s, n_removed=1000 * s, n_zero_active=500 * s))
    return pd.DataFrame([about | r for r in rows])


def curves(seed=0, n=25):
    rng = np.random.default_rng(seed)
    return {(name, a): rng.uniform(20, 80, n) for name in PAPER for a in (False, True)}


@pytest.mark.parametrize("n", [3, 4, 5, 6, 13, 24, 25, 49])
def test_simpson_is_exact_for_cubics(n):
    x = np.linspace(0, 1, n)
    assert np.isclose(area(3 * x**3 - 2 * x**2 + x - 1), 3 / 4 - 2 / 3 + 1 / 2 - 1, atol=1e-12)
    assert np.isclose(area(np.ones(n)), 1) and np.isclose(area(np.ones(n), "rectangle"), 1)
    y = np.random.default_rng(0).normal(size=n)
    assert np.isclose(area(y), area(y[::-1]))
    if n % 2:
        assert np.isclose(area(y), simpson(y, dx=1 / (n - 1)))


def test_scores_by_hand():
    made = curves()
    table = filter_scores(a_map(made)).set_index("stressor")
    at = np.linspace(0, 1, 25)
    baseline = dict(high_pass=1 - at, low_pass=at, pulse=np.full(25, 0.96))
    for name in PAPER:
        clean, adv = made[name, False] / 90, made[name, True] / 45
        want = [simpson(v, dx=1 / 24) for v in (clean - baseline[name], adv - baseline[name], adv - clean)]
        assert np.allclose(table.loc[name, ["S_clean", "S_adv", "S_diff"]].astype(float), want)
        clean, adv = (made[name, False] - 10) / 80, (made[name, True] - 10) / 35
        want = [simpson(v, dx=1 / 24) for v in (clean - baseline[name], adv - baseline[name], adv - clean)]
        columns = ["chance_S_clean", "chance_S_adv", "chance_S_diff"]
        assert np.allclose(table.loc[name, columns].astype(float), want)
    for column in ("S_clean", "S_adv", "S_diff", "chance_S_diff", "gain"):
        assert np.isclose(table.loc["combined", column], table.loc[list(PAPER), column].mean())
    rows = a_map(made)
    got = combined_response(rows, "a", True)
    assert np.allclose(got, np.mean([made[k, True] / 45 for k in PAPER], axis=0))
    assert np.allclose(response(rows, "a").loc["pulse"], made["pulse", False])


def test_order_of_the_rows_does_not_matter():
    rows = a_map(curves())
    assert filter_scores(rows.iloc[::-1]).round(9).equals(filter_scores(rows).round(9))


def test_inert_and_baseline_layers():
    at = np.linspace(0, 1, 25)
    inert = filter_scores(a_map({(k, False): np.full(25, 90.0) for k in PAPER}).query("eps == 0")).set_index("stressor")
    assert np.allclose(inert.S_clean[["high_pass", "low_pass", "pulse"]], [0.5, 0.5, 0.04]) and (inert.gain == 0).all()
    follows = {("high_pass", False): 90 * (1 - at), ("low_pass", False): 90 * at, ("pulse", False): np.full(25, 86.4)}
    table = filter_scores(a_map(follows).query("eps == 0"))
    assert np.allclose(table.S_clean, 0) and set(table.label_clean) == {"robust"} and "S_adv" not in table
    better = filter_scores(a_map({("pulse", False): np.full(25, 99.0)}).query("eps == 0"), ["pulse"])
    assert np.allclose(better.gain, 0.1)


def test_chance_is_no_gain():
    "Collapsed to one class, clean and attacked alike: the paper's ratio calls it a gain."
    table = filter_scores(
        a_map({("high_pass", a): np.full(25, 10.0) for a in (False, True)}, whole=(90, 20)), ["high_pass"]
    )
    assert table.S_diff[0] > 0.3 and np.isclose(table.chance_S_diff[0], 0)


def test_random_masks_as_baseline():
    made = {
        (k, a): np.full(25, 30.0 + 5 * a + 9 * (k != "high_pass"))
        for k in ("high_pass", "random_high_pass")
        for a in (False, True)
    }
    one = filter_scores(a_map(made), ["high_pass"]).iloc[0]
    assert np.isclose(one.control_S_clean, -9 / 90) and np.isclose(one.control_S_adv, -9 / 45)
    assert np.isclose(one.control_chance_S_clean, -9 / 80)


def test_labels_and_what_was_not_tested():
    assert [label(v, 0.1) for v in (-0.2, -0.1, 0.1, 0.2)] == ["fragile", "robust", "robust", "antifragile"]
    assert label(0.0, 0) == "robust" and label(1e-9, 0) == "antifragile"
    rows = a_map({("pulse", False): np.full(25, 90.0)}).assign(n_zero=0, n_removed=0)
    assert set(filter_scores(rows.query("eps == 0"), ["pulse"]).label_clean) == {"not tested"}


def test_count_of_active_weights_and_seeds():
    rows = a_map({("high_pass", False): np.full(25, 90.0)}).query("eps == 0")
    half = rows.assign(n_zero_active=rows.n_zero_active / 2)
    assert np.isclose(filter_scores(half, ["high_pass"], count="active").S_clean[0], 0.25)
    several = pd.concat([a_map(curves(s), seed=s) for s in (0, 1)])
    table = filter_scores(several, by=["seed"])
    for s in (0, 1):
        want = filter_scores(a_map(curves(s)))
        assert np.allclose(table[table.seed == s].S_diff, want.S_diff)
    with pytest.raises(ValueError, match="name in `by`"):
        filter_scores(several)


def test_normalised_scores_keep_sign_and_zero():
    table = pd.DataFrame(dict(S_clean=[-0.2, 0.0, 0.1], S_adv=[-0.4, 0.3, 0.0], S_diff=[-0.01, 0.02, 0.0]))
    got = normalised_scores(table)
    for k in ("S_clean", "S_adv", "S_diff"):
        assert (np.sign(got[f"norm_{k}"]) == np.sign(table[k])).all() and got[k].equals(table[k])
    assert got.norm_S_adv[0] == -0.5 and got.norm_S_clean[0] == -0.25 and got.norm_S_diff[1] == 0.5
    moved = normalised_scores(table, "minmax")
    assert (moved.norm_S_adv[0], moved.norm_S_adv[1], moved.norm_S_diff.min()) == (-0.5, 0.5, -0.5)


def test_layers_by_score():
    table = pd.DataFrame(dict(layer=list("abcd"), stressor="combined", S_diff=[0.3, -0.2, 0.1, 0.0]))
    table["n_total"] = [100, 200, 300, 400]
    assert to_layers(table, 0.5, "S_diff") == ["b", "d"] and to_layers(table, 0.5, "S_diff", lowest=False) == ["a", "c"]
    for share in (0.0, 0.1, 0.5, 0.8):
        got = to_layers(table, share, "S_diff", "sparsities")
        assert np.isclose(sum(got[k] * n for k, n in zip("abcd", table.n_total)), 1000 * share)
        assert got["a"] >= got["c"] >= got["d"] >= got["b"] == 0 and max(got.values()) <= 1
    with pytest.raises(ValueError, match="at most 0.800"):
        to_layers(table, 0.9, "S_diff", "sparsities")
    with pytest.raises(ValueError, match="several rows a layer"):
        to_layers(pd.concat([table, table]), 0.5, "S_diff")


@pytest.mark.parametrize(
    "whole, kind", [((10.0, 9.0), "clean accuracy is 10.0"), ((90.0, 9.0), "attacked accuracy is 9.0")]
)
def test_networks_at_chance_get_no_score(whole, kind):
    with pytest.raises(ValueError, match=kind):
        filter_scores(a_map(curves(), whole=whole))


def test_scores_of_a_real_map(small):
    rows = filter_map(small, images(20), thresholds=5, eps=0.02, filters=["high_pass", "random_high_pass"])
    worth = rows.assign(accuracy=rows.accuracy.where(rows.stressor != "unfiltered", 50.0))
    table = filter_scores(worth, ["high_pass"])
    assert list(table.layer.unique()) == ["0", "4"] and np.allclose(table.S_diff, table.S_adv - table.S_clean)
    assert table.filter(like="S_").notna().all(axis=None)


def test_squeezenet_refuses_images_of_which_its_poolings_leave_nothing():
    with pytest.raises(
        ValueError, match="`data` must have at least 17 pixels a side for SqueezeNet, got 8: take size=28"
    ):
        build("squeezenet", load("digits"))
    assert build("squeezenet", load("digits", size=17, n_train=10, n_test=10), 8).eval()(
        torch.rand(1, 1, 17, 17)
    ).shape == (1, 10)
