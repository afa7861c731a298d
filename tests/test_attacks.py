"Attacks: inside the ball, exact where a closed form exists, monotone, leaving no trace, equal to other libraries."

import copy
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlit.attacks import (
    APGD,
    ATTACKS,
    PGD,
    Ball,
    RandomSign,
    Square,
    Threat,
    Transfer,
    UniformNoise,
    accuracy_by_eps,
    attack_curve,
    attack_images,
    attack_loss,
    image_uniform,
    margin_of,
    random_start,
    worst_images,
)
from robustlit.data import Batches, as_images, load
from robustlit.intake import ModelError
from robustlit.training import Learner, set_seed

WHITE = ("fgsm", "pgd", "bim", "mim", "apgd_ce", "apgd_dlr", "apgd_t")
CHEAP = dict(apgd_ce=dict(steps=10), apgd_dlr=dict(steps=10), apgd_t=dict(steps=5), square=dict(queries=40))
CHEAP["pgd"] = dict(steps=10)
CHEAP |= dict(worst_case=dict(steps=5, targets=2, fab_steps=2, queries=20), fab=dict(steps=5), fab_t=dict(steps=3))
CHEAP |= dict(square_l2=dict(queries=40), pgd_kl=dict(steps=10), apgd_kl=dict(steps=10))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    set_seed(0)
    data = load("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
    Learner(net, torch.optim.Adam(net.parameters(), lr=0.01)).fit(10, Batches(data.x_train, data.y_train, 100))
    return net.eval(), as_images(data.x_test[:60]), data.y_test[:60]


@pytest.fixture
def linear():
    "Logits W x + b on images whose pixels stay far from 0 and 1, so the distance to the decision has a closed form."
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    x = 0.4 + 0.2 * torch.rand(40, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        return net, x, net(x).argmax(1), net(x).diff(dim=1).abs()[:, 0], net[1].weight.diff(dim=0)[0]


def ball_holds(found, x, eps, norm="linf"):
    move = (found - x).flatten(1)
    size = move.abs().amax(1) if norm == "linf" else move.norm(dim=1)
    return bool((size <= eps + 1e-6).all() and found.min() >= 0 and found.max() <= 1)


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ("autoattack", "transfer")])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_attack_stays_in_the_ball_and_in_the_picture(trained, name, norm):
    net, x, y = trained
    if (name, norm) in (("square", "l2"), ("square_l2", "linf")):
        with pytest.raises(ValueError, match="norm"):
            attack_images(net, x, y, 0.1, name, norm=norm)
        return
    eps = 0.15 if norm == "linf" else 1.0
    for early_stop in (True, False):
        found = attack_images(
            net, x, y, eps, name, generator(), norm=norm, early_stop=early_stop, **CHEAP.get(name, {})
        )
        assert ball_holds(found.x, x, eps, norm)
        assert not torch.equal(found.x, x)
        with torch.no_grad():
            z = net(found.x)
        assert torch.equal(found.correct, z.argmax(1) == y)
        assert torch.allclose(found.margin, margin_of(z, y), atol=1e-5)
        assert torch.allclose(found.loss, F.cross_entropy(z, y, reduction="none"), atol=1e-5)


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ("autoattack", "transfer", "square_l2")])
def test_no_room_means_the_clean_answer(trained, name):
    net, x, y = trained
    rows = attack_curve(net, x, y, [0.0], name, **CHEAP.get(name, {}))
    with torch.no_grad():
        assert rows["correct"].tolist() == (net(x).argmax(1) == y).tolist()
    assert not rows["broken_at_smaller_eps"].any() and rows["gradients"].sum() == 0


def test_fgsm_is_the_signed_step_and_pgd_of_one_step_is_fgsm(trained):
    net, x, y = trained
    a = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net(a), y), a)
    by_hand = (x + 0.1 * g.sign()).clamp(0, 1)
    unclipped = attack_images(net, x, y, 0.1, "fgsm", early_stop=False, clip=False).x
    assert torch.allclose(attack_images(net, x, y, 0.1, "fgsm", early_stop=False).x, by_hand, atol=1e-7)
    assert torch.allclose(unclipped, x + 0.1 * g.sign(), atol=1e-7) and unclipped.min() < 0
    one = attack_images(net, x, y, 0.1, "pgd", steps=1, random_start=False, early_stop=False).x
    assert torch.allclose(one, by_hand, atol=1e-7)


