"Training on attacks: the images stay where they may be, a fit goes on exactly where it was cut off, and what cannot work is named."

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlit.adversarial_training import (
    AdversarialTraining,
    FastTraining,
    FreeTraining,
    GradientRegularisation,
    LearningRate,
    OverfittingMonitor,
    Replayed,
    Trades,
    training_cost,
)
from robustlit.attacks import PGD, attack_images
from robustlit.data import Batches, as_images, load
from robustlit.dropen.adversarial_training import MagnitudeTraining
from robustlit.dropen.gradient_penalties import input_gradients, report_rate
from robustlit.dropen.training_methods import attack_radius, training_size
from robustlit.training import Callback, Checkpoint, Learner, StopFit, set_seed
from robustlit.zoo import find_network, load_network

DIGITS = load("digits")


@pytest.fixture(autouse=True)
def dice():
    torch.manual_seed(0)


X, Y = as_images(DIGITS.x_train[:40]), DIGITS.y_train[:40]
WAYS = dict(
    madry=lambda: AdversarialTraining(0.1, steps=3),
    as_is=lambda: AdversarialTraining(0.1, steps=2, mode="as_is", warmup=0.5),
    fast=lambda: FastTraining(0.1),
    free=lambda: FreeTraining(0.1),
    trades=lambda: Trades(0.1, steps=2),
    gradient=lambda: GradientRegularisation(0.1),
)


def network(*layers):
    set_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), *layers, nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 10))


def batches(replays=1, n=120):
    given = Batches(DIGITS.x_train[:n], DIGITS.y_train[:n], 40, generator=set_seed(1))
    return given if replays == 1 else Replayed(given, replays)


def fitted(*callbacks, net=None, epochs=2, lr=0.01, on=None):
    net = network() if net is None else net
    on = batches(2 if any(isinstance(cb, FreeTraining) for cb in callbacks) else 1) if on is None else on
    Learner(net, torch.optim.Adam(net.parameters(), lr=lr), callbacks).fit(epochs, on)
    return net


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values()))


class Clean(Callback):
    order = -1

    def before_batch(self, learn):
        self.x = learn.xb.clone()


class Shown(Callback):
    "What the network is trained on, beside the clean batch."

    order = 30

    def __init__(self):
        self.clean, self.rows = Clean(), []

    def before_batch(self, learn):
        self.rows.append((self.clean.x, learn.xb.detach().clone()))


class StopAfter(Callback):
    order = 95

    def __init__(self, epochs):
        self.epochs = epochs

    def after_epoch(self, learn):
        if learn.epoch == self.epochs:
            raise StopFit


# Where the images are


@pytest.mark.parametrize("name", ["madry", "as_is", "fast", "free"])
def test_images_stay_in_the_ball_and_are_images(name):
    shown = Shown()
    fitted(WAYS[name](), shown, shown.clean)
    far = [(a - x).abs().max().item() for x, a in shown.rows]
    assert max(far) <= 0.1 + 1e-6 and max(far) > 0.09
    assert all(a.min() >= 0 and a.max() <= 1 for _, a in shown.rows)


def test_trades_images_stay_in_the_ball_and_the_batch_is_clean():
    shown, trades = Shown(), Trades(0.1, steps=2)
    fitted(trades, shown, shown.clean)
    assert all(torch.equal(x, a) for x, a in shown.rows)
    x, moved = shown.rows[-1][0], trades.x_adv
    assert 0.09 < (moved - x).abs().max() <= 0.1 + 1e-6 and moved.min() >= 0 and moved.max() <= 1


def test_an_euclidean_ball():
    shown = Shown()
    fitted(AdversarialTraining(1.5, norm="l2", steps=3), shown, shown.clean)
    far = torch.cat([(a - x).flatten(1).norm(dim=1) for x, a in shown.rows])
    assert 0.5 < far.max() <= 1.5 + 1e-5


