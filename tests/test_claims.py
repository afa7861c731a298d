"Claims, verdicts and the statistics behind them."

import itertools
import shlex

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from robustlit import claims
from robustlit.claims import (
    Claim,
    Finding,
    Verdict,
    answers,
    claim,
    known_claims,
    ledger,
    ledger_markdown,
    verdict,
    verdicts,
)
from robustlit.records import Store, experiment, recorded
from robustlit.statistics import (
    bootstrap_interval,
    differences,
    equivalence,
    holm,
    paired_difference,
    prediction_interval,
    share_interval,
    t_interval,
    worded,
)
from robustlit.sweeps import parse_grid

PARTS = dict(
    paper="toy",
    statement="More is better",
    source="Fig 1",
    published={"0": 10, "1": 90},
    condition="at 1 every seed has at least 90",
    experiment="toy/growth",
    where=dict(dose=[0.0, 1.0], width=8),
)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    claims.known_claims()  # what is first imported during a test would be lost with the test's registry
    monkeypatch.setattr(claims, "_claims", {})


def better(rows, scale):
    by = rows.pivot_table(index="seed", columns="dose", values="accuracy")
    passed = (by[1.0] >= 90).all() if scale == "paper" else (by[1.0] - by[0.0] >= 5).all()
    return Finding(passed, f"{by[1.0].mean():.0f} against {by[0.0].mean():.0f}", by[1.0])


def rows(high=95.0, seeds=3, profile="paper", doses=(0.0, 1.0), **columns):
    df = pd.DataFrame(itertools.product(doses, range(seeds), (1, 2)), columns=["dose", "seed", "task"])
    df["accuracy"] = np.where(df.dose == 1, high, 20.0) + df.seed
    return df.assign(width=8, profile=profile, hardware="cpu, 2 cores, AMD EPYC", stale=False, **columns)


def shelf(*frames):
    everything = pd.concat(frames)
    return lambda name, profile, where: everything[everything.profile == profile].reset_index(drop=True)


def asked(check=better, **changes):
    return claim(**(PARTS | dict(id="T-1") | changes))(check)


# --- verdicts


@pytest.mark.parametrize("high, outcome", [(95.0, "holds"), (80.0, "fails")])
def test_the_papers_protocol_gives_the_verdict_unqualified(high, outcome):
    v = verdict(asked(condition_cpu="a gap of 5"), source=shelf(rows(high), rows(20.0, profile="cpu")))
    assert (v.outcome, v.label, v.scale, v.profile, v.n) == (outcome, outcome, "paper", "paper", 3)
    assert v.mean == high + 1 and v.spread == pytest.approx(1.0)
    assert v.ours == f"{high + 1:.1f} ± 1.0 % (n = 3)"
    assert v.rests_on == "profile paper, n = 3 seeds, 2-core AMD EPYC CPU" and v.hardware == ("cpu, 2 cores, AMD EPYC",)
    assert str(v).startswith(f"T-1 {outcome}: ") and "published: 0: 10, 1: 90" in str(v) and not v.missing


@pytest.mark.parametrize("high, label", [(30.0, "indicated at cpu scale"), (21.0, "not indicated at cpu scale")])
def test_cpu_records_are_judged_by_their_own_condition_and_say_so(high, label):
    v = verdict(asked(condition_cpu="a gap of 5"), source=shelf(rows(high, profile="cpu"), rows(95.0, seeds=2)))
    assert (v.label, v.scale) == (label, "cpu")
    assert "profile paper: dose = 0 (2 of 3 seeds)" in v.missing
    assert "--profile cpu" in v.command


def test_cpu_records_say_nothing_without_a_condition_for_them():
    v = verdict(asked(), source=shelf(rows(95.0, profile="cpu", seeds=9)))
    assert (v.outcome, v.label, v.scale) == ("not measured", "not measured", None)
    assert v.command == "robustlit sweep growth --profile paper -g dose 0,1 -g width 8 -g seed 0:3"


