"Streams of tasks and the numbers that say what is left of them."

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from robustlit.data import Dataset
from robustlit.streams import (
    AccuracyMatrix,
    Task,
    pair,
    permuted,
    rotated,
    split,
    stability_gap,
    subsets,
    switch_drops,
    vehicles_and_animals,
)

CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (60, 3, 4, 6), generator=g, dtype=torch.uint8)
    y = torch.arange(60) % 10
    return Dataset("toy", x[:40], y[:40], x[:0], y[:0], x[40:], y[40:], tuple(CIFAR))


# --- tasks


def test_permuted_tasks_share_the_images(data):
    tasks = permuted(data, 3, seed=1)
    assert all(t.x_train.data_ptr() == data.x_train.data_ptr() for t in tasks)
    assert all(t.y_test.data_ptr() == data.y_test.data_ptr() for t in tasks)
    assert sum(t.permutation.numel() for t in tasks) == 3 * 24


def test_a_permutation_moves_pixels_alike_in_every_channel_in_training_and_test(data):
    task = permuted(data, 1)[0]
    xb, yb = next(iter(task.test_batches(7)))
    want = (data.x_test[:7].float() / 255).flatten(2)[..., task.permutation].view(7, 3, 4, 6)
    assert torch.equal(xb, want) and torch.equal(yb, data.y_test[:7])
    xb, _ = next(iter(task.train_batches(40)))
    back = torch.empty_like(xb.flatten(2))
    back[..., task.permutation] = xb.flatten(2)
    seen = sorted(map(tuple, (back * 255).round().flatten(1).tolist()))
    assert seen == sorted(map(tuple, data.x_train.float().flatten(1).tolist()))


def test_permutations_depend_on_the_seed_alone_and_more_tasks_keep_the_first(data):
    few, many = permuted(data, 2, seed=3), permuted(data, 5, seed=3)
    assert all(torch.equal(a.permutation, b.permutation) for a, b in zip(few, many))
    assert not torch.equal(few[0].permutation, few[1].permutation)
    assert not torch.equal(few[0].permutation, permuted(data, 1, seed=4)[0].permutation)


def test_all_tasks_are_permuted_unless_the_first_is_asked_to_be_the_original(data):
    assert all(t.permutation is not None for t in permuted(data, 3))
    first, second, _ = permuted(data, 3, first_identity=True)
    assert first.permutation is None and second.permutation is not None


def test_shuffling_follows_the_generator(data):
    task = permuted(data, 1)[0]
    orders = [[yb.tolist() for _, yb in task.train_batches(7, torch.Generator().manual_seed(s))] for s in (5, 5, 6)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(sum(orders[2], [])) == sorted(data.y_train.tolist())


@pytest.mark.parametrize("angle", [90, 180, -90, 20, -37.5])
def test_rotation_is_that_of_an_independent_library(angle):
    x = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    x[:, :, 5:11, 6:10] = torch.arange(24).view(6, 4).byte() * 10
    y = torch.tensor([0, 1])
    task = rotated(Dataset("bars", x, y, x[:0], y[:0], x, y, ("a", "b")), [0, angle])[1]
    want = ndimage.rotate(x.numpy().astype(float), angle, axes=(3, 2), reshape=False, order=1)
    assert np.abs(task.x_train.numpy() - want).max() <= 0.51
    assert torch.equal(task.x_train, task.x_test)


def test_split_hands_out_every_image_once(data):
    tasks = split(data, 3)
    assert [t.classes for t in tasks] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9,)]
    assert sum(len(t.x_train) for t in tasks) == 40 and sum(len(t.x_test) for t in tasks) == 20
    for t in tasks:
        assert set(t.y_train.tolist()) == set(t.y_test.tolist()) == set(t.classes)
    odd = split(data, [["dog", 0]])[0]
    assert torch.equal(odd.x_train, data.x_train[(data.y_train == 5) | (data.y_train == 0)])
    relabelled = split(data, [["dog", 0]], relabel=True)[0]
    assert torch.equal(relabelled.y_train, (odd.y_train == 0).long()) and relabelled.classes == (0, 1)


def test_the_horse_is_an_animal_unless_compat_says_vehicle(data):
    for compat, where in ((False, 1), (True, 0)):
        tasks = vehicles_and_animals(data, compat=compat)
        assert [t.name for t in tasks] == ["vehicles", "animals"]
        assert [7 in t.classes for t in tasks] == [where == 0, where == 1]
        assert sorted(tasks[0].classes + tasks[1].classes) == list(range(10))


def test_pairs_come_in_either_order_and_must_have_one_shape(data):
    other = Dataset(
        "other", *(getattr(data, f"{a}_{p}") for p in ("test", "valid", "train") for a in "xy"), data.classes
    )
    assert [t.name for t in pair(other, data)] == ["other", "toy"]
    small = Dataset("small", data.x_train[..., :3], data.y_train, data.x_valid[..., :3], data.y_valid,
                    data.x_test[..., :3], data.y_test, data.classes)  # fmt: skip
    with pytest.raises(ValueError, match=r"`second` must have images of shape \(3, 4, 6\)"):
        pair(data, small)