def test_the_seeds_protocol_is_early_stop(trained):
    "Only images that are right when clean are attacked; the wrong ones count as errors."
    net, x, y = trained
    wrong = y.clone()
    wrong[:20] = (y[:20] + 1) % 10
    with torch.no_grad():
        right = net(x).argmax(1) == wrong
    found = attack_images(net, x, wrong, 0.1, "fgsm", loss="nll_of_logits")
    assert torch.equal(found.x[~right], x[~right]) and not found.correct[~right].any()
    a = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(-net(a).gather(1, wrong[:, None]).sum(), a)
    assert torch.allclose(found.x[right], (x + 0.1 * g.sign()).clamp(0, 1)[right], atol=1e-7)


@pytest.mark.parametrize("name", WHITE[:-2])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_network_the_smallest_breaking_eps_is_exact(linear, name, norm):
    net, x, y, margin, w = linear
    smallest = margin / (w.abs().sum() if norm == "linf" else w.norm())
    eligible = smallest < (0.3 if norm == "linf" else 1.0)
    assert eligible.sum() >= 5
    options = dict(steps=60, relative_step=0.2) if name == "pgd" else CHEAP.get(name, {})
    for i in eligible.nonzero()[:5, 0].tolist():
        for factor, correct in ((0.999, True), (1.001, False)):
            found = attack_images(net, x[[i]], y[[i]], factor * smallest[i].item(), name, norm=norm, **options)
            assert found.correct.item() == correct


def test_pgd_on_a_linear_network_equals_fgsm(linear):
    net, x, y, _, _ = linear
    options = dict(early_stop=False)
    one = attack_images(net, x, y, 0.1, "fgsm", **options).x
    assert torch.allclose(attack_images(net, x, y, 0.1, "pgd", steps=7, random_start=False, **options).x, one)
    assert torch.allclose(attack_images(net, x, y, 0.1, "bim", **options).x, one)


def saturated():
    "Class 1 falls with the first pixel while the second is low, and wins by it once the second has risen."

    class Net(nn.Module):
        def forward(self, x):
            p, q = x.flatten(1)[:, 0], x.flatten(1)[:, 1]
            one = 4 * q + 40 * p * F.relu(q - 0.25) - 2 * p * F.relu(0.25 - q)
            return torch.stack([torch.full_like(one, 3.0), one], 1)

    return Net(), torch.zeros(1, 1, 1, 2), torch.zeros(1, dtype=torch.int64)


class ClipInside(nn.Module):
    "The slip: the clip is part of what is differentiated."

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.clamp(0, 1))


def test_saturated_pixels_keep_their_gradient():
    net, x, y = saturated()
    options = dict(steps=40, step_size=0.02, random_start=False)
    good = attack_images(net, x, y, 0.4, "pgd", **options)
    trap = attack_images(ClipInside(net), x, y, 0.4, "pgd", clip=False, **options)
    assert not good.correct.item()
    assert trap.correct.item()


def test_saturated_pixels_on_digits(trained):
    net, x, y = trained
    good = attack_images(net, x, y, 0.1, "pgd", generator())
    trap = attack_images(ClipInside(net), x, y, 0.1, "pgd", generator(), clip=False)
    assert good.correct.sum() < trap.correct.sum()


def test_apgd_reaches_a_higher_loss_than_pgd_on_the_same_budget(trained):
    net, x, y = trained
    for eps in (0.05, 0.1, 0.2):
        best = attack_images(net, x, y, eps, "apgd_ce", generator(), steps=40, early_stop=False)
        for step in (0.025, 0.0625, 0.1, 0.25):
            found = attack_images(net, x, y, eps, "pgd", generator(), steps=40, relative_step=step, early_stop=False)
            assert best.loss.mean() >= found.loss.mean() - 1e-3
            assert best.gradients.max() == found.gradients.max() == 40


