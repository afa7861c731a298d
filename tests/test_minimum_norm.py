"Strong attacks: exact where a closed form exists, inside ball and box, sound where gradients are not, no weaker than others."

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from robustlit.attacks import ATTACKS, MIM, Ball, State, Transfer, attack_images, image_uniform
from robustlit.checks import bad_values
from robustlit.data import Batches, as_images, load
from robustlit.digest import edited, entry_digests, noting
from robustlit.input_diversity import DIM, TIM, gaussian_kernel, resized, smoothed
from robustlit.minimal_attacks import SMALLEST, smallest
from robustlit.minimum_norm import DDN, DUALS, FAB, FABT, FMN, into_ball, local_optimality, size_of, to_plane, unit
from robustlit.training import Learner, set_seed
from robustlit.worst_case import PGDKL, SquareL2, WorstCase, bump, kl_divergence, worst_case

CHEAP = dict(ddn=dict(steps=40), fmn=dict(steps=40), fab=dict(steps=10), fab_t=dict(steps=5))
CASCADE = dict(steps=8, target_steps=8, targets=3, fab_steps=4, queries=40)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    set_seed(0)
    data = load("digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
    Learner(model, torch.optim.Adam(model.parameters(), lr=0.01)).fit(10, Batches(data.x_train, data.y_train, 100))
    x, y = as_images(data.x_test[:60]), data.y_test[:60]
    with torch.no_grad():
        right = model.eval()(x).argmax(1) == y
    return model, x[right], y[right]


def linear(classes=2):
    "Logits W x + b on images whose pixels stay far from 0 and 1, and the exact smallest distance in every norm."
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, classes)).double()
    x = 0.4 + 0.2 * torch.rand(30, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        z, w = model(x), model[1].weight
        y, exact = z.argmax(1), {}
        for norm, dual in DUALS.items():
            slope = size_of((w[y][:, None] - w).flatten(0, 1), dual).view(len(x), classes)
            exact[norm] = ((z.amax(1, keepdim=True) - z) / slope).masked_fill(slope == 0, math.inf).amin(1)
    keep = (exact["l2"] > 0.02) & (exact["l1"] < 0.4)  # no pixel comes to its edge
    return model, x[keep], y[keep], {norm: v[keep] for norm, v in exact.items()}


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("name", ["fmn", "fab", "fab_t"])
def test_exact_on_a_linear_network(name, norm, classes):
    model, x, y, exact = linear(classes)
    f = smallest(model, x, y, name, norm=norm)
    ratio = size_of(f.x - x, norm) / exact[norm]
    assert f.success.all() and ratio.min() >= 1 - 1e-9
    assert (ratio < 1.006).all() if name != "fmn" else ratio.median() < (1.02 if norm != "l1" else 1.1)


def test_ddn_comes_near_the_exact_distance():
    model, x, y, exact = linear()
    ratio = smallest(model, x, y, "ddn").l2 / exact["l2"]
    assert ratio.min() >= 1 - 1e-9 and ratio.max() < 1.05


def test_the_plane_by_brute_force():
    "No move of many random ones that reach the plane inside the box is shorter, and the plane is reached where it can be."
    torch.manual_seed(0)
    x, w = torch.rand(40, 1, 1, 3, dtype=torch.float64), torch.randn(40, 1, 1, 3, dtype=torch.float64)
    want = torch.randn(40, dtype=torch.float64)
    most = torch.where(w * want.view(-1, 1, 1, 1) > 0, 1 - x, x)
    reach = (w.abs() * most).flatten(1).sum(1)
    line = torch.linspace(0, 1, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line, line)
    for norm in ("l1", "l2", "linf"):
        d = to_plane(x, w, want, norm)
        got = (w * d).flatten(1).sum(1)
        assert ((x + d >= -1e-12) & (x + d <= 1 + 1e-12)).all()
        assert torch.allclose(got, want.sign() * torch.minimum(want.abs(), reach))
        for i in (reach > want.abs()).nonzero()[:, 0].tolist():
            moves = grid - x[i].flatten()
            beyond = moves[(moves @ w[i].flatten()) * want[i].sign() >= want[i].abs()]
            if len(beyond):
                assert size_of(d[[i]], norm).item() <= size_of(beyond, norm).min().item() + 1e-9


def test_the_plane_survives_what_is_not_finite():
    x, w = torch.rand(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    w[0, 0, 0, 0], w[1] = math.nan, 0
    for norm in ("l1", "l2", "linf"):
        d = to_plane(x, w, torch.tensor([0.1, 0.1, math.inf]), norm)
        assert d.isfinite().all() and d[0, 0, 0, 0] == 0 and (d[1] == 0).all()
        assert (w[0] * d[0])[0].nansum().item() == pytest.approx(0.1, rel=1e-4)
        alone = to_plane(x[:1], w[:1], torch.tensor([0.1]), norm)
        assert torch.equal(alone[0], d[0])


def test_into_ball_is_the_nearest_point_inside():
    torch.manual_seed(0)
    v, r = torch.randn(20, 1, 2, 3, dtype=torch.float64), torch.rand(20, dtype=torch.float64) * 3
    for norm in ("l1", "l2", "linf"):
        inside = into_ball(v, r, norm)
        assert (size_of(inside, norm) <= r + 1e-9).all()
        for _ in range(200):
            other = torch.randn_like(v)
            other *= (r * torch.rand(20, dtype=torch.float64) / size_of(other, norm)).view(-1, 1, 1, 1)
            assert (size_of(v - inside) <= size_of(v - other) + 1e-9).all()
        free = size_of(v, norm) <= r
        assert torch.equal(inside[free], v[free])
    few = into_ball(v, torch.full((20,), 2.0, dtype=torch.float64), "l0")
    assert ((few != 0).flatten(1).sum(1) == 2).all() and torch.equal(few[few != 0], v[few != 0])
    assert (size_of(few, "linf") == size_of(v, "linf")).all()
    assert torch.allclose(into_ball(v, torch.full_like(r, math.inf), "l1"), v)


@pytest.mark.parametrize("name", ["ddn", "fmn", "fab", "fab_t"])
def test_no_norm_is_made_smaller_by_an_attack_on_another(trained, name):
    model, x, y = trained
    if name == "ddn":
        far = {n: smallest(model, x, y, n) for n in (name, "jsma")}
        assert far[name].l2.median() < 0.9 * far["jsma"].l2.median()
        return
    found = {norm: smallest(model, x, y, name, norm=norm, steps=30) for norm in ("l2", "linf")}
    assert found["l2"].l2.median() < found["linf"].l2.median()
    assert found["linf"].linf.median() < found["l2"].linf.median()
    assert all(f.success.all() for f in found.values())


@pytest.mark.parametrize("name", ["fab", "fab_t", "worst_case", "square_l2", "pgd_kl", "apgd_kl", "dim", "tim"])
def test_nothing_outside_the_ball_counts(trained, name):
    model, x, y = trained
    options = CHEAP.get(name) or (CASCADE if name == "worst_case" else {})
    for norm, eps in (("linf", 0.06), ("l2", 0.5)):
        if name == "square_l2" and norm == "linf":
            continue
        for early_stop in (True, False):
            f = attack_images(model, x, y, eps, name, generator(), norm=norm, early_stop=early_stop, **options)
            assert (size_of(f.x - x, norm) <= eps + 1e-6).all() and f.x.min() >= 0 and f.x.max() <= 1
            with torch.no_grad():
                assert torch.equal(f.correct, model(f.x).argmax(1) == y)
            assert 0 < f.correct.sum() < len(x)


def test_fab_in_a_ball_knows_what_the_smallest_distance_says(trained):
    model, x, y = trained
    for norm in ("linf", "l2"):
        far = getattr(smallest(model, x, y, "fab_t", norm=norm), norm)
        eps = 1.0001 * far.median().item()
        f = attack_images(model, x, y, eps, "fab_t", norm=norm)
        assert not (f.correct & (far <= eps)).any() and (~f.correct).sum() <= (far <= 1.02 * eps).sum()


class Holes(nn.Module):
    "Infinite slopes at black pixels of the upper half (a square root), none at all for images whose first pixel is white."

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        up, down = x.split(4, 2)
        a = torch.cat([up + 1e-3 * up.sqrt(), down], 2)
        return self.model(torch.where(x[:, :, :1, :1] == 1, a.detach() + 0 * a.sum(), a))


@pytest.mark.parametrize("name", ["ddn", "fmn", "fab", "fab_t"])
def test_gradients_that_are_not_finite_are_used_where_they_are(trained, name):
    model, x, y = trained
    with torch.no_grad():
        white = x.clone()
        white[:, :, 0, 0] = 1
        keep = model(white).argmax(1) == y
    x, y, holes = torch.cat([x, white[keep]]), torch.cat([y, y[keep]]), Holes(model)
    a = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(holes(a).sum(), a)
    assert not g.isfinite().all()
    f = smallest(holes, x, y, name, generator=generator(), **CHEAP[name])
    seeing = torch.arange(len(x)) < len(x) - keep.sum()
    assert f.success[seeing].double().mean() > 0.9 and f.x.isfinite().all()
    alone = smallest(holes, x[seeing], y[seeing], name, generator=generator(), **CHEAP[name])
    assert torch.allclose(alone.l2, f.l2[seeing], rtol=1e-3)


def test_where_no_gradient_is_the_direction_is_drawn(trained):
    class Flat(nn.Module):
        "Steps of a tenth: the answer depends on the image, its gradient is zero everywhere."

        def forward(self, x):
            m = ((x * 10).round() / 10 + 0 * x).flatten(1)
            return torch.stack([m[:, 0] + 0.04, m[:, 1]], 1)

    x, y = torch.full((8, 1, 1, 2), 0.5), torch.zeros(8, dtype=torch.int64)
    f = smallest(Flat(), x, y, "ddn", generator=generator())
    assert f.success.double().mean() >= 0.5 and not torch.equal(f.x[0], f.x[1])
    again = smallest(Flat(), x, y, "ddn", generator=generator())
    assert torch.equal(f.x, again.x)


class InPlace(nn.Module):
    "Normalises its input in place."

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x * 1.0)


@pytest.mark.parametrize("name", ["fab", "fab_t", "worst_case", "square_l2", "pgd_kl", "apgd_kl", "dim", "tim"])
def test_images_labels_modes_and_dice_stay_as_they_were(trained, name):
    model, x, y = copy.deepcopy(trained[0]).train(), trained[1], trained[2]
    model[1].eval()
    images, labels, modes = x.clone(), y.clone(), [m.training for m in model.modules()]
    state, dice = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    options = CHEAP.get(name) or (CASCADE if name == "worst_case" else {})
    attack_images(model, x, y, 0.3, name, generator(), norm="l2" if name == "square_l2" else "linf", **options)
    assert torch.equal(x, images) and torch.equal(y, labels) and torch.equal(torch.get_rng_state(), dice)
    assert [m.training for m in model.modules()] == modes and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["worst_case", "square_l2", "pgd_kl", "apgd_kl"])