def test_smoke_and_custom_records_never_count():
    seen = []

    def source(name, profile, where):
        seen.append(profile)
        return shelf(rows(profile="smoke"), rows(profile="custom"))(name, profile, where)

    v = verdict(asked(condition_cpu="a gap of 5"), source=source)
    assert v.outcome == "not measured" and set(seen) == {"paper", "cpu"} and np.isnan(v.mean)


def test_too_few_seeds_are_named_with_the_command_that_makes_them():
    lame = rows()
    lame = lame[(lame.dose == 1) | (lame.seed == 0)]
    v = verdict(asked(), source=shelf(lame))
    assert v.outcome == "not measured" and v.missing == "profile paper: dose = 0 (1 of 3 seeds)"
    assert "needs profile paper: dose = 0 (1 of 3 seeds); `robustlit sweep growth --profile paper" in str(v)
    assert verdict(asked(min_seeds=1), source=shelf(lame)).outcome == "holds"
    assert verdict(asked(min_seeds=4), source=shelf(rows())).outcome == "not measured"


def test_seeds_that_one_setting_lacks_do_not_count():
    df = rows(seeds=5)
    df = df[(df.dose == 1) | (df.seed != 1)]
    df.loc[(df.seed == 1) & (df.dose == 1), "accuracy"] = 0.0
    seen = []
    v = verdict(asked(lambda r, scale: seen.append(sorted(set(r.seed))) or better(r, scale)), source=shelf(df))
    assert seen == [[0, 2, 3, 4]] and (v.outcome, v.n) == ("holds", 4)


def test_a_verdict_at_cpu_size_shares_neither_word_nor_colour_with_one_at_paper_size():
    made = asked(condition_cpu="c")
    label = {(o, scale): Verdict(made, o, scale).label for o in claims.SMALL for scale in claims.SCALES}
    marked = {key: Verdict(made, *key).marked.split()[0] for key in label}
    assert len(set(label.values())) == len(set(marked.values())) == 6
    assert Verdict(made, "not measured", "cpu").label == "not measured"
    assert Verdict(made, "not measured").marked.split()[0] not in marked.values()
    table = ledger(source=shelf(rows(30.0, profile="cpu")))
    assert table.verdict.tolist() == ["🔵 indicated at cpu scale"]


def test_a_second_route_stands_beside_the_verdict():
    made = asked(lambda r, scale: Finding(False, "71", second="by another attack 72"))
    source = shelf(rows())
    assert "second route: by another attack 72" in str(verdict(made, source=source))
    assert ledger(source=source)["second route"].tolist() == ["by another attack 72"]
    assert "| second route |" in verdicts(made, source=source).data
    assert "second route" not in verdicts(asked(id="T-2"), source=source).data


def test_other_records_stand_beside_those_that_are_judged():
    def check(r, scale, beside):
        assert set(beside) == {"cpu", "none"}
        return Finding(True, f"{len(beside['cpu'])} rows beside, {len(beside['none'])} of none")

    where = dict(cpu=("toy/growth", "cpu", dict(dose=1.0)), none=("toy/growth", "smoke", {}))
    made = asked(check, beside=where)
    assert verdict(made, source=shelf(rows(), rows(profile="cpu", seeds=1))).ours == "4 rows beside, 0 of none"
    assert made(rows()).measured == "0 rows beside, 0 of none"
    old = rows(profile="cpu").assign(stale=True)
    assert verdict(made, source=shelf(rows(), old)).stale and not verdict(made, source=shelf(rows())).stale


@pytest.mark.parametrize("seeds, splits", [(4, 0), (5, 10), (6, 10)])
def test_the_rate_of_flips_is_that_over_all_splits_of_the_seeds(seeds, splits):
    df = rows(80.0, seeds=seeds)
    df.loc[(df.dose == 1) & (df.seed > 0), "accuracy"] = 95.0  # seed 0 alone has less
    v = verdict(asked(), source=shelf(df))
    assert v.outcome == "fails" and v.flips == (splits, splits), "the part without seed 0 holds, the other fails"
    assert (f"{splits} of {splits} splits of the seeds disagree" in verdicts(v.claim, source=shelf(df)).data) == (
        splits > 0
    )
    sound = verdict(asked(), source=shelf(rows(seeds=seeds)))
    assert sound.flips == (0, splits)
    assert ledger(source=shelf(df)).flips[0] == ""
    assert ledger(source=shelf(df), flips=True).flips[0] == ("10 of 10 splits of the seeds disagree" if splits else "")