def test_apgd_follows_the_published_rule(trained):
    "Against a transcription that treats one image at a time, with lists and no tensors of state."
    net, x, y = copy.deepcopy(trained[0]).double(), trained[1].double(), trained[2]
    N, eps = 30, 0.08
    assert APGD(N).checkpoints == [7, 13, 18, 21, 24, 27, 28, 30]
    got = attack_images(net, x[:8], y[:8], eps, APGD(N), generator(3), early_stop=False)
    seed = int(torch.randint(2**62, (), generator=generator(3)))

    def look(a, label):
        a = a.detach().requires_grad_()
        z = net(a)
        value = F.cross_entropy(z, label)
        worst.append((z.argmax(1).item() != label.item(), value.item()))
        return value.item(), torch.autograd.grad(value, a)[0]

    for i in range(8):
        image, label = x[[i]], y[[i]]
        lo, hi = (image - eps).clamp(0, 1), (image + eps).clamp(0, 1)
        a = old = random_start(Ball(image, eps), torch.tensor([i]), seed, 0)
        eta, cut, worst, done = 2 * eps, True, [], 0
        v, g = look(a, label)
        best, best_a, best_g, last = v, a, g, v
        rises = 0
        for k in range(1, N + 1):
            z = torch.clamp(a + eta * g.sign(), lo, hi)
            new = z if k == 1 else torch.clamp(a + 0.75 * (z - a) + 0.25 * (a - old), lo, hi)
            old, a, before = a, new, v
            v, g = look(a, label)
            rises += v > before
            if v > best:
                best, best_a, best_g = v, a, g
            if k in APGD(N).checkpoints:
                stuck = not cut and last >= best
                cut = rises <= 0.75 * (k - done) or stuck
                last, rises, done = best, 0, k
                if cut:
                    eta, a, g, v = eta / 2, best_a, best_g, best
        broken, loss = max(worst)
        assert got.loss[i].item() == pytest.approx(loss, rel=1e-6) and got.correct[i].item() is not broken


def test_square_asks_for_no_gradient_and_keeps_its_budget(trained):
    net, x, y = trained

    class NoGradient(nn.Module):
        def forward(self, a):
            assert not torch.is_grad_enabled()
            self.calls += 1
            return net(a)

    blind = NoGradient()
    blind.calls = 0
    found = attack_images(blind, x, y, 0.1, "square", generator(), queries=150, early_stop=False)
    assert blind.calls == 150 == found.queries.max() == found.queries.min() and found.gradients.sum() == 0
    early = attack_images(blind, x, y, 0.1, "square", generator(), queries=150)
    assert early.queries.max() <= 150 and early.queries.double().mean() < 150
    control = attack_images(blind, x, y, 0.1, "random_sign", generator())
    assert early.correct.sum() < control.correct.sum()
    at_edges = torch.minimum((found.x - Ball(x, 0.1).lo).abs(), (found.x - Ball(x, 0.1).hi).abs())
    assert at_edges.max() == 0


def test_square_sides_follow_the_schedule():
    written = (1, 10, 11, 51, 201, 501, 1001, 2001, 4001, 8001)
    sides = [25, 25, 18, 13, 9, 6, 4, 3, 2, 1]
    assert [Square(10_000).side(k, 28, 28) for k in written] == sides
    assert [Square(500, rescale=False).side(k, 28, 28) for k in written] == sides
    assert [Square(1000).side(k, 28, 28) for k in (1, 2, 6, 21, 51, 101, 201, 401, 801)] == [
        25,
        18,
        13,
        9,
        6,
        4,
        3,
        2,
        1,
    ]


def test_projections():
    torch.manual_seed(0)
    x, a = torch.rand(20, 3, 5, 5), torch.randn(20, 3, 5, 5)
    assert ball_holds(Ball(x, 0.3).project(a), x, 0.3) and ball_holds(Ball(x, 0.7, "l2").project(a), x, 0.7, "l2")
    free = Ball(x, 0.7, "l2", clip=False)
    assert torch.allclose((free.project(a) - x).flatten(1).norm(dim=1), torch.tensor(0.7))
    inside = x + 0.001 * a
    assert torch.allclose(free.project(inside), inside) and torch.equal(free.direction(torch.zeros_like(x)), 0 * x)
    small = free.direction(1e-30 * a)
    assert torch.allclose(small.flatten(1).norm(dim=1), torch.tensor(1.0))


