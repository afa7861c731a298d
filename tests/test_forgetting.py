"The forgetting experiment: tidy rows, the same numbers from the same seed, and the effect itself on small digits."

import pandas as pd
import pytest
import torch

from robustlit.metaplasticity.forgetting import final_accuracy, forgetting

SMALL = dict(data="digits", n_tasks=2, width=32, epochs=2, batch_size=50)


@pytest.fixture(scope="module")
def rows():
    torch.set_num_threads(1)
    return forgetting(seed=3, **SMALL)


def test_every_observation_has_one_row(rows):
    test, train = rows[rows.split == "test"], rows[rows.split == "train"]
    assert not test.duplicated(["after", "on", "statistics", "bn"]).any()
    assert len(test) == 3 * 4 and (test.on <= test.after).all()
    assert train[["after", "epoch"]].to_numpy().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert rows.accuracy.between(0, 100).all() and rows.notna().all().all()


def test_the_newest_task_has_its_own_batch_norm_as_the_last_one(rows):
    newest = rows[(rows.split == "test") & (rows.on == rows.after)]
    own, last = (newest[newest.bn == bn].accuracy.to_numpy() for bn in ("own", "last"))
    assert (own == last).all()


def test_a_seed_fixes_every_number(rows):
    torch.rand(7)
    pd.testing.assert_frame_equal(rows, forgetting(seed=3, **SMALL))


def test_seeds_are_paired_across_conditions():
    first = {m: forgetting(seed=5, meta=m, **SMALL | dict(epochs=1, n_tasks=1)) for m in (0.0, 1e-9)}
    pd.testing.assert_frame_equal(*first.values())


def test_final_accuracy_reads_one_way_of_testing(rows):
    df = rows.assign(meta=1.35, width=32, epochs=2, gamma_init="ones", seed=3, n_tasks=2)
    end = final_accuracy(df, "recalibrated", "last")
    want = rows.query("split == 'test' and after == 2 and statistics == 'recalibrated' and bn == 'last'")
    assert end.accuracy.tolist() == want.accuracy.tolist() and end.on.tolist() == [1, 2]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(n_tasks=0), "`n_tasks`"),
        (dict(epochs=0), "`epochs`"),
        (dict(width=-1), "`width`"),
        (dict(meta=-0.5), "`meta`"),
        (dict(network="spiking"), "`network` is unknown"),
        (dict(gamma_init="zeros"), "`gamma_init` is unknown"),
        (dict(data="digit"), "did you mean 'digits'"),
    ],
)
def test_bad_parameters_are_refused_by_name(options, message):
    with pytest.raises(ValueError) as e:
        forgetting(**SMALL | options)
    assert message in str(e.value)
