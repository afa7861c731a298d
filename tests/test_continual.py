"Networks kept by the day, and the experiments that stress them."

import subprocess
import sys

import pandas as pd
import pytest
import torch

from robustlit.claims import known_claims
from robustlit.data import as_images, load
from robustlit.evaluation import accuracy
from robustlit.masking import FIRST
from robustlit.metaplasticity.adversarial_robustness import PROBES, adversarial_robustness, situations
from robustlit.metaplasticity.common_corruptions import CHANGED, REPORTED, common_corruptions, seen_by
from robustlit.metaplasticity.continual import learned, networks_path
from robustlit.metaplasticity.gradient_masking import gradient_masking
from robustlit.streams import permute

TINY = dict(data="digits", n_tasks=2, width=32, epochs=2, batch_size=50)
PARAMETERS = TINY | dict(meta=1.35, seed=3, gamma_init="ones", network="binary", first_identity=True)


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    "Networks of these tests go where nobody else looks."
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path_factory.getbasetemp() / "runs"))
    torch.set_num_threads(1)


@pytest.fixture
def life(own_folder):
    return learned(seed=3, **TINY)


# Days


def test_the_file_gives_the_same_networks(life):
    again = learned(seed=3, **TINY)
    assert again.made == life.made  # read, not trained
    for a, b in zip(life.days, again.days):
        assert all(torch.equal(v, b.weights[k]) for k, v in a.weights.items())
    x = as_images(load("digits", valid=0).x_test[:50])
    for after, on, bn in ((1, 1, "own"), (2, 1, "own"), (2, 1, "last"), (2, 2, "own")):
        assert torch.equal(life.at(after, on, bn)(x), again.at(after, on, bn)(x))


def test_a_fresh_process_predicts_the_same(life, tmp_path):
    x = as_images(load("digits", valid=0).x_test[:50])
    told = torch.cat([life.at(after, 1, bn)(x) for after in (1, 2) for bn in ("own", "last")])
    torch.save(told, tmp_path / "told.pt")
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from robustlit.metaplasticity.continual import learned\n"
        "from robustlit.data import as_images, load\n"
        f"life = learned(seed=3, **{TINY!r}); x = as_images(load('digits', valid=0).x_test[:50])\n"
        "again = torch.cat([life.at(a, 1, b)(x) for a in (1, 2) for b in ('own', 'last')])\n"
        f"print(torch.equal(again, torch.load({str(tmp_path / 'told.pt')!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split()[-1:] == ["True"], done.stderr


def test_each_day_is_another_network(life):
    first, last = (life.days[k].weights["1.weight"] for k in (0, 1))
    assert not torch.equal(first, last)
    life.at(1)
    assert torch.equal(life.model.state_dict()["1.weight"], first)
    life.at(2)
    assert torch.equal(life.model.state_dict()["1.weight"], last)


def test_the_hidden_weights_are_kept_not_their_signs(life):
    assert life.days[0].weights["1.weight"].abs().unique().numel() > 100


def test_own_and_last_batch_norm(life):
    gain = "2.running_mean"
    own, last = (life.at(2, 1, bn).state_dict()[gain].clone() for bn in ("own", "last"))
    assert torch.equal(own, life.days[0].batch_norm[0]["running"]["2"]["running_mean"]) and not torch.equal(own, last)
    assert torch.equal(life.at(1, 2, "own").state_dict()[gain], own)  # a task ahead has no batch norm yet


def test_every_parameter_names_another_file(own_folder):
    paths = {networks_path(PARAMETERS)}
    others = dict(
        meta=1.0, seed=4, n_tasks=3, width=33, epochs=3, batch_size=51, gamma_init="uniform01", network="real"
    )
    paths |= {networks_path(PARAMETERS | {k: v}) for k, v in others.items()}
    assert len(paths) == 1 + len(others)
    assert networks_path(PARAMETERS | dict(meta=1.350)) in paths


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda life: life.at(0), "`after`"),
        (lambda life: life.at(1, 3), "`on`"),
        (lambda life: life.at(1, 1, "mine"), "`bn`"),
        (lambda life: life.at(1, 1, "own", "batch"), "`statistics`"),
        (lambda life: learned(**TINY | dict(n_tasks=0)), "`n_tasks`"),
        (lambda life: learned(**TINY | dict(network="spiking")), "`network`"),
    ],
)
def test_bad_arguments(life, call, told):
    with pytest.raises(ValueError, match=told):
        call(life)


# Corrupted