def test_random_starts_are_uniform_and_belong_to_the_image():
    ids = torch.arange(400)
    u = image_uniform(ids, 5, 0, (300,))
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts - 6000).abs() < 500).all() and 0 <= u.min() and u.max() < 1
    assert torch.corrcoef(u[:20]).triu(1).abs().max() < 0.3 and len(u[:, 0].unique()) > 390
    assert torch.equal(image_uniform(ids[[7, 3]], 5, 0, (300,)), u[[7, 3]])
    assert not torch.equal(image_uniform(ids, 5, 1, (300,)), u) and not torch.equal(image_uniform(ids, 6, 0, (300,)), u)
    middle = torch.full((400, 1, 4, 4), 0.5)
    far = (random_start(Ball(middle, 0.4, "l2"), ids) - 0.5).flatten(1).norm(dim=1) / 0.4
    assert abs((far**16).mean() - 0.5) < 0.06


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_the_rarest_luck_is_finite_too(monkeypatch, dtype, u):
    drawn = lambda ids, seed, draw, shape: torch.full((len(ids), *shape), u)
    monkeypatch.setattr("robustlit.attack_engine.image_uniform", drawn)
    for norm in ("linf", "l2"):
        x = torch.full((2, 1, 3, 3), 0.5, dtype=dtype)
        start = random_start(Ball(x, 0.25, norm), torch.arange(2))
        assert start.dtype == dtype and start.isfinite().all() and ((start - x).abs() <= 0.251).all()


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "square", "uniform_noise"])
def test_an_image_meets_the_same_attack_alone_and_in_company(trained, name):
    net, x, y = trained
    net, x = net.double(), x.double()
    try:
        rows = [
            attack_curve(net, x, y, [0.05, 0.1], name, size, generator(), **CHEAP.get(name, {})) for size in (60, 7)
        ]
        some = attack_curve(net, x, y, [0.1], name, 60, generator(), **CHEAP.get(name, {}))
    finally:
        net.float()
    assert rows[0][["correct", "gradients", "queries"]].equals(rows[1][["correct", "gradients", "queries"]])
    assert (rows[0]["margin"] - rows[1]["margin"]).abs().max() < 1e-6
    alone = rows[0].query("eps == 0.1")["margin"].to_numpy()
    assert abs(alone - some["margin"].to_numpy()).max() < 1e-6


def test_generator_decides(trained):
    net, x, y = trained
    a, b, c = (attack_images(net, x, y, 0.1, "uniform_noise", generator(s)).x for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "square", "uniform_noise"])
def test_restarts_only_break_more(trained, name):
    net, x, y = trained
    for early_stop in (True, False):
        standing = torch.ones(60, dtype=torch.bool)
        for restarts in (1, 2, 5):
            options = CHEAP.get(name, {}) | dict(restarts=restarts, early_stop=early_stop)
            found = attack_images(net, x, y, 0.07, name, generator(), **options)
            assert not (found.correct & ~standing).any()
            standing = found.correct


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ("autoattack", "transfer", "square_l2")])
def test_early_stop_breaks_no_fewer_and_costs_less(trained, name):
    net, x, y = trained
    full, early = (
        attack_images(net, x, y, 0.08, name, generator(), early_stop=e, restarts=2, **CHEAP.get(name, {}))
        for e in (False, True)
    )
    assert not (early.correct & ~full.correct).any()
    assert early.queries.sum() <= full.queries.sum() and early.gradients.sum() <= full.gradients.sum()
    if name not in ("fgsm", "random_sign", "uniform_noise"):
        assert early.queries.sum() < full.queries.sum()


def test_targets_are_reached(trained):
    net, x, y = trained
    target = (y + 1) % 10
    for name in ("pgd", "apgd_ce", "square"):
        options = CHEAP.get(name, {}) if name == "apgd_ce" else {}
        found = attack_images(net, x, y, 0.4, name, generator(), target=target, **options)
        assert torch.equal(found.reached, found.predicted == target) and found.reached.double().mean() > 0.5
    for loss in ("ce", "cw", "dlr", "nll_of_logits"):
        found = attack_images(net, x, y, 0.4, "pgd", generator(), target="runner_up", loss=loss)
        assert found.reached.double().mean() > 0.5
    rows = attack_curve(net, x, y, [0.0, 0.4], target=target, batch_size=25)
    assert rows.groupby("eps")["reached"].sum().is_monotonic_increasing