def test_the_radius_grows_with_the_share_of_the_fit_whatever_its_length():
    def largest(epochs):
        shown = Shown()
        fitted(AdversarialTraining(0.2, steps=3, warmup=0.5), shown, shown.clean, epochs=epochs)
        return [(a - x).abs().max().item() for x, a in shown.rows]

    short, long = largest(2), largest(4)
    assert short == pytest.approx([0.2 / 6, 0.1, 0.2 * 5 / 6, 0.2, 0.2, 0.2], abs=1e-3)
    assert long == pytest.approx([0.2 * k / 12 for k in (1, 3, 5, 7, 9, 11)] + [0.2] * 6, abs=1e-3)


def test_learning_rates_scale_with_the_epochs():
    class Rates(Callback):
        order, seen = 6, []

        def before_batch(self, learn):
            self.seen.append(learn.opt.param_groups[0]["lr"])

    for shape, want in dict(
        thirds=[1.0] * 3 + [0.1] * 3 + [0.01] * 3,
        late=[1.0] * 6 + [0.1] * 3,
        triangle=[1 / 9, 3 / 9, 5 / 9, 7 / 9, 1.0, 7 / 9, 5 / 9, 3 / 9, 1 / 9],
        constant=[1.0] * 9,
    ).items():
        rates = Rates()
        rates.seen = []
        fitted(LearningRate(shape), rates, epochs=3, lr=1.0)
        assert rates.seen == pytest.approx(want), shape


def test_batches_whose_number_is_not_known_go_by_epochs():
    class Stream:
        def __iter__(self):
            return iter([(X, Y)] * 3)

    shown = Shown()
    fitted(AdversarialTraining(0.2, steps=2, warmup=1.0), shown, shown.clean, on=Stream(), epochs=2)
    far = [(a - x).abs().max().item() for x, a in shown.rows]
    assert far == pytest.approx([0.0] * 3 + [0.1] * 3, abs=1e-3)


# What is computed


def test_madry_is_the_loop_that_everyone_knows():
    def plain(net):
        opt, on = torch.optim.Adam(net.parameters(), lr=0.01), batches()
        for _ in range(2):
            for xb, yb in on:
                a = attack_images(net, xb, yb, 0.1, PGD(3, relative_step=0.5), early_stop=False).x
                net.train()
                opt.zero_grad()
                F.cross_entropy(net(a), yb).backward()
                opt.step()
        return net

    assert same(plain(network()), fitted(AdversarialTraining(0.1, steps=3, relative_step=0.5)))


@pytest.mark.parametrize("way", [Trades(0.2, beta=0), GradientRegularisation(0)], ids=["trades", "gradient"])
def test_at_weight_zero_it_is_direct_training_bit_for_bit(way):
    assert same(fitted(way), fitted())