def test_subsets_deal_out_one_fixed_permutation(data):
    tasks = subsets(data, 7, seed=2)
    assert {len(t.x_train) for t in tasks} == {5, 6}
    dealt = torch.cat([t.x_train for t in tasks])
    whole = subsets(data, 1, seed=2)[0]
    assert torch.equal(dealt, whole.x_train) and not torch.equal(dealt, data.x_train)
    assert sorted(map(tuple, dealt.flatten(1).tolist())) == sorted(map(tuple, data.x_train.flatten(1).tolist()))
    assert {t.x_train.untyped_storage().data_ptr() for t in tasks} == {tasks[0].x_train.untyped_storage().data_ptr()}
    assert all(t.x_test.data_ptr() == data.x_test.data_ptr() for t in tasks)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda d: permuted(d, 0), ValueError, "`n_tasks` must be a whole number >= 1"),
        (lambda d: permuted(d, 2, seed=-1), ValueError, "`seed`"),
        (lambda d: permuted("mnist", 2), TypeError, "`data` must be a Dataset"),
        (lambda d: rotated(d, []), ValueError, "`angles`"),
        (lambda d: rotated(d, 30), TypeError, "`angles`"),
        (lambda d: rotated(d, [float("nan")]), ValueError, "`angles`"),
        (lambda d: split(d, 0), ValueError, "`groups`"),
        (lambda d: split(d, [[0, 1], [1]]), ValueError, "disjoint"),
        (lambda d: split(d, [[10]]), ValueError, "`groups` must be a whole number from 0 to 9"),
        (lambda d: split(d, [["dgo"]]), ValueError, "did you mean 'dog'"),
        (lambda d: split(d, "dog"), TypeError, "`groups`"),
        (lambda d: split(d, []), ValueError, "not empty"),
        (lambda d: subsets(d, 41), ValueError, "`n` must be a whole number from 1 to 40"),
        (lambda d: Task("t", d.x_train / 255, d.y_train, d.x_test, d.y_test), TypeError, "uint8"),
        (lambda d: Task("t", d.x_train, d.y_train[:3], d.x_test, d.y_test), ValueError, "40 labels"),
        (lambda d: Task("t", d.x_train, d.y_train, d.x_test[..., :2], d.y_test), ValueError, "`x_test`"),
        (lambda d: Task("t", d.x_train, d.y_train, d.x_test, d.y_test, torch.arange(9)), ValueError, "`permutation`"),
        (lambda d: permuted(d, 1)[0].train_batches(0), ValueError, "`batch_size`"),
    ],
)
def test_bad_input_is_refused_by_name(data, call, error, words):
    with pytest.raises(error, match=words):
        call(data)


# --- the accuracy matrix


R = np.array([[90.0, 20, 10], [95, 80, 30], [60, 70, 85]])


def test_metrics_are_those_of_the_papers_written_out():
    M, T = AccuracyMatrix(R, untrained=[10, 12, 8]), 3
    assert M.acc == pytest.approx(sum(R[T - 1, j] for j in range(T)) / T)
    assert M.bwt == pytest.approx(sum(R[T - 1, j] - R[j, j] for j in range(T - 1)) / (T - 1))
    assert M.fwt == pytest.approx(((20 - 12) + (30 - 8)) / 2)
    assert M.forgetting == pytest.approx(((95 - 60) + (80 - 70)) / 2)
    assert M.learning_accuracy == pytest.approx((90 + 80 + 85) / 3)


def test_forgetting_counts_from_the_best_and_bwt_from_the_diagonal():
    M = AccuracyMatrix([[50, np.nan, np.nan], [90, 70, np.nan], [60, 70, 80]])
    assert (M.bwt, M.forgetting) == (5, 15)


def test_one_task_forgets_nothing():
    M = AccuracyMatrix([[90]])
    assert (M.acc, M.bwt, M.forgetting, M.learning_accuracy) == (90, 0, 0, 90)


def test_forward_transfer_needs_the_untrained_network_and_tests_ahead():
    with pytest.raises(ValueError, match="needs `untrained`"):
        print(AccuracyMatrix(R).fwt)
    late = R.copy()
    late[0, 1] = np.nan
    M = AccuracyMatrix(late, untrained=[10, 10, 10])
    with pytest.raises(ValueError, match="tested before it is learned"):
        print(M.fwt)
    assert "fwt" not in M.summary() and "FWT" not in repr(M)
    assert "fwt" in AccuracyMatrix(R, untrained=[10, 10, 10]).summary()


def tidy(order=0, start=True):
    rows = [dict(after=i + 1, on=j + 1, accuracy=R[i, j]) for i in range(3) for j in range(3)]
    rows += [dict(after=0, on=j + 1, accuracy=float(j)) for j in range(3)] if start else []
    return pd.DataFrame(rows).sample(frac=1, random_state=order)