def test_losses_by_hand():
    z, y, t = torch.tensor([[3.0, 1.0, 0.5, 0.0], [0.0, 2.0, 2.0, 2.0]]), torch.tensor([0, 1]), torch.tensor([2, 0])
    assert margin_of(z, y).tolist() == [2.0, 0.0]
    assert attack_loss(z, y, "cw").tolist() == [-2.0, 0.0]
    assert attack_loss(z, y, "nll_of_logits").tolist() == [-3.0, -2.0]
    assert torch.allclose(attack_loss(z, y, "dlr"), torch.tensor([-0.8, 0.0]))
    assert torch.allclose(attack_loss(z, y, "dlr", t)[0], torch.tensor(-2.5 / 2.75))
    assert torch.equal(attack_loss(z, y, "cw", t), torch.tensor([-2.5, -2.0]))
    assert attack_loss(torch.zeros(1, 4), y[:1], "dlr").isfinite().all()
    assert attack_loss(z, y, lambda z, y, t: z[:, 3]).tolist() == [0.0, 2.0]


class Dice(nn.Module):
    "Right on average, but a fair share of single gradients point the wrong way."

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(16))

    def forward(self, x):
        v = (x.flatten(1) - 0.5) @ self.w + 2.0
        luck = 3 * torch.randn(16)
        v = v + (x.flatten(1) - 0.5) @ luck
        return torch.stack([v, -v], 1)


def test_eot_averages_the_gradient_of_a_random_network():
    torch.manual_seed(0)
    x, y = torch.full((30, 1, 4, 4), 0.5), torch.zeros(30, dtype=torch.int64)
    lost = [(attack_images(Dice(), x, y, 0.1, "fgsm", eot=k, early_stop=False).x - x).mean().item() for k in (1, 200)]
    assert lost[1] < -0.095 and lost[0] > lost[1] + 0.01
    found = attack_images(Dice(), x, y, 0.1, "pgd", steps=3, eot=4, early_stop=False)
    assert found.gradients.unique().tolist() == [12]


def test_transfer(trained):
    net, x, y = trained
    white = attack_images(net, x, y, 0.1, PGD(50, relative_step=0.1), generator(), early_stop=False)
    itself = attack_images(net, x, y, 0.1, Transfer(net, losses=("ce",)), generator(), early_stop=False)
    assert torch.equal(white.correct, itself.correct)
    torch.manual_seed(0)
    others = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2)]
    others[0].train()
    found = attack_images(net, x, y, 0.1, "transfer", generator(), surrogates=others, restarts=2)
    assert found.correct.sum() > itself.correct.sum() and ball_holds(found.x, x, 0.1)
    assert (
        found.queries.max() == 2 * 2 * 3 and others[0].training and all(p.grad is None for p in others[0].parameters())
    )


def test_broken_at_a_smaller_eps_is_a_column_of_its_own():
    class Window(nn.Module):
        "Wrong only between two brightnesses."

        def forward(self, x):
            m = x.mean((1, 2, 3))
            return torch.stack([(m - 0.6).abs(), torch.full_like(m, 0.03)], 1)

    x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    rows = attack_curve(Window(), x, y, [0.3, 0.02, 0.1, 0.2], "fgsm")
    assert rows["eps"].tolist() == [0.02, 0.1, 0.2, 0.3]
    assert rows["correct"].tolist() == [True, False, True, True]
    assert rows["broken_at_smaller_eps"].tolist() == [False, False, True, True]
    table = accuracy_by_eps(rows.assign(net="w"), ["net"])
    assert table["accuracy"].tolist() == [100, 0, 100, 100] and table["accuracy_so_far"].tolist() == [100, 0, 0, 0]


def spy(net):
    modes = [(m.training) for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    parameters = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    return modes, state, parameters


def same(a, b):
    return (
        a[0] == b[0]
        and all(torch.equal(a[1][k], b[1][k]) for k in a[1])
        and all(p == q and (g is h or torch.equal(g, h)) for (p, g), (q, h) in zip(a[2], b[2]))
    )


def marked_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10)).train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    net[4].weight.grad = torch.ones(10, 144)
    return net