def test_an_amendment_shows_with_its_sentence():
    made = asked(amended="the level was 80 before")
    source = shelf(rows())
    assert ledger(source=source).amended.tolist() == ["the level was 80 before"]
    assert ledger(source=source).verdict[0].endswith(", amended")
    for columns in (None, ["claim", "verdict"]):
        assert "amended: the level was 80 before" in verdicts(made, columns=columns, source=source).data


def test_settings_without_common_seeds_cannot_be_compared():
    df = rows(seeds=6)
    apart = df[(df.dose == 0) & (df.seed < 3) | (df.dose == 1) & (df.seed > 1)]
    v = verdict(asked(), source=shelf(apart))
    assert v.outcome == "not measured" and "seeds that all settings share (1 so far)" in v.missing


def test_a_condition_met_only_under_the_defect_is_an_artefact():
    v = verdict(asked(lambda r, scale: Finding(False, "71", only_under="compat='axis'")), source=shelf(rows()))
    assert (v.outcome, v.label, v.ours) == ("artefact", "artefact", "71")
    assert "met only under compat='axis'" in str(v)
    small = asked(lambda r, scale: Finding(False, only_under="x"), condition_cpu="c")
    assert verdict(small, source=shelf(rows(profile="cpu"))).label == "artefact indicated at cpu scale"


def test_a_check_may_say_that_the_records_cannot_tell():
    undecided = asked(lambda r, scale: Finding(None if scale == "paper" else True, "no GPU times"), condition_cpu="c")
    v = verdict(undecided, source=shelf(rows()))
    assert (v.outcome, v.label) == ("not measured", "not measured") and "no GPU times" in str(v)
    assert verdict(undecided, source=shelf(rows(), rows(profile="cpu"))).label == "indicated at cpu scale"


def test_stale_records_are_used_and_marked():
    v = verdict(asked(), source=shelf(rows().assign(stale=lambda d: d.seed == 2)))
    assert v.outcome == "holds" and v.stale and "older than their code" in str(v)
    assert not verdict(asked(), source=shelf(rows())).stale


def test_several_numbers_keep_their_names_and_a_failed_seed_is_reported():
    several = asked(lambda r, scale: Finding(True, values={"a": [1.0, 2.0, 3.0], "b": [1.0, np.nan, 1.0]}, unit="s"))
    v = verdict(several, source=shelf(rows()))
    assert v.means["a"] == 2 and v.spreads["a"] == 1 and v.mean == 2 and np.isnan(v.means["b"])
    assert v.ours == "a: 2.0 ± 1.0, b: nan s (n = 3)"


def test_values_must_come_one_a_seed():
    with pytest.raises(ValueError, match="one number for each of 3 seeds"):
        verdict(asked(lambda r, scale: Finding(True, values=r.accuracy)), source=shelf(rows()))
    with pytest.raises(TypeError, match="must return a Finding"):
        verdict(asked(lambda r, scale: True), source=shelf(rows()))
    with pytest.raises(TypeError, match="`claim` must be a Claim"):
        verdict(better)


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: Finding("yes"), TypeError),
        (lambda: Finding(True, only_under="compat"), ValueError),
        (lambda: Finding(True, values=[[1.0]]), ValueError),
    ],
)
def test_bad_findings_are_refused(make, error):
    with pytest.raises(error):
        make()


# --- writing claims down


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(condition=""), ValueError, "`condition`"),
        (dict(published=""), ValueError, "`published`"),
        (dict(min_seeds=0), ValueError, "`min_seeds`"),
        (dict(where=dict(dose=[])), ValueError, "`where`"),
        (dict(where=dict(seed=[0, 1])), ValueError, "`where`"),
        (dict(wher=dict(dose=1)), TypeError, "wher"),
    ],
)
def test_claims_with_holes_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        asked(**change)
    assert not claims._claims