def test_the_two_orders():
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    mixed = torch.randperm(784, generator=torch.Generator().manual_seed(1))
    first, after = (seen_by(x, mixed, "gaussian_blur", 2, order) for order in ("permute_first", "corrupt_first"))
    assert not torch.allclose(first, after, atol=0.05)
    assert torch.equal(permute(permute(x, mixed), mixed.argsort()), x)
    assert torch.equal(after, permute(seen_by(x, None, "gaussian_blur", 2), mixed))
    for order in ("permute_first", "corrupt_first"):  # what works pixel by pixel does not care for the order
        assert torch.allclose(
            seen_by(x, mixed, "contrast", 1, order), permute(seen_by(x, None, "contrast", 1), mixed), atol=1e-6
        )


def test_the_reading_changes_what_it_says_and_nothing_else():
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    changed = {n for n in REPORTED if not torch.equal(seen_by(x, None, n, 1), seen_by(x, None, n, 1, reading="report"))}
    assert changed == set(CHANGED)
    blurred = seen_by(x, None, "gaussian_blur", 1, reading="report")
    assert torch.allclose(seen_by(x.flip(3), None, "gaussian_blur", 1, reading="report"), blurred.flip(3), atol=1e-6)
    assert torch.allclose(seen_by(x, None, "saturate", 1, reading="report"), 0.3 * x, atol=1e-6)


def test_corrupted_rows(life):
    rows = common_corruptions(seed=3, images=60, severities=(1, 3), **TINY)
    keys = ["order", "reading", "stressor", "strength", "on", "bn"]
    assert not rows.duplicated(keys).any() and rows.notna().all().all() and (rows.n == 60).all()
    assert set(rows.stressor) == {"clean", *REPORTED} and len(REPORTED) == 19
    camera = rows[(rows.order == "corrupt_first") & (rows.reading == "corrected")]
    assert set(camera.strength) == {1, 3} and set(rows[rows.order == "permute_first"].strength) == {1}
    part = load("digits", valid=0).subset(n_test=60)
    x, y = as_images(part.x_test), part.y_test
    by_hand = accuracy(life.at(2, 2), permute(x, life.tasks[1].permutation), y)
    assert rows.query("stressor == 'clean' and on == 2").accuracy.tolist() == [by_hand] * 2
    shown = seen_by(x, life.tasks[1].permutation, "snow", 3, seed=3)
    chosen = camera.query("stressor == 'snow' and on == 2 and strength == 3 and bn == 'own'")
    assert chosen.accuracy.item() == accuracy(life.at(2, 2), shown, y)


def test_unknown_orders_and_readings():
    x = torch.rand(2, 1, 28, 28)
    for name, value in dict(order="sideways", reading="mine").items():
        with pytest.raises(ValueError, match=f"`{name}`"):
            seen_by(x, None, "fog", 1, **{name: value})


# Attacked and audited


def test_situations():
    assert situations(1) == [(1, 1, "own")]
    for n in (2, 6):
        found = situations(n)
        assert len(found) == len(set(found)) == (n - 1) + 2 * (n - 1) + 1
        assert {on for after, on, _ in found if after == n} == set(range(1, n + 1))


def test_attacked_rows(life):
    rows = adversarial_robustness(seed=3, images=60, **TINY)
    assert not rows.duplicated(["after", "on", "bn", "stressor", "attack_loss", "strength"]).any()
    assert len(rows) == len(situations(2)) * sum(len(eps) for _, _, eps, _ in PROBES)
    table = rows[rows.stressor == "fgsm"].pivot_table("accuracy", ["after", "on", "bn"], ["attack_loss", "strength"])
    part = load("digits", valid=0).subset(n_test=60)
    clean = accuracy(life.at(1, 1), as_images(part.x_test), part.y_test)
    assert table.loc[(1, 1, "own"), ("ce", 0.0)] == pytest.approx(clean)
    assert (table["ce"][0.0] == table["nll_of_logits"][0.0]).all() and (table["ce"][0.3] <= table["ce"][0.0]).all()
    pd.testing.assert_frame_equal(rows, adversarial_robustness(seed=3, images=60, **TINY))


def test_audited_rows(life):
    rows = gradient_masking(seed=3, images=40, **TINY)
    assert set(map(tuple, rows[["after", "on", "bn"]].to_numpy())) == {
        (1, 1, "own"),
        (2, 1, "own"),
        (2, 1, "last"),
        (2, 2, "own"),
    }
    counts = rows.groupby(["after", "on", "bn"]).check.nunique()  # where a task is forgotten, nothing is left to audit
    assert counts.isin([len(FIRST), rows.check.nunique()]).all() and (counts.xs("own", level="bn") > len(FIRST)).any()


# Claims on made-up rows


def claim_of(name):
    return next(c for c in known_claims("metaplasticity") if c.id == name)