@pytest.mark.parametrize("mode", ["eval", "as_is"])
@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ("autoattack", "transfer", "square_l2")])
def test_the_network_is_left_as_it_was(trained, name, mode):
    _, x, y = trained
    net = marked_net()
    if mode == "as_is":
        net[1].train()
    before = spy(net)
    attack_images(net, x, y, 0.1, name, mode=mode, **CHEAP.get(name, {}))
    assert same(before, spy(net))


def test_as_is_attacks_the_training_mode(trained):
    net, x, y = trained
    net.train()
    try:
        torch.manual_seed(0)
        a, b = (attack_images(net, x, y, 0.1, "fgsm", mode="as_is", early_stop=False).x for _ in range(2))
        c, d = (attack_images(net, x, y, 0.1, "fgsm", early_stop=False).x for _ in range(2))
        assert net.training and not torch.equal(a, b) and torch.equal(c, d)
    finally:
        net.eval()


@pytest.mark.parametrize("mode", ["eval", "as_is"])
def test_the_network_is_left_as_it_was_after_an_error(trained, mode):
    _, x, y = trained

    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = marked_net(), 0

        def forward(self, a):
            self.calls += 1
            if self.calls > 3:
                raise OSError("no more")
            return self.net(a)

    net = Fails()
    before = spy(net)
    with pytest.raises(ModelError, match="OSError: no more"):
        attack_images(net, x, y, 0.1, "pgd", mode=mode, early_stop=False)
    assert same(before, spy(net)) and torch.is_grad_enabled()


def test_works_under_no_grad_and_inference_mode(trained):
    net, x, y = trained
    free = attack_images(net, x, y, 0.1, "bim").x
    with torch.no_grad():
        assert torch.equal(attack_images(net, x, y, 0.1, "bim").x, free)
    with torch.inference_mode():
        assert torch.equal(attack_images(net, x.clone(), y.clone(), 0.1, "bim").x, free)


def test_a_network_without_gradient_is_named(trained):
    net, x, y = trained

    class Cut(nn.Module):
        def forward(self, a):
            return net(a).detach()

    with pytest.warns(UserWarning, match="take 'square'"):
        found = attack_images(Cut(), x, y, 0.1, "bim")
    assert torch.equal(found.x, x)
    assert attack_images(Cut(), x, y, 0.2, "square", queries=50).correct.double().mean() < 1