def test_an_id_stands_for_one_claim_but_may_be_written_down_again():
    first = asked()
    assert asked() is not first and len(claims._claims) == 1
    with pytest.raises(ValueError, match="T-1 of toy is taken by better"):
        asked(lambda r, scale: Finding(True))
    assert len(claims._claims) == 1 and asked(lambda r, scale: Finding(True), paper="other").paper == "other"


def test_the_cpu_runs_may_differ_from_the_papers():
    c = asked(condition_cpu="a gap", where_cpu=dict(dose=[0.0, 1.0], width=4))
    wheres = []
    verdict(c, source=lambda name, profile, where: wheres.append((profile, where["width"])) or pd.DataFrame())
    assert wheres == [("paper", 8), ("cpu", 4)]
    assert "-g width 4" in c.command("cpu") and "-g width 8" in c.command("paper")


def test_the_command_says_what_the_command_line_will_read():
    where = dict(dose=[0.0, 1.0, 1 / 3, 1e-7], width=8, trick=[True, None], name=["a", "b c"])
    words = shlex.split(asked(where=where).command())
    read = {words[i + 1]: parse_grid(words[i + 2]) for i, w in enumerate(words) if w == "-g"}
    assert read == where | dict(width=[8], seed=[0, 1, 2])


def test_the_command_leaves_out_what_is_the_profiles_choice():
    where = dict(width=8, variant=None, compat=False)
    assert "--profile paper -g width 8 -g compat False -g seed" in asked(where=where).command()


def test_the_command_says_whose_experiment_it_is_where_two_papers_have_one_of_that_name():
    assert asked(experiment="metaplasticity/forgetting").command().startswith("robustlit sweep forgetting --profile")
    shared = "sleep/class_incremental"
    assert asked(experiment=shared).command().startswith(f"robustlit sweep {shared} --profile")


def test_a_claim_shows_its_conditions():
    text = asked(condition_cpu="a gap of 5")._repr_markdown_()
    for part in ("More is better", "Fig 1", "0: 10, 1: 90", PARTS["condition"], "a gap of 5", "dose = 0, 1", "3 seeds"):
        assert part in text


# --- the ledger


def test_the_ledger_has_a_row_for_every_claim_in_the_order_of_ids():
    for name in ("T-10", "T-2", "T-1"):
        claim(name, **PARTS)(better)
    table = ledger("toy", source=shelf(rows().assign(stale=True)))
    assert table.claim.tolist() == ["T-1", "T-2", "T-10"]
    assert table.verdict.tolist() == ["🟩 holds*"] * 3 and table.ours[0] == "96.0 ± 1.0 % (n = 3)"
    text = ledger_markdown(table.assign(source="a | b\nc")).splitlines()
    assert len(text) == 5 and r"| a \| b c |" in text[2] and text[2].endswith("-g seed 0:3` |")
    with pytest.raises(ValueError, match="`paper` is unknown: 'tyo'; did you mean 'toy'"):
        ledger("tyo")
    assert [c.id for c in known_claims("toy")] == ["T-1", "T-2", "T-10"]


# --- on a real store


def test_verdicts_come_from_recorded_runs_of_exactly_the_claimed_settings(tmp_path, capsys):
    @experiment(smoke=dict(size=1), cpu=dict(size=2), paper=dict(size=3), group="toy")
    def growth(dose: float = 0.0, width: int = 8, size: int = 1, trick: bool = False, seed: int = 0):
        return pd.DataFrame(dict(accuracy=[20.0 + 70 * dose + seed + 5 * size - 50 * trick]))

    store = Store(tmp_path / "runs", tmp_path / "results")
    c = asked(condition_cpu="a gap of 5")
    assert verdict(c, store).outcome == "not measured"
    for dose, seed in itertools.product((0.0, 1.0), range(3)):
        recorded(growth, "smoke", store=store, dose=dose, seed=seed)
        recorded(growth, "cpu", store=store, dose=dose, seed=seed)
    assert verdict(c, store).label == "indicated at cpu scale"
    for dose, seed in itertools.product((0.0, 1.0), range(4)):
        recorded(growth, "paper", store=store, dose=dose, seed=seed)
        recorded(growth, "paper", store=store, dose=dose, seed=seed, trick=True)
    v = verdict(c, store)
    assert (v.label, v.n, v.mean) == ("holds", 4, 20 + 70 + 1.5 + 15) and not v.stale
    assert verdict(asked(where=PARTS["where"] | dict(trick=True)), store).mean == v.mean - 50
    with pytest.raises(TypeError, match="no parameter `dsoe`"):
        verdict(asked(where=dict(dsoe=1)), store)