def corruption_rows(early, last=90.0, camera=None):
    "Rows as from `common_corruptions`: accuracy on early tasks by meta, the same for all corruptions, or by order."
    rows = []
    for seed in range(3):
        for meta, value in early.items():
            for name in REPORTED:
                for order in ("permute_first", "corrupt_first"):
                    readings = ("corrected", "report") if name in CHANGED else ("corrected",)
                    for reading in readings:
                        for on in range(1, 7):
                            shown = (camera or early)[meta] if order == "corrupt_first" else value
                            shown = shown if on < 6 else (last if not callable(last) else last(meta))
                            about = dict(seed=seed, meta=meta, stressor=name, order=order, reading=reading, strength=1)
                            rows.append(
                                about | dict(on=on, n_tasks=6, bn="last", accuracy=shown + 0.1 * seed * (1 + meta))
                            )
    return pd.DataFrame(rows)


def clean_rows(**accuracy):
    "Uncorrupted images, accuracy on early tasks by meta (m0, m07, m135)."
    metas = dict(m0=0.0, m07=0.7, m135=1.35)
    about = dict(stressor="clean", order="none", reading="corrected", strength=0, n_tasks=6, bn="last")
    tested = [(m, seed, on) for m in accuracy for seed in range(3) for on in range(1, 6)]
    rows = [about | dict(meta=metas[m], seed=seed, on=on, accuracy=accuracy[m]) for m, seed, on in tested]
    return pd.DataFrame(rows)


def test_claims_on_corruptions():
    early = {0.0: 13.0, 0.7: 38.0, 1.35: 42.0}
    for scale in ("paper", "cpu"):
        steady = pd.concat([corruption_rows(early), clean_rows(m0=33.0, m07=39.0, m135=44.0)])
        assert claim_of("A-5")(steady, scale).passed
        remembers = claim_of("A-5")(
            pd.concat([corruption_rows(early), clean_rows(m0=14.0, m07=40.0, m135=45.0)]), scale
        )
        assert not remembers.passed, "who remembers more and loses more to noise is no steadier"
        assert "of the accuracy above chance noise leaves 77.5 % at meta 0" in remembers.second
    flat = dict.fromkeys(early, 11.0)
    for name in ("A-5b-defocus", "A-5b-elastic", "A-5b-fog"):
        found = claim_of(name)(corruption_rows(flat, camera=early), "paper")
        assert not found.passed and found.only_under == "permuting before corrupting"
        assert claim_of(name)(corruption_rows(flat), "paper").passed
        assert claim_of(name)(corruption_rows(early), "cpu").passed is False
        wide = corruption_rows(flat)
        wide["accuracy"] += 8 * wide["seed"].sub(1) * wide["meta"].gt(0)
        assert claim_of(name)(wide, "cpu").passed is None, "no difference found is not one excluded"
    falls = lambda meta: 80 - 20 * meta
    assert claim_of("A-5c")(corruption_rows(early, falls), "paper").passed
    assert not claim_of("A-5c")(corruption_rows(early, 80.0), "cpu").passed
    assert not claim_of("A-6")(corruption_rows(early), "paper").passed


def attack_rows(accuracy):
    "Rows as from `adversarial_robustness`, from a function of (after, bn, attack, eps, meta)."
    rows = []
    for seed in range(3):
        for meta in (0.0, 0.7, 1.35):
            for after, bn in ((1, "own"), (6, "own"), (6, "last")):
                for attack, loss in (("fgsm", "nll_of_logits"), ("random_sign", "")):
                    for eps in (0.0, 0.05, 0.1, 0.15, 0.2):
                        value = accuracy(after, bn, attack, eps, meta) + 0.01 * seed
                        about = dict(
                            seed=seed,
                            meta=meta,
                            after=after,
                            on=1,
                            n_tasks=6,
                            bn=bn,
                            stressor=attack,
                            attack_loss=loss,
                            strength=eps,
                        )
                        rows.append(about | dict(accuracy=value + 0.1 * meta * seed))
    return pd.DataFrame(rows)


def published(after, bn, attack, eps, meta):
    if attack == "random_sign":
        return 95.0
    first = {0.0: 97.7, 0.05: 70.0, 0.1: 21.0, 0.15: 4.0, 0.2: 0.5}[eps]
    return first if after == 1 or bn == "own" else first / 10


def test_claims_on_attacks():
    rows = attack_rows(published)
    for name in ("A-7", "A-8", "A-10"):
        assert claim_of(name)(rows, "paper").passed and claim_of(name)(rows, "cpu").passed
    found = claim_of("A-9")(rows, "paper")
    assert not found.passed and found.only_under == "the newest batch norm"
    worse = attack_rows(lambda after, bn, *rest: published(after, "last", *rest))
    assert claim_of("A-9")(worse, "paper").passed
    ordered = attack_rows(lambda a, b, k, eps, meta: published(a, b, k, eps, meta) + 8 * meta)
    assert claim_of("A-8")(ordered, "paper").passed is False
    wide = rows.assign(accuracy=rows.accuracy + 6 * rows.seed.sub(1) * rows.meta)
    assert claim_of("A-8")(wide, "paper").passed is None, "no difference found is not one excluded"
    weak = attack_rows(lambda a, b, k, eps, meta: 97.0)
    assert not any(claim_of(n)(weak, "cpu").passed for n in ("A-7", "A-10"))