NAN = torch.full((60, 1, 8, 8), float("nan"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=lambda x: 255 * x), ValueError, "`x` must lie in"),
        (dict(x=lambda x: x - 0.5), ValueError, "`x` must lie in"),
        (dict(x=lambda x: NAN), ValueError, "`x` must be finite"),
        (dict(x=lambda x: (255 * x).int()), TypeError, "`x` must hold floats"),
        (dict(x=lambda x: x[:, 0]), ValueError, "`x` must have shape"),
        (dict(x=lambda x: x.expand(-1, 3, -1, -1)), ValueError, "does not take images"),
        (dict(x=lambda x: x[:0], y=lambda y: y[:0]), ValueError, "at least one image"),
        (dict(y=lambda y: y + 5), ValueError, "`y` must hold labels from 0 to 9"),
        (dict(y=lambda y: y - 1), ValueError, "`y` must hold labels"),
        (dict(y=lambda y: y[:5]), ValueError, "60 labels"),
        (dict(y=lambda y: y.float()), TypeError, "`y` must be int64"),
        (dict(eps=[-0.1]), ValueError, "`eps`"),
        (dict(eps=[float("nan")]), ValueError, "`eps`"),
        (dict(eps=[]), ValueError, "`eps`"),
        (dict(eps=[0.1, 0.1]), ValueError, "`eps`"),
        (dict(eps="0.1"), TypeError, "`eps`"),
        (dict(attack="pdg"), ValueError, "did you mean 'pgd'"),
        (dict(step=3), ValueError, "did you mean 'steps'"),
        (dict(steps=0), ValueError, "`steps`"),
        (dict(steps=2.5), TypeError, "`steps`"),
        (dict(step_size=-1.0), ValueError, "`step_size`"),
        (dict(step_size=0.1, relative_step=0.1), ValueError, "exclude"),
        (dict(loss="dlrr"), ValueError, "`loss` is unknown"),
        (dict(norm="l1"), ValueError, "`norm` is unknown"),
        (dict(restarts=0), ValueError, "`restarts`"),
        (dict(eot=0), ValueError, "`eot`"),
        (dict(mode="train"), ValueError, "`mode` is unknown"),
        (dict(batch_size=0), ValueError, "`batch_size`"),
        (dict(target="worst"), ValueError, "`target` is unknown"),
        (dict(target=lambda y: y), ValueError, "`target` must differ"),
        (dict(target=lambda y: y + 10), ValueError, "`target` must hold labels"),
        (dict(model=lambda net: net.forward), TypeError, "`model` must be a torch.nn.Module"),
        (dict(model=lambda net: nn.Flatten(0)), ValueError, "row of logits"),
        (dict(model=lambda net: nn.Sequential(net, nn.Threshold(1e9, float("nan")))), ValueError, "finite logits"),
        (dict(attack="square", queries=1), ValueError, "`queries`"),
        (dict(attack="transfer", surrogates=[]), ValueError, "`surrogates`"),
    ],
)
def test_bad_input_is_refused(trained, change, error, message):
    net, x, y = trained
    call = dict(model=net, x=x, y=y, eps=[0.1], steps=2) | change
    if call.get("attack") in ("square", "transfer"):
        call.pop("steps")
    for name, given in (("model", net), ("x", x), ("y", y), ("target", y)):
        if callable(call.get(name)) and not isinstance(call[name], nn.Module):
            call[name] = call[name](given)
    before = spy(net)
    with pytest.raises(error, match=message):
        attack_curve(**call)
    assert same(before, spy(net))


def test_dlr_needs_classes(linear):
    net, x, y, *_ = linear
    with pytest.raises(ValueError, match="3 classes"):
        attack_images(net, x, y, 0.1, "apgd_dlr")


def test_controls_cost_one_query_a_draw(trained):
    net, x, y = trained
    for attack in (RandomSign(), UniformNoise()):
        found = worst_images(Threat(net, x, y, restarts=3, early_stop=False), attack, 0.1)
        assert found.queries.unique().tolist() == [3] and found.gradients.sum() == 0


def other_libraries(net, x, y, eps=0.1, steps=10):
    """Adversarial images of deterministic attacks by other libraries, beside ours.

    Yields (library, attack, their images, ours).
    """
    import eagerpy
    import foolbox
    import torchattacks

    warnings.simplefilter("ignore")
    fb = foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device)
    ours = dict(early_stop=False)
    step, radius = eps / 5, 10 * eps
    pgd = dict(random_start=False, steps=steps)
    ta, fa = torchattacks, foolbox.attacks
    cases = [
        ("fgsm", eps, dict(), ta.FGSM(net, eps), fa.LinfFastGradientAttack(random_start=False)),
        ("bim", eps, dict(steps=steps, step_size=step), ta.BIM(net, eps, step, steps), None),
        (
            "pgd",
            eps,
            pgd | dict(step_size=step),
            ta.PGD(net, eps, step, steps, random_start=False),
            fa.LinfProjectedGradientDescentAttack(abs_stepsize=step, steps=steps, random_start=False),
        ),
        (
            "pgd",
            radius,
            pgd | dict(step_size=2 * eps, norm="l2"),
            ta.PGDL2(net, radius, 2 * eps, steps, random_start=False),
            fa.L2ProjectedGradientDescentAttack(abs_stepsize=2 * eps, steps=steps, random_start=False),
        ),
        ("fgsm", radius, dict(norm="l2"), None, fa.L2FastGradientAttack(random_start=False)),
        ("mim", eps, dict(steps=steps, step_size=step), ta.MIFGSM(net, eps, step, steps, decay=1.0), None),
    ]
    for name, e, options, theirs, fool in cases:
        mine = attack_images(net, x, y, e, name, **(ours | options)).x
        label = f"{name} {options.get('norm', 'linf')}"
        if theirs is not None:
            yield "torchattacks", label, theirs(x, y).detach(), mine
        if fool is not None:
            yield "foolbox", label, fool(fb, x, eagerpy.astensor(y).raw, epsilons=e)[1], mine