def test_a_protocol_that_the_experiment_lacks_has_no_records(tmp_path):
    @experiment(smoke=dict(size=1), cpu=dict(size=2), group="toy")
    def growth(dose: float = 0.0, width: int = 8, size: int = 1, seed: int = 0):
        return pd.DataFrame(dict(accuracy=[1.0]))

    assert verdict(asked(), Store(tmp_path / "runs", tmp_path / "results")).outcome == "not measured"


def test_claims_are_plain_data():
    c = asked()
    assert isinstance(c, Claim) and c(rows(), "paper").passed and "T-1" in repr(c)


# --- statistics


def test_t_interval_matches_scipy_and_a_printed_table():
    v = [91.2, 88.7, 93.1, 90.4]
    low, high = scipy.stats.t.interval(0.9, 3, np.mean(v), scipy.stats.sem(v))
    got = t_interval(v, confidence=0.9)
    assert (got.low, got.high, got.n) == (pytest.approx(low), pytest.approx(high), 4)
    assert f"{got:+.1f}" == f"{got.mean:+.1f} [{got.low:+.1f}, {got.high:+.1f}]" and f"{got}" == str(got)
    assert t_interval([-1.0, 0.0, 1.0]).high == pytest.approx(4.30265 / 3**0.5, abs=1e-5)


def test_one_value_has_no_interval_and_nan_is_kept():
    assert np.isnan(t_interval([5.0]).low) and t_interval([5.0]).mean == 5 and t_interval([5.0]).n == 1
    bad = t_interval([5.0, np.nan, 6.0])
    assert np.isnan([bad.mean, bad.low, bad.high]).all() and bad.n == 2
    assert np.isnan(paired_difference([1.0, np.nan], [0.0, 0.0]).p)
    assert np.isnan(bootstrap_interval([1.0, np.nan]).mean)