def test_later_tasks_that_are_learned_frailer():
    def rows(late):
        days = [(day, m, seed, eps) for day in (1, 6) for m in (0.0, 1.35) for seed in range(3) for eps in (0.0, 0.05)]
        value = lambda day, m, eps: 97.0 if eps == 0 else late[m] if day == 6 else 70.0
        about = dict(bn="own", stressor="fgsm", attack_loss="nll_of_logits", n_tasks=6)
        table = [
            about | dict(after=d, on=d, meta=m, seed=s, strength=e, accuracy=value(d, m, e) + s) for d, m, s, e in days
        ]
        return pd.DataFrame(table)

    frailer = claim_of("A-9b")
    assert frailer(rows({0.0: 68.0, 1.35: 40.0}), "paper").passed
    assert not frailer(rows({0.0: 50.0, 1.35: 40.0}), "paper").passed, "the others lose as much"
    assert not frailer(rows({0.0: 70.0, 1.35: 65.0}), "paper").passed


def test_a_loss_of_wide_networks_that_the_older_start_cures_is_an_artefact():
    def rows(means, profile="paper"):
        table = [
            dict(gamma_init=g, width=w, seed=s, on=on, accuracy=v + s, after=5, n_tasks=5, split="test", bn="own")
            | dict(statistics=statistics, meta=1.35, epochs=20, profile=profile)
            for (g, w), v in means.items()
            for s in range(3)
            for on in range(1, 6)
            for statistics in ("running", "recalibrated")
        ]
        return pd.DataFrame(table)

    harmed = {("ones", 512): 91.0, ("ones", 1024): 93.0, ("ones", 2048): 77.0}
    cured = {("uniform01", w): 94.0 for w in (512, 1024, 2048)}
    found = claim_of("A-3")(rows(harmed | cured), "paper")
    assert not found.passed and found.only_under == "a gain that starts from 1"
    assert claim_of("A-3")(rows(harmed | cured | {("uniform01", 2048): 80.0}), "paper").passed
    none = claim_of("A-3")(rows(harmed | cured | {("ones", 2048): 92.0}), "paper")
    assert not none.passed and not none.only_under
    small = claim_of("A-3")(rows(harmed), "cpu", dict(uniform01=rows({("uniform01", 2048): 94.0})))
    assert small.only_under == "a gain that starts from 1"
    assert claim_of("A-3")(rows(harmed), "cpu", dict(uniform01=rows({("uniform01", 2048): 79.0}))).passed
    longer = claim_of("A-3")(rows(harmed), "cpu", dict(longer=rows({("ones", 2048): 70.0}))).second
    assert longer == "2048 units at 20 epochs: from 1 71.0 (n = 3)"


def test_what_a_longer_training_gains_is_told_with_both_batch_norms():
    def rows(own, last, epochs):
        table = [
            dict(meta=m, width=1024, seed=s, on=on, after=5, n_tasks=5, split="test", statistics="running", bn=bn)
            | dict(epochs=epochs, gamma_init="ones", accuracy=(own if bn == "own" else last) if m else 15.0)
            for m in (0.0, 1.35)
            for s in range(3)
            for on in range(1, 6)
            for bn in ("own", "last")
        ]
        return pd.DataFrame(table)

    found = claim_of("A-1")(rows(95.0, 46.0, 25), "paper", dict(shorter=rows(48.0, 43.0, 6)))
    assert found.passed and "47.0 points more than 6 where the task is told and 3.0 where it is not" in found.measured
    assert "most of the gain sits in the snapshots" in found.measured
    assert {k: v.mean() for k, v in found.per_seed.items()} == {
        "task identity is told, meta 0": 15.0,
        "task identity is told, meta 1.35": 95.0,
        "not told (newest batch norm), meta 0": 15.0,
        "not told (newest batch norm), meta 1.35": 46.0,
    }
    kept = claim_of("A-1")(rows(95.0, 90.0, 25), "paper", dict(shorter=rows(48.0, 43.0, 6))).measured
    alone = claim_of("A-1")(rows(95.0, 46.0, 25), "paper").measured
    assert "less than half of the gain" in kept and "gain" not in alone and "the report's own runs" in alone
    assert not claim_of("A-1")(rows(97.0, 46.0, 25), "paper").passed  # above the interval of the report's runs