def secml_images(net, x, y, eps=0.1, steps=10):
    """secml-torch's own PGD without a random start, beside ours.

    Of k steps it takes k - 1, and of the images on the way it hands back the one of highest loss.
    """
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.pgd import PGD as SecmlPGD
    from torch.utils.data import DataLoader, TensorDataset

    how = dict(random_start=False, y_target=None, backend=Backends.NATIVE)
    attack = SecmlPGD(perturbation_model="linf", epsilon=eps, num_steps=steps + 1, step_size=eps / 5, **how)
    theirs = next(iter(attack(net, DataLoader(TensorDataset(x, y), batch_size=len(x)))))[0]
    ours = dict(step_size=eps / 5, random_start=False, early_stop=False)
    path = [attack_images(net, x, y, 0.0), *(attack_images(net, x, y, eps, steps=k + 1, **ours) for k in range(steps))]
    best = torch.stack([found.loss for found in path]).argmax(0)
    return theirs, torch.stack([found.x for found in path])[best, torch.arange(len(x))]


def agreement(net, theirs, ours):
    "Largest difference of a pixel; images whose prediction differs."
    with torch.no_grad():
        differ = (net(theirs).argmax(1) != net(ours).argmax(1)).sum().item()
    return (theirs - ours).abs().max().item(), differ


def test_deterministic_attacks_equal_other_libraries_image_by_image(trained):
    pytest.importorskip("foolbox")
    pytest.importorskip("torchattacks")
    net, x, y = trained
    for library, name, theirs, ours in other_libraries(net, x, y):
        off, differ = agreement(net, theirs, ours)
        print(f"{library:13} {name:10} pixel difference {off:.1e}, predictions that differ {differ}")
        assert off < 1e-5 and differ == 0, (library, name)


def test_pgd_equals_secml(trained):
    pytest.importorskip("secmlt")
    net, x, y = trained
    off, differ = agreement(net, *secml_images(net, x, y))
    print(f"secml-torch   pgd linf   pixel difference {off:.1e}, predictions that differ {differ}")
    assert off < 1e-5 and differ == 0


def test_random_attacks_agree_within_sampling_error(trained):
    ta = pytest.importorskip("torchattacks")
    net, x, y = trained
    eps, options = 0.08, dict(early_stop=False)
    pairs = dict(
        pgd=(ta.PGD(net, eps, 0.25 * eps, 10), dict(steps=10)),
        apgd_ce=(ta.APGD(net, eps=eps, steps=30, seed=0), dict(steps=30)),
        apgd_dlr=(ta.APGD(net, eps=eps, steps=30, seed=0, loss="dlr"), dict(steps=30)),
        apgd_t=(ta.APGDT(net, eps=eps, steps=20, seed=0), dict(steps=20)),
        square=(ta.Square(net, eps=eps, n_queries=300, seed=0), dict(queries=300)),
    )
    for name, (theirs, own) in pairs.items():
        right = (net(theirs(x, y)).argmax(1) == y).double().mean().item()
        mine = attack_images(net, x, y, eps, name, generator(), **options, **own).correct.double().mean().item()
        print(f"{name:9} torchattacks {100 * right:.1f} %, ours {100 * mine:.1f} %")
        assert abs(right - mine) < 0.1


def test_autoattack_names_the_extra_that_it_needs(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match=r"pip install 'robustlit\[attacks\]'"):
        attack_images(*trained, 0.1, "autoattack")


def test_autoattack_leaves_everything_as_it_was(trained):
    pytest.importorskip("torchattacks")
    _, x, y = trained
    net = marked_net()
    before = spy(net)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = attack_images(net, x[:4], y[:4], 0.1, "autoattack", generator())
    assert same(before, spy(net)) and torch.equal(torch.get_rng_state(), state) and ball_holds(found.x, x[:4], 0.1)
    apgd = attack_images(net, x[:4], y[:4], 0.1, "apgd_t", generator(), steps=20)
    assert found.correct.sum() <= apgd.correct.sum() + 1