def test_paired_differences_match_the_paired_t_test_by_seed():
    a, b = pd.Series([9.0, 7.5, 8.0, 9.9], [0, 1, 2, 3]), pd.Series([8.0, 9.0, 6.1, 7.0], [3, 0, 2, 1])
    got, test = paired_difference(a, b), scipy.stats.ttest_rel(a, b.loc[a.index])
    assert got.p == pytest.approx(test.pvalue) and got.mean == pytest.approx(0.0 + (0 + 0.5 + 1.9 + 1.9) / 4)
    interval = test.confidence_interval(0.95)
    assert (got.low, got.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    back = paired_difference(b, a)
    assert (back.mean, back.low, back.p) == (pytest.approx(-got.mean), pytest.approx(-got.high), pytest.approx(got.p))
    assert paired_difference(dict(a), dict(b)).p == got.p


@pytest.mark.parametrize("a, b", [([1, 2, 3], [0, 1, 2]), ([3.0, 4.0], [3.0, 4.0]), ([0.3, 0.2, 0.1], [0.2, 0.1, 0.0])])
def test_equal_differences_are_no_certainty(a, b):
    got = paired_difference(a, b)
    assert np.isnan([got.p, got.low, got.high]).all() and got.sd == 0 and got.n == len(a)
    assert got.mean == pytest.approx(a[0] - b[0])
    assert np.isnan(equivalence(a, b, 5).p)
    found = pairs_of([("a", 0.0, a)], [("b", 0.0, b)])
    assert differences(found, [("a", "b")]).effect.tolist() == ["not told apart"]
    wider = paired_difference([*a, a[0] + 1e-9], [*b, b[0]])
    assert wider.high > wider.low, "differences that vary in the ninth digit vary"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_numbers_count(bad):
    for got in (t_interval([5.0, bad, 6.0]), paired_difference([5.0, bad, 6.0], [1.0, 1.0, 1.5])):
        assert got.n == 2 and np.isnan([got.low, got.high, got.sd]).all() and not np.isfinite(got.mean)
    both = paired_difference([bad, 1.0, 2.0], [bad, 0.0, 0.5])
    assert np.isnan([both.mean, both.p]).all() and both.n == 2
    assert bootstrap_interval([1.0, bad, 3.0]).n == 2 and np.isnan(bootstrap_interval([1.0, bad, 3.0]).low)
    found = pairs_of([("a", 0.0, [5.0, bad, 6.0])], [("b", 0.0, [1.0, 1.0, 1.5])])
    table = differences(found, [("a", "b")])
    assert table.n[0] == 2 and np.isnan(table.p[0]) and table.effect[0] == "not told apart"


def test_a_failed_run_is_not_averaged_away_within_its_seed():
    found = pairs_of([("a", 0.0, [5.0, 6.0])], [("b", 0.0, [1.0, 1.5])])
    twice = pd.concat([found, found.assign(accuracy=found.accuracy.where(found.index > 0))])
    assert np.isnan(differences(twice, [("a", "b")])["mean"][0])


def test_shares_have_wilsons_interval_at_the_edges_too():
    sure, none = share_interval(20, 20), share_interval(0, 20)
    assert (round(sure.low, 1), sure.high, sure.mean) == (83.9, 100.0, 100.0)
    assert (none.low, round(none.high, 1)) == (0.0, 16.1)
    # R: binom::binom.confint(15, 50, methods = "wilson")
    assert (share_interval(15, 50).low, share_interval(15, 50).high) == pytest.approx((19.10, 43.75), abs=0.01)
    assert share_interval(15, 50).sd == pytest.approx(np.std([100] * 15 + [0] * 35, ddof=1))
    assert bootstrap_interval([100.0] * 20) == sure and bootstrap_interval(np.zeros(20)) == none
    assert np.isnan(share_interval(1, 1).sd) and np.isnan(bootstrap_interval([50.0] * 20).low)
    flat = bootstrap_interval([100.0] * 20, [100.0] * 20)
    assert flat.mean == 0 and np.isnan(flat.low)
    with pytest.raises(ValueError, match="`hits` must be at most"):
        share_interval(21, 20)


def test_no_difference_is_shown_by_two_one_sided_tests():
    a, b = [18.3, 17.0, 19.4, 18.8, 17.9], [18.6, 16.1, 20.0, 18.2, 18.1]
    d = np.subtract(a, b)
    got, low = equivalence(a, b, 2), scipy.stats.ttest_1samp(d, -2, alternative="greater").pvalue
    assert got.p == pytest.approx(max(low, scipy.stats.ttest_1samp(d, 2, alternative="less").pvalue))
    assert (got.low, got.high) == pytest.approx((t_interval(d, 0.9).low, t_interval(d, 0.9).high))
    for margin in (0.3, 0.6, 1.0, 2.0):
        one = equivalence(a, b, margin)
        assert (one.p < 0.05) == (-margin < one.low and one.high < margin)
    assert equivalence(a, np.subtract(b, 5), 2).p > 0.99, "a large difference is no equivalence"
    assert paired_difference(a, b).p > 0.05 and equivalence(a, b, 0.3).p > 0.05, "few seeds show neither"


def test_differences_work_on_anybodys_table():
    theirs = pd.DataFrame(dict(method=list("aaabbb"), fold=list("xyz") * 2, loss=[0.31, 0.28, 0.35, 0.42, 0.37, 0.49]))
    told = dict(on="method", y="loss", by="fold")
    want = scipy.stats.ttest_rel(theirs.loss[:3], theirs.loss[3:])
    for table in (
        theirs,
        theirs.set_index(["method", "fold"]),
        theirs.astype(dict(method="category", fold="category")),
    ):
        got = differences(table.reset_index() if "loss" == table.columns[0] else table, [("a", "b")], **told)
        assert (got.p[0], got.p_holm[0], got.n[0]) == (pytest.approx(want.pvalue), pytest.approx(want.pvalue), 3)
        assert got.effect[0] == "worse"
    assert differences(theirs, [("a", "b")], **told, lower_is_better=True).effect[0] == "better"
    more = pd.concat([theirs.assign(data="p"), theirs.assign(data="q")])
    wide = differences(more, [("a", "b"), ("b", "a")], **told, over=["data"])
    assert wide.data.tolist() == ["p", "q"] * 2 and wide.p_holm[0] == pytest.approx(4 * want.pvalue)
    with pytest.raises(ValueError, match="`by` is unknown: 'seed'"):
        differences(theirs, [("a", "b")], on="method", y="loss")


def test_bootstrap_is_seeded_paired_and_near_the_normal_interval():
    rng = np.random.default_rng(0)
    a = rng.normal(90, 20, 2000)
    b = a - rng.normal(1, 5, 2000)
    got, again, other = (bootstrap_interval(a, b, resamples=2000, seed=s) for s in (1, 1, 2))
    assert got == again and got != other
    d = a - b
    reach = 1.96 * d.std() / 2000**0.5
    assert got.mean == d.mean() and abs(got.low - (d.mean() - reach)) < 0.1 and abs(got.high - (d.mean() + reach)) < 0.1
    alone = bootstrap_interval(a, resamples=2000)
    assert alone.high - alone.low > 2 * (got.high - got.low)


def test_holm_matches_published_values():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.6, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])
    named = holm(pd.Series({"b": 0.04, "a": 0.01}))
    assert named.to_dict() == pytest.approx({"b": 0.04, "a": 0.02})


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: t_interval([]), ValueError, "`values`"),
        (lambda: t_interval([[1.0, 2.0]]), ValueError, "`values`"),
        (lambda: t_interval(["high"]), TypeError, "`values`"),
        (lambda: t_interval([1.0, 2.0], confidence=95), ValueError, "`confidence`"),
        (lambda: t_interval([1.0, 2.0], confidence=1), ValueError, "`confidence`"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), ValueError, "equally long"),
        (lambda: paired_difference({0: 1.0}, {1: 1.0}), ValueError, r"only one side has \[0, 1\]"),
        (lambda: paired_difference({0: 1.0}, [1.0]), TypeError, "both"),
        (
            lambda: paired_difference(pd.Series([1.0, 2.0], [0, 0]), pd.Series([1.0, 2.0], [0, 1])),
            ValueError,
            "several",
        ),
        (lambda: bootstrap_interval([1.0, 2.0], resamples=0), ValueError, "`resamples`"),
        (lambda: bootstrap_interval([1.0, 2.0], seed=-1), ValueError, "`seed`"),
        (lambda: holm([0.5, 1.5]), ValueError, "`pvalues` must lie from 0 to 1, got 1.5"),
        (lambda: holm([0.5, np.nan]), ValueError, "`pvalues`"),
    ],
)
def test_bad_numbers_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