def test_trades_loss_is_its_equation():
    net = network().eval()
    trades, losses = Trades(0.1, beta=6, steps=2), []

    class Kept(Callback):
        order = 30

        def after_loss(self, learn):
            losses.append(learn.loss.item())
            f, g = (learn.model.eval()(v).log_softmax(1) for v in (learn.xb, trades.x_adv))
            learn.model.train()
            kl = (f.exp() * (f - g)).sum(1).mean()
            losses.append((F.cross_entropy(f, learn.yb) + 6 * kl).item())

    net[3].p = 0.0
    fitted(trades, Kept(), net=net, epochs=1, on=[(X, Y)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_trades_attack_raises_the_divergence_above_noise():
    net, trades = fitted(), Trades(0.1, beta=1e-6, steps=5)
    fitted(trades, net=net, epochs=1, on=[(X, Y)], lr=0.0)
    f = net.eval()(X).log_softmax(1)
    kl = lambda a: F.kl_div(net(a).log_softmax(1), f, log_target=True, reduction="batchmean")
    noise = (X + 0.1 * (torch.rand_like(X) - 0.5).sign()).clamp(0, 1)
    assert kl(trades.x_adv) > 2 * kl(noise)


def test_the_gradient_penalty_and_its_slope_are_those_of_finite_differences():
    net, x, y = network().double(), X[:5].double(), Y[:5]
    net[3].p = 0.0
    for p in net.parameters():
        p.data.mul_(2)

    def loss():
        a = x.clone().requires_grad_()
        each = F.cross_entropy(net(a), y, reduction="none")
        (g,) = torch.autograd.grad(each.sum(), a)
        return each.mean().item() + 0.7 * g.flatten(1).square().sum(1).mean().item()

    class Slope(Callback):
        order = 30

        def after_backward(self, learn):
            self.loss, self.g = learn.loss.item(), learn.model[1].weight.grad.clone()

    slope, before = Slope(), loss()
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    Learner(net, opt, [GradientRegularisation(0.7), slope]).fit(1, [(x, y)])
    assert slope.loss == pytest.approx(before, rel=1e-9)
    for i, j in [(0, 10), (3, 20), (7, 42)]:
        at, ends = net[1].weight.data[i, j].item(), []
        for step in (1e-6, -1e-6):
            net[1].weight.data[i, j] = at + step
            ends.append(loss())
        net[1].weight.data[i, j] = at
        assert slope.g[i, j].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_the_penalty_does_not_depend_on_the_batch_size():
    found = []
    for n in (10, 40):
        way = GradientRegularisation(1.0)
        net = network().eval()
        net[3].p = 0.0
        opt = torch.optim.SGD(net.parameters(), lr=0.0)
        Learner(net, opt, [way]).fit(1, [(X[:10].repeat(n // 10, 1, 1, 1), Y[:10].repeat(n // 10))])
        found.append(way.penalty)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_free_training_replays_and_carries_its_perturbation_over():
    shown, free = Shown(), FreeTraining(0.1)
    fitted(free, shown, shown.clean, epochs=1, on=Replayed([(X, Y), (X[:15], Y[:15])], 3))
    assert len(shown.rows) == 6 and len(free.delta) == 40
    delta = [(a - x).abs().max().item() for x, a in shown.rows]
    assert delta[0] == 0 and all(d > 0.09 for d in delta[1:])
    assert free.delta.abs().max() <= 0.1 and set(free.delta.unique().tolist()) <= {
        *torch.tensor([-0.1, 0, 0.1]).tolist()
    }


def test_in_place_rectifiers_work():
    for way in WAYS.values():
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(108, 10))
        before = copy.deepcopy(net)
        fitted(way(), net=net, epochs=1)
        assert not same(before, net)


# Batch norm, modes, chance

PASSES = dict(madry=1, as_is=1, fast=1, free=2, trades=2, gradient=1)


@pytest.mark.parametrize("name", WAYS)
def test_batch_norm_counts_the_passes_that_are_documented(name):
    net = fitted(WAYS[name](), net=network(nn.BatchNorm1d(24)), epochs=1, on=batches(2 if name == "free" else 1))
    assert int(net[2].num_batches_tracked) == 3 * PASSES[name]


def test_batch_norm_statistics_are_of_the_adversarial_batch():
    net, shown = nn.Sequential(nn.BatchNorm2d(1, momentum=None), nn.Flatten(), nn.Linear(64, 10)), Shown()
    fitted(AdversarialTraining(0.3, steps=3), shown, shown.clean, net=net, on=[(X, Y)], epochs=1)
    ((x, a),) = shown.rows
    assert net[0].running_mean.item() == pytest.approx(a.mean().item(), abs=1e-6)
    assert abs(net[0].running_mean.item() - x.mean().item()) > 1e-3


def test_the_mode_of_the_attack():
    modes = []

    class Watch(nn.Module):
        def forward(self, x):
            modes.append(self.training)
            return x

    fitted(AdversarialTraining(0.1, steps=2), net=nn.Sequential(Watch(), network()), on=[(X, Y)], epochs=1)
    assert modes == [False] * 4 + [True]  # the look, two steps, the verdict; then training
    modes.clear()
    fitted(
        AdversarialTraining(0.1, steps=2, mode="as_is"), net=nn.Sequential(Watch(), network()), on=[(X, Y)], epochs=1
    )
    assert modes == [False] + [True] * 4


@pytest.mark.parametrize("name", WAYS)
def test_a_fit_that_was_cut_off_goes_on_exactly(name, tmp_path):
    net = lambda: network(nn.BatchNorm1d(24))
    on = lambda: batches(2 if name == "free" else 1)
    rates = lambda: LearningRate("thirds")
    whole = fitted(WAYS[name](), rates(), net=net(), on=on(), epochs=4)
    fitted(WAYS[name](), rates(), Checkpoint(tmp_path / "a.pt"), StopAfter(2), net=net(), on=on(), epochs=4)
    again = WAYS[name](), rates(), Checkpoint(tmp_path / "a.pt"), StopAfter(9)
    assert same(whole, fitted(*again, net=net(), on=on(), epochs=4))


def test_three_lines_for_a_network_of_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 20), nn.Linear(20, 10)

        def forward(self, x):
            return self.b(self.a(x.flatten(1)).tanh())

    set_seed(0)
    net = Own()
    learn = Learner(net, torch.optim.Adam(net.parameters(), 0.02), [AdversarialTraining(0.1, steps=3)])
    learn.fit(8, Batches(DIGITS.x_train, DIGITS.y_train, 50, generator=set_seed(0)))
    direct = fitted(net=Own(), epochs=8, lr=0.02, on=Batches(DIGITS.x_train, DIGITS.y_train, 50, generator=set_seed(0)))
    x, y = as_images(DIGITS.x_test), DIGITS.y_test
    left = [float(attack_images(n, x, y, 0.1, "pgd", steps=10).correct.float().mean()) for n in (net, direct)]
    assert left[0] > left[1] + 0.1


def test_two_callbacks_go_together_and_an_attack_of_ones_own_is_taken():
    towards_grey = lambda model, x, y, eps: x + (0.5 - x).clamp(-eps, eps)
    shown = Shown()
    fitted(AdversarialTraining(0.1, towards_grey), GradientRegularisation(0.1), shown, shown.clean, epochs=1)
    assert all(torch.allclose(a, x + (0.5 - x).clamp(-0.1, 0.1), atol=1e-6) for x, a in shown.rows)


# Catastrophic overfitting


def convolutional():
    set_seed(0)
    layers = nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 48), nn.ReLU(), nn.Linear(48, 10)
    return nn.Sequential(*layers)


def watched(eps, epochs=10, **options):
    fast, net = FastTraining(eps, **options), convolutional()
    on = Batches(DIGITS.x_train, DIGITS.y_train, 50, generator=set_seed(1))
    learn = Learner(net, torch.optim.Adam(net.parameters(), lr=0.005), [fast])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn.fit(epochs, on)
    return learn, fast, [str(w.message) for w in said]


PLANTED = dict(relative_step=1.0, random_start=False)  # the step that always ends in a corner of the ball


def test_the_monitor_fires_where_one_step_is_learned_and_pgd_is_not():
    learn, fast, said = watched(0.4, **PLANTED)
    rows = fast.monitor.rows
    assert learn.epoch < 10 and [r["collapsed"] for r in rows] == [False] * (len(rows) - 1) + [True]
    assert rows[-1]["pgd"] < rows[-1]["fgsm"] / 2 and len(said) == 1
    assert f"catastrophic overfitting in epoch {len(rows)}" in said[0] and "training stops" in said[0]
    before, *_ = watched(0.4, epochs=len(rows) - 1, **PLANTED)
    assert same(before.model, learn.model), "the weights are those before the collapse"


def test_the_monitor_is_silent_where_nothing_collapses_and_changes_nothing():
    learn, fast, said = watched(0.2, epochs=8)
    assert not said and learn.epoch == 8 and not fast.monitor.frame["collapsed"].any()
    net, plain = convolutional(), AdversarialTraining(0.2, PGD(1, relative_step=1.25))
    on = Batches(DIGITS.x_train, DIGITS.y_train, 50, generator=set_seed(1))
    Learner(net, torch.optim.Adam(net.parameters(), lr=0.005), [plain]).fit(8, on)
    assert same(net, learn.model)


def test_the_monitor_halves_the_step_or_only_warns():
    learn, fast, said = watched(0.4, on_collapse="halve", **PLANTED)
    collapses = sum(r["collapsed"] for r in fast.monitor.rows)
    assert learn.epoch == 10 and collapses == len(said) >= 1
    assert fast.attack.relative_step == 1.0 / 2**collapses and "steps are now 0.5 eps long" in said[0]
    learn, fast, said = watched(0.4, on_collapse="go_on", **PLANTED)
    assert learn.epoch == 10 and fast.attack.relative_step == 1.0
    assert said and "training goes on as it is" in said[0]


def test_the_monitor_stays_within_the_radius_that_training_has_reached():
    _, fast, _ = watched(0.2, epochs=4, warmup=1.0)
    assert [r["eps"] for r in fast.monitor.rows] == pytest.approx([0.05, 0.1, 0.15, 0.2], abs=0.002)


def test_the_monitor_looks_at_a_hundred_images_whatever_the_batches():
    counted = []

    class Count(OverfittingMonitor):
        def after_epoch(self, learn):
            super().after_epoch(learn)
            counted.append([len(x) for x, _ in self.seen])

    fitted(Count(0.1), epochs=1)
    fitted(Count(0.1, images=30), epochs=1)
    assert counted == [[40, 40, 40], [40]]


def test_halved_steps_and_the_table_survive_a_checkpoint(tmp_path):
    fast = FastTraining(0.2)
    fast.halve()
    fast.monitor.rows.append(dict(epoch=1, fgsm=50.0, pgd=40.0, collapsed=False))
    again = FastTraining(0.2)
    again.load_state_dict(fast.state_dict())
    assert again.attack.relative_step == 0.625 and again.monitor.rows == fast.monitor.rows
    long = AdversarialTraining(0.2, step_size=0.1)
    assert long.halve() == "0.05"


def test_the_monitor_stands_beside_other_trainings():
    monitor = OverfittingMonitor(0.1, "halve", steps=3)
    fitted(AdversarialTraining(0.1, steps=2), monitor)
    assert monitor.frame.columns.tolist() == ["epoch", "eps", "fgsm", "pgd", "collapsed"] and len(monitor.frame) == 2
    with pytest.raises(ValueError, match="`on_collapse` 'halve' needs an AdversarialTraining"):
        fitted(OverfittingMonitor(0.1, "halve"))
    with pytest.raises(ValueError, match="no step that could be halved"):
        AdversarialTraining(0.1, "random_sign").halve()


# Refusals

ALL = [lambda **k: AdversarialTraining(**k), lambda **k: FastTraining(**k), lambda **k: FreeTraining(**k)]
ALL += [lambda **k: Trades(**k), lambda **k: OverfittingMonitor(**k)]


@pytest.mark.parametrize("way", ALL)
@pytest.mark.parametrize("eps", [-0.1, 8, float("nan"), "0.1"])
def test_a_radius_that_cannot_be_is_refused(way, eps):
    with pytest.raises((TypeError, ValueError), match="`eps` must be"):
        way(eps=eps)


def test_steps_below_one_and_unknown_options_are_refused():
    for way in (AdversarialTraining, Trades, OverfittingMonitor):
        with pytest.raises(ValueError, match="`steps` must be a whole number >= 1, got 0"):
            way(0.1, steps=0)
    with pytest.raises(ValueError, match="option of pgd"):
        AdversarialTraining(0.1, stepsize=0.1)
    with pytest.raises(ValueError, match="`beta` must be"):
        Trades(0.1, beta=-1)
    with pytest.raises(ValueError, match="`weight` must be"):
        GradientRegularisation(-1)
    with pytest.raises(ValueError, match=r"fit\(epochs, Replayed\(batches, 8\)\)"):
        fitted(FreeTraining(0.1), on=batches())


BAD = {
    "probabilities": (
        lambda: nn.Sequential(network(), nn.Softmax(1)),
        X,
        Y,
        "`model` must give logits, got probabilities",
    ),
    "labels": (network, X, Y + 5, r"`y` must hold labels from 0 to 9"),
    "range": (network, 255 * X, Y, r"`x` must lie in \[0, 1\]"),
    "nan": (network, X * float("nan"), Y, "`x` must be finite, got NaN"),
    "few": (network, X, Y[:-1], "`y` must hold 40 labels"),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_trained_is_refused_at_its_step(name, bad):
    make, x, y, told = BAD[bad]
    on = [(x, y)] * 2 if name != "free" else Replayed([(x, y)], 2)
    net = make()
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=f"at step 1 of epoch 1: {told}"):
        fitted(WAYS[name](), net=net, on=on)
    assert same(before, net)


@pytest.mark.parametrize("name", WAYS)
def test_a_bad_batch_later_is_named_by_its_step(name):
    good = [(X, Y), (X[:10], Y[:10] + 5)]
    with pytest.raises(ValueError, match="at step (2|3) of epoch 1: `y` must hold labels"):
        fitted(WAYS[name](), on=good if name != "free" else Replayed(good, 2))


@pytest.mark.parametrize("name", WAYS)
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_weights(name):
    class Breaks(Callback):
        order, step, kept = 40, 0, None

        def after_loss(self, learn):
            self.step += 1
            if self.step == 2:
                self.kept = copy.deepcopy(learn.model)
                learn.loss = learn.loss * float("nan")

    breaks, net = Breaks(), network()
    with pytest.raises(FloatingPointError, match="at step 2 of epoch 1"):
        fitted(WAYS[name](), breaks, net=net)
    assert same(breaks.kept, net)


def test_a_network_that_breaks_down_is_named_by_its_step():
    class Bursts(Callback):
        order = 90

        def after_step(self, learn):
            with torch.no_grad():
                learn.model[1].weight.fill_(float("inf"))

    for name in ("madry", "trades", "fast"):
        with pytest.raises((ValueError, FloatingPointError), match="at step 2 of epoch 1: .*NaN or infinity"):
            fitted(WAYS[name](), Bursts())


# What a step costs


def test_costs_are_counted():
    net = convolutional()
    before = copy.deepcopy(net)
    ways = {"direct": list} | {k: lambda way=way: [way()] for k, way in WAYS.items()}
    cost = training_cost(net, X, Y, ways, rounds=1)
    assert same(before, net) and not net._forward_pre_hooks
    passes = dict(direct=1, madry=3 + 1 + 1, as_is=2 + 1 + 1, fast=1 + 1 + 1, free=1, trades=1 + 2 + 1 + 2, gradient=1)
    assert cost["passes"].to_dict() == passes
    forwards = cost["forwards"]
    assert 2.5 < forwards["direct"] < 3 and forwards["free"] == pytest.approx(3, abs=0.1)
    assert forwards["madry"] == pytest.approx(forwards["direct"] + 3 * 2 + 1, abs=0.2)
    assert forwards["gradient"] > 1.8 * forwards["direct"]
    assert (cost["milliseconds"] > 0).all() and cost["megabytes"].idxmin() in ("direct", "free")


# The report's own "PGD training"


def test_half_of_the_batch_is_clean_and_half_is_steeper_within_the_box_of_the_epoch():
    shown, seen = Shown(), []

    class Slopes(Callback):
        order = 31

        def before_batch(self, learn):
            (x, a), half = shown.rows[-1], len(learn.xb) // 2
            lengths = [input_gradients(learn.model.eval(), v[half:], learn.yb[half:], graph=False) for v in (x, a)]
            learn.model.train()
            seen.append([g.square().sum().item() for g in lengths])

    fitted(MagnitudeTraining(0.1, 0.2), shown, shown.clean, Slopes(), epochs=4, net=convolutional())
    for k, (x, a) in enumerate(shown.rows):
        half, eps = len(x) // 2, 0.1 + 0.1 * (k // 3) / 4
        assert torch.equal(x[:half], a[:half]) and a.min() >= 0 and a.max() <= 1
        assert 0.9 * eps < (a[half:] - x[half:]).abs().max() <= eps + 1e-6
    clean, attacked = map(sum, zip(*seen))
    assert attacked > 1.2 * clean


def test_the_report_attacks_the_network_as_it_trains_and_leaves_its_statistics():
    modes = []

    class Watch(nn.Module):
        def forward(self, x):
            modes.append(self.training)
            return x

    for mode, trains in (("as_is", True), ("eval", False)):
        modes.clear()
        net = nn.Sequential(Watch(), network(nn.BatchNorm1d(24)))
        fitted(MagnitudeTraining(0.1, steps=2, mode=mode), net=net, on=[(X, Y)], epochs=1)
        assert modes == [False, trains, trains, True]
        assert int(net[1][2].num_batches_tracked) == 1


def test_the_reports_training_is_cut_off_and_refuses_as_the_others(tmp_path):
    way = lambda: MagnitudeTraining(0.1, steps=2)
    whole = fitted(way(), epochs=4)
    fitted(way(), Checkpoint(tmp_path / "a.pt"), StopAfter(2), epochs=4)
    assert same(whole, fitted(way(), Checkpoint(tmp_path / "a.pt"), StopAfter(9), epochs=4))
    with pytest.raises(ValueError, match="at step 1 of epoch 1: `batches` must hold at least 2 images each"):
        fitted(way(), on=[(X[:1], Y[:1])])
    for make, x, y, told in BAD.values():
        with pytest.raises(ValueError, match=f"at step 1 of epoch 1: {told}"):
            fitted(way(), net=make(), on=[(x, y)])


def test_the_reports_schedule_lasts_its_epochs_at_any_length():
    rates = [report_rate((e + 0.5) / 120) for e in range(120)]
    assert [sum(r == pytest.approx(v) for r in rates) for v in (1, 0.1, 0.01)] == [41, 40, 39]


def test_sizes_and_radii_are_the_reports():
    assert (attack_radius("mnist"), attack_radius("cifar10")) == (pytest.approx(0.75 * 0.3081), 0.025)
    paper = training_size("paper", "cifar10")
    assert (paper["n_train"], paper["epochs"], paper["batch_size"]) == (None, 120, 1000)
    assert training_size("cpu", "mnist")["n_train"] == 10_000 and training_size("cpu", "cifar10")["n_train"] == 8_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "All networks of this module on digits at the smoke size."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        names = ("direct", "report_pgd", "madry", "fast", "free", "trades", "gradient_regularisation")
        return {n: load_network(f"dropen/{n}", data="digits", profile="smoke") for n in names}


def test_the_networks_of_the_zoo_differ_and_are_children_of_the_direct_one(made):
    weights = [m.fc2.weight for m in made.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert all(find_network(f"dropen/{n}").parent == (None if n == "direct" else "dropen/direct") for n in made)
    assert all(not m.training and m.conv1.weight.shape == (8, 1, 5, 5) for m in made.values())


def test_a_network_without_a_method_is_the_direct_one(made, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    none = load_network("dropen/gradient_regularisation", data="digits", profile="smoke", weight=0)
    assert same(made["direct"], none)
    assert same(made["direct"], load_network("dropen/trades", data="digits", profile="smoke", beta=0))
    assert not same(made["direct"], load_network("dropen/direct", 1, data="digits", profile="smoke"))