def test_the_seed_decides(trained, name):
    model, x, y = trained
    how = dict(norm="l2", early_stop=False) | (CASCADE if name == "worst_case" else {})
    a, b, c = (attack_images(model, x, y, 0.5, name, generator(s), **how).x for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_cascade_keeps_its_book(trained):
    model, x, y = trained
    wrong = y.clone()
    wrong[:5] = (y[:5] + 1) % 10
    for norm, eps in (("linf", 0.07), ("l2", 0.6)):
        found = worst_case(model, x, wrong, eps, norm, generator=generator(), batch_size=len(x), **CASCADE)
        same = attack_images(model, x, wrong, eps, "worst_case", generator(), norm=norm, **CASCADE)
        assert torch.equal(found.attacked.x, same.x) and torch.equal(found.attacked.correct, same.correct)
        table = found.table()
        assert table["attack"].tolist() == ["clean", "apgd_ce", "apgd_t", "fab_t", "square"]
        assert table["standing"].iloc[-1] == pytest.approx(100 * same.correct.double().mean().item())
        assert found.broken_by.count("clean") == 5 == table["broken"].iloc[0]
        assert table["tried"].tolist()[1:] == (table["tried"] - table["broken"]).tolist()[:-1]
        first = attack_images(model, x, wrong, eps, "apgd_ce", generator(), norm=norm, steps=8)
        assert table["standing"].iloc[1] == pytest.approx(100 * first.correct.double().mean().item())
        parts = worst_case(model, x, wrong, eps, norm, generator=generator(), batch_size=17, **CASCADE)
        assert parts.broken_by == found.broken_by


def test_the_cascade_breaks_what_any_of_its_attacks_breaks(trained):
    model, x, y = trained
    left = worst_case(model, x, y, 0.07, generator=generator(), **CASCADE).attacked.correct
    for name, how in dict(
        apgd_ce=dict(steps=8), apgd_t=dict(steps=8, targets=3), fab_t=dict(steps=4, targets=3), square=dict(queries=40)
    ).items():
        assert not (left & ~attack_images(model, x, y, 0.07, name, generator(), **how).correct).any()


def test_the_cascade_needs_each_attack():
    "A network whose gradient leads nowhere falls to Square alone, and the book says so."

    class Masked(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model((x * 255).round() / 255 + 0 * x)

    _, x, y, _ = linear()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    x = x.float()
    with torch.no_grad():
        y = model(x).argmax(1)
    found = worst_case(Masked(model), x, y, 0.1, generator=generator(), steps=5, fab_steps=3, queries=300)
    table = found.table().set_index("attack")
    assert table.loc["square", "broken"] > table.loc["fab_t", "broken"] and table.loc["square", "broken"] > 0


def test_two_classes_and_targets(trained):
    _, x, y, exact = linear()
    model = linear()[0]
    eps = 1.001 * exact["linf"].median().item()
    left = attack_images(model, x, y, eps, "worst_case", generator(), target_steps=10, targets=2, queries=20)
    assert torch.equal(left.correct, exact["linf"] > eps)
    model, x, y = trained
    goal = (y + 1) % 10
    f = attack_images(model, x, y, 0.3, "worst_case", generator(), target=goal, **CASCADE)
    assert torch.equal(f.reached, f.predicted == goal) and f.reached.double().mean() > 0.8
    for name in ("fmn", "ddn", "fab", "fab_t"):
        f, free = (smallest(model, x, y, name, **CHEAP[name], **t) for t in (dict(target=goal), {}))
        assert torch.equal(f.success, f.predicted == goal) and f.success.double().mean() > 0.7
        assert f.l2.median() > free.l2.median()


def test_square_in_l2_uses_the_whole_radius_and_its_budget(trained):
    model, x, y = trained
    f = attack_images(model, x, y, 0.5, "square_l2", generator(), norm="l2", queries=100, early_stop=False)
    assert f.queries.max() <= 100 and f.gradients.sum() == 0 and size_of(f.x - x).median() > 0.3
    grey = 0.3 + 0.4 * x
    g = attack_images(model, grey, y, 0.2, "square_l2", generator(), norm="l2", queries=60, early_stop=False)
    assert torch.allclose(size_of(g.x - grey), torch.full((len(x),), 0.2), atol=1e-5)
    assert f.correct.sum() <= attack_images(model, x, y, 0.5, "random_sign", generator(), norm="l2").correct.sum()
    for side in (2, 3, 8, 15):
        hill = bump(side)
        assert (
            hill.norm().item() == pytest.approx(1) and (hill[: side // 2] > 0).any() and (hill[side // 2 :] < 0).any()
        )
        assert (hill[: side // 2] >= 0).all() and (hill[side // 2 :] <= 0).all()
    colour = SquareL2(20)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 5, 4))
    h = attack_images(net, torch.rand(6, 3, 7, 5), torch.arange(6) % 4, 0.3, colour, generator(), norm="l2")
    assert h.x.shape == (6, 3, 7, 5)
    with pytest.raises(ValueError, match="2 by 2"):
        attack_images(
            nn.Sequential(nn.Flatten(), nn.Linear(3, 2)),
            torch.rand(1, 1, 1, 3),
            y[:1] * 0,
            0.1,
            colour,
            norm="l2",
            early_stop=False,
        )


def test_the_kl_loss(trained):
    model, x, y = trained
    p, q = torch.randn(2, 5, 4)
    by_hand = torch.nn.functional.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)
    assert torch.allclose(kl_divergence(q, p), by_hand, atol=1e-6) and kl_divergence(p, p).abs().max() < 1e-6
    with torch.no_grad():
        clean = model(x)
    far = {}
    for name in ("pgd_kl", "pgd", "random_sign"):
        found = attack_images(model, x, y, 0.05, name, generator(), early_stop=False)
        with torch.no_grad():
            far[name] = kl_divergence(model(found.x), clean).mean()
    assert far["pgd_kl"] >= 0.75 * far["pgd"] and far["pgd_kl"] > 3 * far["random_sign"]
    other = (y + 1) % 10
    a, b = (attack_images(model, x, labels, 0.05, PGDKL(5), generator(), early_stop=False).x for labels in (y, other))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="`target` is not for the KL loss"):
        attack_images(model, x, y, 0.1, "pgd_kl", target=other)


def test_input_diversity_by_hand(trained):
    model, x, y = trained
    u = torch.tensor([[0.0, 0.999, 0.5, 0.5], [0.9, 0.0, 0.0, 0.0], [0.1, 0.0, 0.999, 0.0]])
    out = resized(x[:3], u, 0.5, 0.5)
    small = nn.functional.interpolate(x[2:3], (4, 4), mode="bilinear")
    assert torch.allclose(out[0], x[0], atol=1e-6) and torch.equal(out[1], x[1])
    assert torch.allclose(out[2:], nn.functional.pad(small, (0, 4, 4, 0)), atol=1e-6)
    wide = torch.rand(2, 3, 9, 5)
    at = image_uniform(torch.arange(2), 0, 0, (4,))
    assert resized(wide, at, 0.6, 1.0).shape == wide.shape and torch.equal(resized(wide, at, 0.6, 0.0), wide)
    g = torch.zeros(1, 2, 5, 5)
    g[0, 0, 2, 2] = 1
    kernel = gaussian_kernel(3, 1.0)
    assert torch.allclose(smoothed(g, kernel)[0, 0, 1:4, 1:4], kernel) and (smoothed(g, kernel)[0, 1] == 0).all()
    mim = attack_images(model, x, y, 0.1, MIM(5), early_stop=False).x
    assert torch.equal(attack_images(model, x, y, 0.1, DIM(5, probability=0.0), early_stop=False).x, mim)
    assert torch.equal(attack_images(model, x, y, 0.1, TIM(5, size=1), early_stop=False).x, mim)
    whole = attack_images(model, x, y, 0.1, DIM(5, smallest=0.6), generator(), early_stop=False).x
    assert not torch.equal(whole, mim)
    found = attack_images(model, x, y, 0.1, Transfer(model, DIM(5)), generator())
    assert (found.x - x).abs().max() <= 0.1 + 1e-6


def test_names_are_found_without_an_import(trained):
    model, x, y = trained
    assert {"worst_case", "fab", "fab_t", "square_l2", "pgd_kl", "apgd_kl", "dim", "tim"} <= set(ATTACKS.names())
    assert {"ddn", "fmn", "fab", "fab_t"} <= set(SMALLEST.names())
    for table, name, kind in (
        (SMALLEST, "ddn", DDN),
        (SMALLEST, "fmn", FMN),
        (SMALLEST, "fab", FAB),
        (SMALLEST, "fab_t", FABT),
    ):
        assert table[name] is kind
    assert ATTACKS["worst_case"] is WorstCase
    with noting() as uses:
        attack_images(model, x, y, 0.1, "worst_case", **CASCADE)
    assert ("attacks", "worst_case") in uses


def test_a_record_sees_a_change_of_these_attacks():
    uses = [("attacks", "worst_case"), ("attacks", "dim"), ("minimal attacks", "ddn"), ("minimal attacks", "fmn")]
    before = entry_digests(uses)
    assert all(before.values()) and len(set(before.values())) == len(uses)
    for module, old, new, moved in (
        ("minimum_norm", "1 - self.gamma, 1 + self.gamma", "1 - self.gamma, 2 + self.gamma", "minimal attacks/ddn"),
        ("worst_case", "r // self.rounds", "r // (self.rounds + 1)", "attacks/worst_case"),
        ("input_diversity", "s.seed + 1", "s.seed + 2", "attacks/dim"),
    ):
        code = edited(f"robustlit.{module}", lambda text, old=old, new=new: text.replace(old, new))
        code.module("robustlit")
        after = {f"{t}/{e}": code.digest((*code.tables[t], e)) for t, e in uses}
        assert [k for k in before if before[k] != after[k]] == [moved]


def test_local_optimality_by_hand():
    best = torch.tensor([0.0, 1.0, 2.0, 4.0])
    assert local_optimality(best, best) == 1
    assert local_optimality(torch.full((4,), math.inf), best) == 0
    assert local_optimality(torch.tensor([0.0, 2.0, 2.0, math.inf]), best) == pytest.approx(4 / 5)
    for bad in (torch.zeros(4), best[:3], torch.tensor([1.0, 2.0, 3.0, math.inf])):
        with pytest.raises(ValueError, match="`best`"):
            local_optimality(best, bad)


def test_unit_uses_what_is_finite():
    s = State(ids=torch.arange(4), seed=0)
    g = torch.tensor([[3.0, 4.0], [math.inf, -2.0], [1e-38, 0.0], [0.0, 0.0]]).view(4, 1, 1, 2)
    u = unit(g, s, 0).view(4, 2)
    assert torch.allclose(u[:3], torch.tensor([[0.6, 0.8], [0.0, -1.0], [1.0, 0.0]])) and u[
        3
    ].norm().item() == pytest.approx(1)
    assert torch.equal(unit(g[3:], State(ids=torch.tensor([3]), seed=0), 0).view(2), u[3])


@pytest.mark.parametrize(
    "make", [DDN, FMN, FAB, FABT, SquareL2, WorstCase, PGDKL, DIM, TIM, local_optimality, worst_case]
)
def test_bad_values_are_refused_in_words(make):
    found = {name: values for name, values in bad_values(make).items() if values}
    assert found
    for name, values in found.items():
        for value in values:
            with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
                make(**{name: value})


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("ddn", dict(step=3), "did you mean 'steps'"),
        ("fmn", dict(norm="l3"), "`norm` is unknown"),
        ("fab", dict(norm="l0"), "`norm` is unknown"),
        ("ddn", dict(loss="hinge"), "`loss` is unknown"),
    ],
)
def test_bad_options_are_refused_in_words(trained, name, options, words):
    with pytest.raises(ValueError, match=words):
        smallest(*trained, name, **options)