def test_tidy_rows_in_any_order_make_the_same_matrix():
    for order in range(3):
        M = AccuracyMatrix.from_frame(tidy(order))
        assert np.array_equal(M.R, R) and M.untrained.tolist() == [0, 1, 2]
    assert AccuracyMatrix.from_frame(tidy(start=False)).untrained is None
    wide = AccuracyMatrix(R).to_frame()
    assert (wide.index.name, wide.columns.name) == ("after", "on") and wide.loc["task 3", "task 1"] == 60


def test_named_tasks_keep_their_order_and_ten_comes_after_two():
    names = [f"t{k}" for k in range(1, 12)]
    rows = [dict(after=a, on=b, accuracy=i + j / 100) for i, a in enumerate(names) for j, b in enumerate(names)]
    M = AccuracyMatrix.from_frame(pd.DataFrame(rows))
    assert M.names == names and M.R[10, 1] == 10.01


def test_unmeasured_pairs_above_the_diagonal_are_nan():
    M = AccuracyMatrix.from_frame(tidy(start=False).query("on <= after"))
    assert np.isnan(M.R[0, 2]) and M.acc == pytest.approx(215 / 3)
    assert "|  |" in M._repr_markdown_()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: AccuracyMatrix(R[:2]), "square"),
        (lambda: AccuracyMatrix(R * 2), "percent from 0 to 100"),
        (lambda: AccuracyMatrix(R - 20), "percent from 0 to 100"),
        (lambda: AccuracyMatrix([[90, 1], [np.nan, 90]]), "known on every task"),
        (lambda: AccuracyMatrix(R, names=["a", "b"]), "`names`"),
        (lambda: AccuracyMatrix(R, names=["a", "b", "b"]), "`names`"),
        (lambda: AccuracyMatrix(R, untrained=[10]), "`untrained`"),
        (lambda: AccuracyMatrix.from_frame(pd.concat([tidy(), tidy()])), "one row for each pair"),
        (lambda: AccuracyMatrix.from_frame(tidy().query("on < 3")), "same tasks"),
        (lambda: AccuracyMatrix.from_frame(tidy().query("after < 3")), "same tasks"),
        (lambda: AccuracyMatrix.from_frame(tidy(), value="acuracy"), "did you mean 'accuracy'"),
    ],
)
def test_bad_matrices_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_markdown_table_names_both_axes():
    text = AccuracyMatrix(R)._repr_markdown_()
    assert text.startswith("| after | on task 1 | on task 2 | on task 3 |")
    assert "| **task 3** | 60.00 | 70.00 | 85.00 |" in text and "BWT -20.00" in text


# --- the stability gap


def three_tasks():
    on_1 = [95, 90, 30, 50, 80, 70, 20, 60]
    on_2 = [10, 10, 60, 85, 88, 40, 35, 75]
    on_3 = [9, 9, 9, 9, 9, 50, 80, 90]
    learning = [1, 1, 2, 2, 2, 3, 3, 3]
    rows = [
        dict(step=10 * s, learning=k, on=j, accuracy=acc[s])
        for j, acc in enumerate((on_1, on_2, on_3), 1)
        for s, k in enumerate(learning)
    ]
    return pd.DataFrame(rows)


def test_worst_case_metrics_are_those_of_the_paper_written_out():
    got = stability_gap(three_tasks().sample(frac=1, random_state=0))
    lowest = (20 + 35) / 2
    assert got["min_acc"] == pytest.approx(lowest)
    assert got["worst_case_acc"] == pytest.approx(90 / 3 + (1 - 1 / 3) * lowest)
    assert got["gap"] == pytest.approx(((90 - 30) + (80 - 20) + (88 - 35)) / 3)


def test_drops_name_each_switch_and_old_task():
    drops = switch_drops(three_tasks())
    assert drops[["learning", "on"]].to_numpy().tolist() == [[2, 1], [3, 1], [3, 2]]
    assert drops.loc[0, ["before", "lowest", "step", "end", "drop", "recovered"]].tolist() == [90, 30, 20, 80, 60, 50]


def test_the_metrics_stop_at_the_newest_task_learned():
    two = three_tasks().query("learning <= 2")
    assert stability_gap(two)["worst_case_acc"] == pytest.approx(88 / 2 + 30 / 2)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.drop(columns="on"), "lacks"),
        (lambda t: t.query("learning == 1"), "while a later one is learned"),
        (lambda t: pd.concat([t, t]), "one row for each step"),
        (lambda t: t.assign(accuracy=t.accuracy * 2), "percent"),
        (lambda t: t.assign(learning=4 - t.learning), "one after the other"),
        (lambda t: t.query("not (on == 1 and learning == 1)"), "test task 1 before task 2"),
        (lambda t: t.query("on < 3"), "test task 3 while it is learned"),
    ],
)
def test_bad_traces_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        stability_gap(change(three_tasks()))