# --- differences and verdicts of a notebook


def pairs_of(a, b):
    parts = [pd.DataFrame(dict(network=n, strength=s, seed=range(len(v)), accuracy=v)) for n, s, v in (*a, *b)]
    return pd.concat(parts, ignore_index=True)


def test_differences_are_scipys_paired_t_with_holm_over_the_table():
    up, same, plain = [91.0, 92.5, 90.2], [80.0, 81.9, 79.9], [80.1, 81.0, 80.0]
    df = pairs_of([("a", 0.0, same), ("a", 0.5, up)], [("b", 0.5, plain), ("b", 0.0, plain)])
    table = differences(df.sample(frac=1, random_state=0), [("a", "b")]).set_index("strength")
    for strength, values in ((0.0, same), (0.5, up)):
        want = scipy.stats.ttest_rel(values, plain)
        got = table.loc[strength]
        assert (got.p, got["mean"]) == pytest.approx((want.pvalue, np.subtract(values, plain).mean()))
        assert (got.low, got.high) == pytest.approx(tuple(want.confidence_interval(0.95)))
    assert table.p_holm[0.5] == pytest.approx(2 * table.p[0.5]) and (table.n == 3).all()
    assert table.effect.to_dict() == {0.0: "not told apart", 0.5: "better"}
    assert worded(table)[0.5].endswith(" *") and not worded(table)[0.0].endswith("*")