def test_other_libraries_find_the_same(trained):
    "DDN and FMN of foolbox, from the same start: image by image, but for what is decided by rounding."
    foolbox = pytest.importorskip("foolbox")
    warnings.simplefilter("ignore")
    model, x, y = trained
    fa, fmodel = foolbox.attacks, foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = (fa.DDNAttack(steps=50)(fmodel, x, y, epsilons=None)[1] - x).flatten(1).norm(dim=1)
    mine = smallest(model, x, y, "ddn", steps=50).l2
    assert ((mine - theirs).abs() < 1e-3 * theirs).double().mean() > 0.9 and mine.mean() < 1.005 * theirs.mean()
    theirs = (fa.LInfFMNAttack(steps=50)(fmodel, x, y, epsilons=None)[1] - x).flatten(1).abs().amax(1)
    published = smallest(model, x, y, "fmn", norm="linf", steps=50, room=False, loss="cw", step_size=1.0).linf
    assert ((published - theirs).abs() < 1e-3 * theirs).double().mean() > 0.9
    assert smallest(model, x, y, "fmn", norm="linf", steps=50).linf.mean() <= 1.002 * theirs.mean()


def test_torchattacks_breaks_no_more(trained):
    ta = pytest.importorskip("torchattacks")
    warnings.simplefilter("ignore")
    model, x, y = trained
    for norm, theirs, eps in (("linf", "Linf", 0.07), ("l2", "L2", 0.6)):
        a = ta.FAB(model, norm=theirs, eps=eps, steps=20, n_restarts=1, multi_targeted=True, n_classes=10)(x, y)
        with torch.no_grad():
            left = (model(a).argmax(1) == y) | (size_of(a - x, norm) > eps + 1e-6)
        mine = attack_images(model, x, y, eps, "fab_t", norm=norm, steps=20).correct
        assert mine.sum() <= left.sum() and (mine & ~left).sum() == 0
        full = ta.AutoAttack(model, norm=theirs, eps=eps, n_classes=10, seed=0)(x, y)
        with torch.no_grad():
            left = model(full).argmax(1) == y
        cascade = attack_images(model, x, y, eps, "worst_case", generator(), norm=norm)
        assert (cascade.correct & ~left).sum() == 0
    a = ta.Square(model, norm="L2", eps=0.6, n_queries=200, seed=0)(x, y)
    with torch.no_grad():
        left = (model(a).argmax(1) == y).sum()
    mine = attack_images(model, x, y, 0.6, "square_l2", generator(), norm="l2", queries=200).correct.sum()
    assert mine <= left + 3 and Ball(x, 0.6, "l2").project(a).allclose(a, atol=1e-4)