def test_one_seed_is_not_told_apart_and_an_empty_table_keeps_its_columns():
    df = pairs_of([("a", 0.0, [9.0])], [("b", 0.0, [1.0])])
    one = differences(df, [("a", "b")])
    assert one.effect[0] == "not told apart" and np.isnan(one.p_holm[0]) and one["mean"][0] == 8
    assert [*differences(df[:0], [("a", "b")])] == [*one]


def test_differences_do_not_mix_profiles_and_refuse_what_cannot_be_paired():
    df = pairs_of([("a", 0.0, [9.0, 8.0])], [("b", 0.0, [1.0, 2.0])])
    both = pd.concat([df.assign(profile="cpu"), df.assign(profile="paper", accuracy=5.0)])
    assert differences(both, [("a", "b")])["mean"].tolist() == [7.0, 0.0]
    with pytest.raises(ValueError, match="same seeds; only one side has"):
        differences(df.drop(index=0), [("a", "b")])
    with pytest.raises(ValueError, match="must have 'b' wherever it has 'a'"):
        differences(pairs_of([("a", 0.5, [1.0])], [("b", 0.0, [1.0])]), [("a", "b")])
    with pytest.raises(ValueError, match="`pairs` must name values of 'network'"):
        differences(df, [("a", "c")])


def test_verdicts_say_the_condition_that_was_judged_and_what_they_rest_on():
    asked(condition_cpu="a gap of 5")
    text = verdicts("T-1", source=shelf(rows(30.0, profile="cpu"))).data
    for part in (
        "More is better",
        "0: 10, 1: 90",
        "31.0 ± 1.0 % (n = 3)",
        "a gap of 5",
        "🔵 indicated at cpu scale",
        "AMD EPYC",
    ):
        assert part in text
    assert "at 1 every seed" in verdicts("toy T-1", source=shelf(rows())).data
    with pytest.raises(ValueError, match="ids"):
        verdicts("T-99", source=shelf(rows()))


def test_answers_say_the_verdict_or_what_the_records_so_far_say():
    asked(condition_cpu="a gap of 5")
    told = lambda *frames: answers({"T-1": "Is more better?"}, source=shelf(*frames)).data
    all_there = told(rows(30.0, profile="cpu"))
    assert all_there.startswith("- **Is more better?** *indicated at cpu scale*: 31.00 [28.52, 33.48] (95%, n = 3)")
    assert "profile cpu, n = 3 seeds" in all_there
    few = told(rows(30.0, profile="cpu", seeds=2, data="mnist"))
    assert "*not measured* on all that the claim speaks of; by records of mnist alone so far: 30.50 [24.15" in few
    assert "*not measured*: some records are there" in told(rows(profile="cpu", doses=(0.0,)))
    assert told(rows(profile="smoke")) == "- **Is more better?** *not measured*"


def test_an_id_of_two_papers_is_asked_back():
    asked(), asked(paper="second")
    with pytest.raises(ValueError, match="say second T-1, toy T-1"):
        verdicts("T-1", source=shelf(rows()))
    assert "holds" in verdicts("second T-1", source=shelf(rows())).data


def test_prediction_interval_holds_new_means_as_often_as_it_says():
    generator = np.random.default_rng(0)
    old, new = generator.normal(5, 2, (4000, 3)), generator.normal(5, 2, (4000, 3)).mean(1)
    held = [(p := prediction_interval(v, runs=3)).low <= m <= p.high for v, m in zip(old, new)]
    one = generator.normal(5, 2, 4000)
    around = [(p := prediction_interval(v, 3, a)).low <= m <= p.high for v, a, m in zip(old, one, new)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012) and np.mean(around) == pytest.approx(0.95, abs=0.012)
    assert np.isnan(prediction_interval([3.0]).low) and prediction_interval([3.0, 3.0], around=1.0).mean == 1
