"Records: one key a run, nothing lost, nothing half-written, nothing believed that was changed."

import dataclasses
import importlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import robustlit.experiments as exps
import robustlit.records as rec
import robustlit.store as shop
from robustlit.data import load
from robustlit.digest import note, noting
from robustlit.evaluation import accuracy
from robustlit.models import load_or_train, network_path
from robustlit.records import (
    DamagedRecord,
    ForeignRecord,
    NewerRecord,
    Record,
    Store,
    adopt,
    canonical,
    confirm,
    drop,
    experiment,
    find_experiment,
    key_of,
    largest,
    missing,
    pack,
    read_records,
    recorded,
    records,
    run_table,
    stale_by,
)

calls = []


@experiment(version=2, smoke=dict(n=3), cpu=dict(n=(50, 40)), paper=dict(n=500, rate=1))
def slope(rate: float = 1.0, n: int = 10, widths: tuple = (4, 4), seed: int = 0):
    calls.append((rate, n, widths, seed))
    return pd.DataFrame(dict(x=range(n), y=[rate * i + seed for i in range(n)]))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ROBUSTLIT_RESULTS", str(tmp_path / "results"))
    calls.clear()
    return Store()


def fork(work, n=2):
    "Run `work(i)` in n processes at once."
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(n)

    def go(i):
        gate.wait()
        work(i)

    processes = [context.Process(target=go, args=(i,)) for i in range(n)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(60)
    assert [p.exitcode for p in processes] == [0] * n


# Keys


def test_equal_parameters_are_one_run():
    key = key_of(slope, rate=1, widths=[4, 4])
    assert key == key_of(slope, rate=1.0, widths=(4, 4.0)) == key_of(slope, rate=np.float64(1), n=np.int64(3))
    assert key == key_of(slope, profile="cpu", n=3) == key_of(slope, rate=None)
    others = [dict(rate=2), dict(seed=1), dict(widths=(4,))]
    assert len({key, *(key_of(slope, **o) for o in others)}) == 4


def test_keys_stay_what_they_were():
    bound = dict(meta=1.35, seed=0, widths=[4, 4], data="mnist", flag=True, none=None)
    assert exps._key("metaplasticity/forgetting", 1, bound) == "ba7867ae3ac905a4"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object(), {1: 2}, np.zeros(2), range(3)])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="`rate` must be"):
        recorded(slope, rate=value)
    assert not calls


def test_canonical_is_idempotent():
    value = dict(b=[1.0, (2, 3.5)], a=None, c="x", d=False)
    assert canonical(canonical(value)) == canonical(value) == dict(a=None, b=[1, [2, 3.5]], c="x", d=False)


def test_the_function_sees_one_form_of_each_value():
    recorded(slope, rate=2, widths=[8, 8])
    assert calls == [(2.0, 3, (8, 8), 0)] and type(calls[0][0]) is float


# Refusals


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(TypeError, match="no parameter `rat`; did you mean 'rate'"):
        recorded(slope, rat=1)
    with pytest.raises(TypeError, match="no parameter `wdths`; did you mean 'widths'"):
        records(slope, wdths=1)
    with pytest.raises(ValueError, match="`profile` is unknown: 'papr'; did you mean 'paper'"):
        recorded(slope, profile="papr")
    with pytest.raises(ValueError, match="'local/slope'"):
        find_experiment("local/slop")
    with pytest.raises(TypeError, match="must be a string or an Experiment, got 3"):
        records(3)


def test_a_bad_declaration_is_refused():
    with pytest.raises(TypeError, match="did you mean 'seed'"):
        experiment(smoke=dict(sed=1))(lambda seed=0: None)
    with pytest.raises(TypeError, match="reserved"):
        experiment(smoke=dict(n=1))(lambda n, **rest: None)
    with pytest.raises(TypeError, match="reserved"):
        experiment(smoke=dict(stale=1))(lambda stale=0: None)
    with pytest.raises(ValueError, match="at least one profile"):
        experiment()(lambda seed=0: None)
    with pytest.raises(ValueError, match="`version` must be"):
        experiment(version=0, smoke=dict(seed=1))


@pytest.mark.parametrize(
    "rows, complaint",
    [
        ([1, 2], "must return a DataFrame, got list"),
        (pd.DataFrame(dict(y=[])), "at least one row"),
        (pd.DataFrame(dict(seed=[1])), r"drop or rename \['seed'\]"),
        (pd.DataFrame(dict(hardware=[1])), r"drop or rename \['hardware'\]"),
        (pd.DataFrame({0: [1]}), "distinct names"),
        (pd.DataFrame([[1, 2]], columns=["y", "y"]), "distinct names"),
        (pd.DataFrame(dict(y=[1]), index=pd.Index([3], name="task")), "reset_index"),
        (pd.DataFrame(dict(y=[object()])), "column"),
        (pd.DataFrame(dict(y=[1, "a"])), "column"),
        (pd.DataFrame(dict(y=[pd.Timestamp(0)])), "column `y` must hold numbers"),
    ],
)
def test_bad_rows_leave_no_record(rows, complaint, store):
    @experiment(smoke=dict(seed=0))
    def bad(seed: int = 0):
        return rows

    with pytest.raises((TypeError, ValueError), match=complaint):
        recorded(bad)
    assert store.names() == [] and list(store.runs.rglob("*.*")) == []


# One run, one record


def test_second_call_reads(capsys):
    first, second = recorded(slope, seed=5), recorded(slope, seed=5)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first, second)
    assert "running" in capsys.readouterr().out and first.attrs["key"] == key_of(slope, seed=5)


def test_rows_come_back_as_they_were():
    rows = pd.DataFrame(dict(b=[True, False], i=[1, 2], f=[0.1, np.nan], s=["a", None], v=[[1.5], [2.5, 3.0]]))

    @experiment(smoke=dict(seed=0))
    def kinds(seed: int = 0):
        return rows

    got = recorded(kinds)
    assert got.b.tolist() == [True, False] and got.i.tolist() == [1, 2] and got.s[0] == "a" and pd.isna(got.s[1])
    assert got.f[0] == 0.1 and np.isnan(got.f[1]) and [list(v) for v in got.v] == [[1.5], [2.5, 3.0]]
    pack(kinds, smoke=True)
    pd.testing.assert_frame_equal(got, recorded(kinds))


def test_provenance_is_complete(store):
    recorded(slope, seed=4)
    about = store.find("local/slope", key_of(slope, seed=4)).about
    assert about["seed"] == 4 and about["version"] == 2 and about["threads"] >= 1 and about["peak_mb"] > 10
    assert about["hardware"].startswith("cpu, ") and about["started"].endswith("+00:00") and about["wall_s"] >= 0
    assert all(about[k] for k in ("python", "torch", "numpy", "robustlit", "digest", "checksum"))


def test_force_adds_and_the_newest_counts(store):
    factor = [1]

    @experiment(smoke=dict(seed=0))
    def drifting(seed: int = 0):
        return pd.DataFrame(dict(y=[factor[0]]))

    recorded(drifting)
    before = store.run_paths("local/drifting")[0].read_bytes()
    factor[0] = 2
    assert recorded(drifting).y[0] == 1 and recorded(drifting, force=True).y[0] == 2 == recorded(drifting).y[0]
    assert [p.name.split(".", 1)[1] for p in store.run_paths("local/drifting")] == ["parquet", "2.parquet"]
    assert store.run_paths("local/drifting")[0].read_bytes() == before
    assert read_records(pack(drifting, smoke=True))[0].frame().y.tolist() == [2]


def test_two_processes_make_the_same_record(store):
    fork(lambda i: recorded(slope, seed=9), n=4)
    assert [p.name for p in store.run_paths("local/slope")] == [f"{key_of(slope, seed=9)}.parquet"]
    assert not list(store.runs.rglob("*.tmp"))
    recorded(slope, seed=9)
    assert not calls


def test_interrupted_write_leaves_nothing(store, monkeypatch):
    def half(table, file, **options):
        file.write(b"PAR1 half of it")
        raise OSError("disk full")

    monkeypatch.setattr(shop.pq, "write_table", half)
    with pytest.raises(OSError, match="disk full"):
        recorded(slope)
    assert [p for p in store.runs.rglob("*") if p.is_file()] == []


# Damage


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def overwritten(path):
    content = bytearray(path.read_bytes())
    content[60:90] = b"x" * 30
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def with_other_rows(path):
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.set_column(1, "y", pa.array([9.0] * len(table))), path)


def with_other_parameters(path):
    table = pq.read_table(path, partitioning=None)
    i = table.column_names.index("parameters")
    text = table["parameters"][0].as_py().replace('"seed":0', '"seed":1')
    pq.write_table(table.set_column(i, "parameters", pa.array([text] * len(table))), path)


DAMAGES = [truncated, overwritten, emptied, with_other_rows, with_other_parameters]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_record_is_set_aside_and_run_again(damage, store):
    good = recorded(slope)
    (path,) = store.run_paths("local/slope")
    damage(path)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged.*set aside"):
        again = recorded(slope)
    assert len(calls) == 2 and len(list(path.parent.glob("*.damaged-*"))) == 1
    pd.testing.assert_frame_equal(good, again)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_table_is_named_and_never_replaced(damage, store):
    recorded(slope)
    path = pack(slope, smoke=True)
    damage(path)
    wrong = path.read_bytes()
    store.run_paths("local/slope")[0].unlink()
    with pytest.warns(UserWarning, match="is damaged.*restore it from git"):
        assert missing(slope) == [{}]
    with pytest.raises(DamagedRecord, match=path.name):
        pack(slope, smoke=True)
    assert path.read_bytes() == wrong


# Packing


def test_pack_is_stable_whatever_the_order(store, tmp_path):
    for seed in (2, 0, 1):
        recorded(slope, seed=seed)
    recorded(slope, "cpu")
    first = pack(slope, smoke=True).read_bytes()
    assert pack(slope, smoke=True).read_bytes() == first
    other = Store(tmp_path / "runs2", tmp_path / "results2")
    for path in reversed(store.run_paths("local/slope")):
        adopt(path, other)
    assert pack(slope, other, smoke=True).read_bytes() == first


def test_pack_keeps_what_is_already_there(store):
    recorded(slope, seed=0)
    pack(slope, smoke=True)
    store.run_paths("local/slope")[0].unlink()
    recorded(slope, seed=1)
    path = pack("local/slope", smoke=True)
    assert sorted(r.parameters["seed"] for r in read_records(path)) == [0, 1]
    recorded(slope, seed=0)
    assert len(calls) == 2


def test_two_packs_at_once(store):
    for seed in range(3):
        recorded(slope, seed=seed)
    fork(lambda i: pack(slope, smoke=True), n=3)
    assert len(read_records(store.table_path("local/slope"))) == 3
    assert {p.name for p in store.table_path("local/slope").parent.iterdir()} == {"slope.parquet", "slope.home.json"}


def test_pack_unites_records_of_different_columns(store):
    @experiment(smoke=dict(seed=0))
    def growing(seed: int = 0):
        return pd.DataFrame(dict(y=[1]) if seed == 0 else dict(y=[1.5], extra=["a"]))

    recorded(growing, seed=0), recorded(growing, seed=1)
    before = [r.rows.column_names for r in store.load("local/growing").values()]
    assert [r.rows.column_names for r in read_records(pack(growing, smoke=True))] == before == [["y"], ["y", "extra"]]
    assert records(growing, seed=1).extra.tolist() == ["a"]


def test_nothing_to_pack_is_said():
    with pytest.raises(ValueError, match="local/slope has no records under"):
        pack(slope, smoke=True)


# Records from elsewhere


def test_adopt_files_verified_records_once(store, tmp_path):
    other = Store(tmp_path / "gpu", tmp_path / "none")
    recorded(slope, seed=1, store=other), recorded(slope, seed=2, store=other)
    assert len(adopt(tmp_path / "gpu")) == 2 and len(adopt(tmp_path / "gpu")) == 2
    assert len(store.run_paths("local/slope")) == 2 and missing(slope, "smoke", dict(seed=[1, 2])) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_adopt_takes_nothing_if_one_is_bad(damage, store, tmp_path):
    other = Store(tmp_path / "gpu", tmp_path / "none")
    for seed in (0, 1):
        recorded(slope, seed=seed, store=other)
    damage(other.run_paths("local/slope", key_of(slope))[0])
    with pytest.raises(DamagedRecord):
        adopt(tmp_path / "gpu")
    assert store.names() == []
    with pytest.raises(FileNotFoundError):
        adopt(tmp_path / "nowhere")


# Identity


def named(name, source="return pd.DataFrame(dict(y=[seed]))", parameters="seed: int = 0"):
    "A function of that name, which a test turns into an experiment."
    space = dict(__name__="toys", pd=pd, note=note)
    exec(f"def {name}({parameters}):\n    {source}", space)
    return space[name]


@pytest.fixture
def renamed(store):
    "An experiment with a packed and a fresh record and a confirmation, and the same under another name."
    old = experiment(cpu=dict(seed=(0, 1)))(named("older"))
    recorded(old, "cpu", seed=0)
    pack(old)
    store.run_paths("local/older")[0].unlink()
    recorded(old, "cpu", seed=1)
    told = store.results / "local/older.confirmed.json"
    told.write_text(json.dumps(dict(confirmed=[{"from": "a", "to": "b", "why": "c", "when": "d"}])))
    yield experiment(cpu=dict(seed=(0, 1)), id="local/older")(named("newer"))
    exps._registry.pop("local/newer")


def test_a_renamed_experiment_keeps_its_records_and_pack_moves_the_table(renamed, store, capsys):
    assert renamed.name == "local/newer" and records(renamed).seed.tolist() == [0, 1]
    assert find_experiment("local/older") is renamed
    recorded(renamed, "cpu", seed=1)
    assert "reused" in capsys.readouterr().out
    recorded(renamed, "cpu", seed=1, force=True)
    assert [p.parent.name + p.name[16:] for p in store.run_paths("local/newer")] == ["older.parquet", "newer.2.parquet"]
    before = records(renamed)
    assert pack(renamed) == store.results / "local/newer.parquet"
    assert sorted(p.name for p in (store.results / "local").iterdir()) == ["newer.confirmed.json", "newer.parquet"]
    shutil.rmtree(store.runs)
    pd.testing.assert_frame_equal(records(renamed), before)
    assert rec._told(store, "local/newer")["confirmed"][0]["from"] == "a"


def test_two_experiments_cannot_have_one_id(renamed):
    thief = named("thief")
    thief.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="`id` local/older is taken by local/newer"):
        experiment(smoke=dict(seed=0), id="local/older")(thief)
    for bad in ("older", "../x/y", "a/b/c", "a b/c"):
        with pytest.raises(ValueError, match="`id` must be two words"):
            experiment(smoke=dict(seed=0), id=bad)(named("fine"))


def test_the_cell_of_a_notebook_may_run_beside_its_module(renamed):
    cell = named("newer")
    cell.__module__ = "__main__"
    there = experiment(cpu=dict(seed=(0, 1)), group="beside", id="local/older")(cell)
    assert exps._registry["beside/newer"] is there and "local/newer" not in exps._registry
    exps._register(renamed)  # the module, imported after the cell ran
    assert exps._registry["local/newer"] is renamed and "beside/newer" not in exps._registry


def test_a_name_that_several_papers_have_asks_which(monkeypatch):
    for group in ("one", "two"):
        fn = experiment(smoke=dict(seed=0), group=group)(named("twin"))
        monkeypatch.setitem(exps._registry, f"{group}/twin", fn)
    with pytest.raises(ValueError, match="say 'one/twin' or 'two/twin'"):
        find_experiment("twin")
    assert find_experiment("two/twin").name == "two/twin"


def test_a_later_parameter_changes_no_key_at_its_added_value():
    recorded(experiment(cpu=dict(seed=0))(named("grows")), "cpu")
    later = named("grows", parameters="seed: int = 0, gain: str = 'ones', cut: float | None = None")
    fn = experiment(cpu=dict(seed=0, gain="ones"), added=dict(gain="ones", cut=None))(later)
    recorded(fn, "cpu", gain="zeros"), recorded(fn, "cpu", cut=0.5)
    assert missing(fn, "cpu") == [] == missing(fn, "cpu", dict(gain=["ones", "zeros"]))
    frame = records(fn).set_index("gain")
    assert frame.cut.tolist() == [0.5, None, None] or sorted(frame.cut.dropna()) == [0.5]
    assert len(records(fn, gain="ones")) == 2 and len(records(fn, gain="ones", cut=None)) == 1
    assert frame.profile.loc["zeros"] == "custom" and set(frame.profile.loc["ones"]) == {"cpu"}
    with pytest.raises(TypeError, match="did you mean 'gain'"):
        experiment(cpu=dict(seed=0), added=dict(gian="ones"))(later)


@pytest.mark.parametrize(
    "given, complaint",
    [
        (dict(rate="1.35"), "local/slope: `rate` must be a finite number, got '1.35'"),
        (dict(rate=True), "local/slope: `rate` must be a finite number, got True"),
        (dict(seed=1.5), "local/slope: `seed` must be a whole number, got 1.5"),
        (dict(seed=False), "local/slope: `seed` must be a whole number"),
        (dict(widths=[4]), "local/slope: `widths` must be a list"),
    ],
)
def test_a_value_of_another_kind_is_told(given, complaint):
    "`widths=[4]` asks for runs with a width of 4, which none can have."
    with pytest.raises(TypeError, match=re.escape(complaint)):
        records(slope, **given)
    if "widths" not in given:
        with pytest.raises(TypeError, match=re.escape(complaint)):
            key_of(slope, **given)
    assert len(records(slope, rate=1, seed=2.0)) == 0


# Schemas

SCHEMAS = Path(__file__).with_name("data")


@pytest.fixture
def drifted(store):
    "The experiment whose records the fixture files hold."
    source = "return pd.DataFrame(dict(step=[0, 1], y=[rate * seed, rate + seed], word=['a', None]))"
    yield experiment(version=1, cpu=dict(rate=0.5))(named("drifted", source, "rate: float = 1.0, seed: int = 0"))
    exps._registry.pop("local/drifted")


def with_schema(record, schema):
    "The table of a record as a robustlit of another schema might write it."
    table = record.table()
    table = table.set_column(table.column_names.index("schema"), "schema", pa.array([schema] * len(table)))
    return table.append_column("mood", pa.array(["fine"] * len(table)))


def test_rows_of_older_records_come_with_the_columns_of_now(store):
    "A column is renamed and another comes: records on disk are not touched, and old and new are read alike."
    exps._registry.pop("local/moving", None)
    old = experiment(version=1, cpu=dict(seed=0))(named("moving", "return pd.DataFrame(dict(level=[1, 2], hit=seed))"))
    before = recorded(old, "cpu", seed=1)
    path = store.run_paths("local/moving")[0]
    bits = path.read_bytes()
    now = lambda rows: rows if "unit" in rows else rows.rename(columns=dict(level="strength")).assign(unit="eps")
    source = "return pd.DataFrame(dict(strength=[1, 2], hit=seed, unit='eps'))"
    new = experiment(version=1, cpu=dict(seed=0), upgrade=now)(named("moving", source))
    again, fresh = recorded(new, "cpu", seed=1), recorded(new, "cpu", seed=2)
    assert before.columns.tolist() == ["level", "hit"] and again.columns.tolist() == ["strength", "hit", "unit"]
    assert again.strength.tolist() == before.level.tolist() and fresh.columns.tolist() == again.columns.tolist()
    found = records(new)
    assert "level" not in found and found[["strength", "hit", "unit"]].to_numpy().tolist() == [
        [1, 1, "eps"],
        [2, 1, "eps"],
        [1, 2, "eps"],
        [2, 2, "eps"],
    ]
    pack(new, store)
    assert records(new)[found.columns.drop("stale")].equals(found.drop(columns="stale")) and path.read_bytes() == bits
    assert read_records(store.table_path("local/moving"))[0].rows.column_names == ["level", "hit"]
    exps._registry.pop("local/moving")


@pytest.mark.parametrize("name, seeds", [("schema-1", [0]), ("schema-2", [1]), ("schema-1-and-2", [0, 1])])
def test_records_of_every_schema_are_read(name, seeds, drifted, store):
    found = read_records(SCHEMAS / f"{name}.parquet")
    assert [r.parameters["seed"] for r in found] == seeds
    for r in found:
        seed = r.parameters["seed"]
        first = r.about.get("schema") is None
        assert r.checksum() == r.about["checksum"] and first == (seed == 0) and r.id == "local/drifted"
        assert (r.about.get("uses") is None) == first and (r.about.get("definitions") is None) == first
        assert r.frame().y.tolist() == [0.5 * seed, 0.5 + seed]
    adopt(SCHEMAS / f"{name}.parquet")
    pd.testing.assert_frame_equal(records(drifted), records(drifted, profile="cpu"))
    assert records(drifted).seed.tolist() == [s for s in seeds for _ in range(2)]
    fresh = records(drifted)
    pack(drifted)
    shutil.rmtree(store.runs)
    pd.testing.assert_frame_equal(records(drifted), fresh)
    assert [r.table().equals(q.table()) for r, q in zip(found, read_records(store.table_path("local/drifted")))] == [
        True
    ] * len(seeds)


def test_a_record_of_a_later_schema_is_refused_and_kept(store):
    recorded(slope, "cpu", seed=0), recorded(slope, "cpu", seed=1)
    path = store.run_paths("local/slope", key_of(slope, "cpu", seed=0))[0]
    pq.write_table(with_schema(read_records(path)[0], 3), path)
    content = path.read_bytes()
    newer = r"made by a newer robustlit \(schema 3, this one knows 2\): update robustlit"
    with pytest.raises(NewerRecord, match=newer):
        read_records(path)
    with pytest.raises(NewerRecord, match=newer):
        recorded(slope, "cpu", seed=0)
    with pytest.raises(NewerRecord, match=newer):
        adopt(path)
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of local/slope.*newer robustlit.*left out"):
            assert set(records(slope).seed) == {1}
    with pytest.warns(UserWarning, match="newer"):
        table = pack(slope)
    assert path.read_bytes() == content and len(calls) == 2 and len(read_records(table)) == 1
    assert not list(path.parent.glob("*damaged*"))


def test_rows_of_a_later_schema_stay_in_the_table(store):
    recorded(slope, "cpu", seed=0), recorded(slope, "cpu", seed=1)
    one, two = store.load("local/slope").values()
    path = store.table_path("local/slope")
    path.parent.mkdir(parents=True)
    pq.write_table(pa.concat_tables([with_schema(one, 3), two.table()], promote_options="permissive"), path)
    shutil.rmtree(store.runs)
    recorded(slope, "cpu", seed=2)
    with pytest.warns(UserWarning, match="newer"):
        assert set(records(slope).seed) == {1, 2}
    with pytest.raises(NewerRecord):
        recorded(slope, "cpu", seed=0)
    with pytest.warns(UserWarning, match="newer"):
        pack(slope), pack(slope)
    table = pq.read_table(path, partitioning=None).to_pandas()
    assert set(table.key) == {key_of(slope, "cpu", seed=s) for s in (0, 1, 2)}
    assert set(table[table.schema == 3].mood) == {"fine"} and (table.schema == 3).sum() == len(one)


# What does not fit its place


def changed(record, **about):
    "The record with other provenance and the checksum that goes with it."
    other = Record(record.rows, record.about | about)
    other.about["checksum"] = other.checksum()
    return other


def test_a_record_that_does_not_fit_its_place_is_set_aside_with_the_reason(store):
    recorded(slope, seed=0)
    other = experiment(smoke=dict(seed=0))(named("other"))
    recorded(other)
    record, folder = store.load("local/slope")[key_of(slope)], store.runs / "local/slope"
    shutil.copy(store.run_paths("local/other")[0], folder)
    with pytest.warns(UserWarning, match="is one of local/other, not of local/slope; set aside as .*foreign"):
        assert set(records(slope).key) == {key_of(slope)}
    path = store.run_paths("local/slope")[0]
    path.unlink()
    for wrong in (
        changed(record, version=99),
        changed(record, id="local/other"),
        changed(record, seed=5, parameters='{"seed":5}'),
    ):
        shop._write_run(path, wrong.table())
        with pytest.warns(UserWarning, match="not that of its id, version and parameters; set aside"):
            assert missing(slope) == [{}]
    true_key = exps._key("local/slope", 99, record.parameters)
    shop._write_run(path, changed(record, version=99, key=true_key).table())
    with pytest.warns(UserWarning, match=f"its key is {true_key}"):
        recorded(slope, seed=0)
    assert len(calls) == 2 and len(records(slope)) == 3 and len(list(folder.glob("*.foreign-*"))) == 5


def test_foreign_rows_of_a_table_are_passed_over_and_kept(store):
    recorded(slope, "cpu", seed=0), recorded(slope, "cpu", seed=1)
    good, record = store.load("local/slope").values()
    path = store.table_path("local/slope")
    path.parent.mkdir(parents=True)
    pq.write_table(pa.concat_tables([changed(record, version=99).table(), good.table()]), path)
    shutil.rmtree(store.runs)
    with pytest.warns(UserWarning, match="not that of its id, version and parameters; these rows are passed over"):
        assert set(records(slope).seed) == {0} and missing(slope, "cpu", dict(seed=[1])) == [dict(seed=1)]
    with pytest.warns(UserWarning, match="passed over"):
        pack(slope)
    assert len(read_records(path)) == 2


def test_nothing_is_written_outside_the_store(store, tmp_path):
    recorded(slope)
    record = store.load("local/slope")[key_of(slope)]
    name = "../../x/y"
    bad = changed(record, experiment=name, id=name, key=exps._key(name, 2, record.parameters))
    shop._write_run(tmp_path / "in" / f"{bad.about['key']}.parquet", bad.table())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ForeignRecord, match="is no name of an experiment"):
        adopt(tmp_path / "in")
    assert sorted(tmp_path.rglob("*")) == before
    for work in (store.load, store.table_path, store.run_paths, store.read_path):
        with pytest.raises(ValueError, match="must be two words"):
            work(name)
    with pytest.raises(ValueError):
        pack(name)


def test_a_packed_attempt_of_another_machine_is_not_lost(store):
    recorded(slope, n=3, store=store)
    recorded(slope, n=3, store=store, force=True)
    pack(slope, store, smoke=True)
    (path,) = [p for p in store.run_paths("local/slope") if ".2." in p.name]
    newest = read_records(path)[0].about["checksum"]
    path.unlink()  # as where the table came by git, and only a first attempt was made
    found = lambda: store.find("local/slope", key_of(slope, n=3)).about["checksum"]
    assert found() == newest
    pack(slope, store, smoke=True)
    assert [r.about["checksum"] for r in read_records(store.table_path("local/slope"))] == [newest]
    recorded(slope, n=3, store=store, force=True)
    assert found() != newest


def test_a_run_forced_over_a_packed_one_is_the_newest(store):
    recorded(slope, n=3, store=store)
    pack(slope, store, smoke=True)
    for path in store.run_paths("local/slope"):
        path.unlink()
    recorded(slope, n=3, store=store, force=True)
    (path,) = store.run_paths("local/slope")
    assert store.find("local/slope", key_of(slope, n=3)).about["checksum"] == read_records(path)[0].about["checksum"]


def test_the_highest_attempt_is_the_newest_whatever_the_clock_said(store):
    recorded(slope, seed=0)
    record = store.load("local/slope")[key_of(slope)]
    for started in ("2001-01-01", "2000-01-01"):
        store.write(changed(record, started=started), force=True)
    assert store.find("local/slope", key_of(slope)).about["started"] == "2000-01-01"
    pack(slope, smoke=True)
    for path in store.run_paths("local/slope")[1:]:
        path.unlink()  # the packed one is none of the files that are left
    assert store.find("local/slope", key_of(slope)).about["started"] == "2000-01-01"


# Packing what, and dropping


def test_smoke_runs_are_packed_when_asked_for(store):
    recorded(slope, seed=0)
    with pytest.raises(ValueError, match="no records under .* but 1 of smoke runs"):
        pack(slope)
    recorded(slope, "cpu", seed=0)
    assert len(read_records(pack(slope))) == 1 and len(read_records(pack(slope, smoke=True))) == 2
    assert len(read_records(pack(slope))) == 2  # what is in the table stays


def test_one_odd_record_never_stops_a_pack(store):
    kinds = iter([1, 2, "three", 2**60, 0.5])
    fn = experiment(cpu=dict(seed=tuple(range(5))))(named("odd", "return pd.DataFrame(dict(y=[next(kinds)]))"))
    fn.__wrapped__.__globals__["kinds"] = kinds
    for seed in range(5):
        recorded(fn, "cpu", seed=seed)
    with pytest.warns(UserWarning, match="stays a file of its own: column `y` is of another kind"):
        path = pack(fn)
    assert sorted(r.frame().y[0] for r in read_records(path)) in ([1, 2, 2**60], [0.5, 1, 2])
    assert len(records(fn)) == 5


def test_dropped_records_are_gone_from_files_and_tables(store):
    for seed in (0, 1, 2):
        recorded(slope, "cpu", seed=seed)
    recorded(slope, "cpu", seed=1, force=True)
    pack(slope)
    keys = [key_of(slope, "cpu", seed=s) for s in (0, 1, 2)]
    count = len(list(store.runs.rglob("*.parquet")))
    for bad in ("0", ["nothere"], [keys[0], "f" * 16], "", os.path.commonprefix(keys)):
        with pytest.raises(ValueError, match="nothing was removed"):
            drop(bad)
    assert len(list(store.runs.rglob("*.parquet"))) == count == 4
    assert len(drop([keys[1][:9]])) == 3 and set(records(slope).seed) == {0, 2}
    assert len(read_records(store.table_path("local/slope"))) == 2
    drop([keys[0], keys[2]])
    assert store.names() == []


# The shelf


@pytest.fixture
def shelved(store):
    "Forty fresh records, put on a shelf by a first reading; later ones start from the shelf as a new process would."
    fn = experiment(cpu=dict(seed=tuple(range(40))))(
        named("many", "return pd.DataFrame(dict(y=[seed, 0.5], x=['a', None]))")
    )
    for seed in range(40):
        recorded(fn, "cpu", seed=seed)
    shop._seen.clear()
    before = records(fn)
    shop._seen.clear()
    return fn, before


def opened(monkeypatch):
    "Names of the records' files that are read from now on."
    names, read = [], shop._file_part
    monkeypatch.setattr(shop, "_file_part", lambda path: names.append(path.name) or read(path))
    return names


def test_what_was_verified_is_not_read_again(shelved, store, monkeypatch, capsys):
    fn, before = shelved
    names = opened(monkeypatch)
    pd.testing.assert_frame_equal(records(fn), before)
    assert names == [] and len(records(fn, seed=[3])) == 2
    path = store.run_paths("local/many", key_of(fn, "cpu", seed=7))[0]
    truncated(path)
    shop._seen.clear()
    with pytest.warns(UserWarning, match="damaged"):
        assert len(records(fn)) == 78
    recorded(fn, "cpu", seed=7)
    store.run_paths("local/many", key_of(fn, "cpu", seed=8))[0].unlink()
    shop._seen.clear()
    assert sorted(set(records(fn).seed)) == [s for s in range(40) if s != 8] and set(names) == {path.name}
    pd.testing.assert_frame_equal(
        records(fn, seed=[1, 7]).drop(columns=["started", "wall_s", "peak_mb"]),
        before[before.seed.isin([1, 7])].reset_index(drop=True).drop(columns=["started", "wall_s", "peak_mb"]),
    )


@pytest.mark.parametrize("damage", [truncated, overwritten, emptied, lambda path: path.write_text("{}")])
def test_a_shelf_that_cannot_be_read_is_none(damage, shelved, store, monkeypatch):
    fn, before = shelved
    (shelf,) = (store.runs / "local/many").glob(".shelf-*")
    good = shelf.read_bytes()
    damage(shelf)
    names = opened(monkeypatch)
    pd.testing.assert_frame_equal(records(fn), before)
    assert len(names) == 40 and shelf.read_bytes() == good and store.names() == ["local/many"]


def test_many_processes_may_shelve_at_once(shelved, store):
    fn, before = shelved
    for shelf in (store.runs / "local/many").glob(".shelf-*"):
        shelf.unlink()
    fork(lambda i: pd.testing.assert_frame_equal(records(fn), before), n=3)
    assert len(list((store.runs / "local/many").glob(".*"))) == 1


# Stale


MODULE = """
import pandas as pd
from robustlit.records import experiment

SCALE = 2

def helper(x):
    "Doubles."
    return x * SCALE

@experiment(smoke=dict(seed=0))
def aging(seed: int = 0):
    return pd.DataFrame(dict(y=[helper(seed)]))

def claim(frame):
    return frame.y.mean() > 0
"""


@pytest.fixture
def aging(tmp_path, monkeypatch):
    "Write the module as given, import it afresh, return its experiment."
    monkeypatch.syspath_prepend(tmp_path)

    def write(text=MODULE):
        (tmp_path / "aging.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("aging", None)
        return importlib.import_module("aging").aging

    yield write
    sys.modules.pop("aging", None)


@pytest.mark.parametrize(
    "old, new, stale",
    [
        ('"Doubles."', '"Multiplies by two."', False),
        ("return x * SCALE", "return (x  *  SCALE)  # twice", False),
        ("> 0", "> 1", False),
        ("smoke=dict(seed=0)", "smoke=dict(seed=0), cpu=dict(seed=1)", False),
        ("SCALE = 2", "SCALE = 3", True),
        ("x * SCALE", "SCALE * x", True),
        ("seed: int = 0", "seed: int = 1", True),
        ("import pandas as pd", "import pandas as pd\nimport robustlit.streams", False),
        ("import pandas as pd", "import pandas as pd\nfrom robustlit import checks, records", False),
    ],
)
def test_only_code_that_matters_makes_stale(aging, old, new, stale, capsys):
    fn = aging()
    recorded(fn, seed=0)
    assert records(fn).stale.tolist() == [False]
    fn = aging(MODULE.replace(old, new))
    assert records(fn).stale.tolist() == [stale]
    capsys.readouterr()
    recorded(fn, seed=0)
    assert ("stale" in capsys.readouterr().out) is stale


def test_confirmed_or_run_again_is_not_stale(aging):
    recorded(aging(), seed=0)
    fn = aging(MODULE.replace("x * SCALE", "SCALE * x"))
    assert len(records(fn, stale=False)) == 0
    with pytest.raises(ValueError, match="`why` must say"):
        confirm(fn, " ")
    assert confirm(fn, "same product") == 1 and confirm(fn, "again") == 0
    assert len(records(fn, stale=False)) == 1
    fn = aging(MODULE.replace("x * SCALE", "SCALE * x * 1"))
    assert records(fn).stale.tolist() == [True]
    recorded(fn, seed=0, force=True)
    assert records(fn).stale.tolist() == [False]


def entries(monkeypatch, **digests):
    'Let tables hold these entries: `digits="1"` is datasets/digits with digest 1.'
    now = {f"datasets/{k}": v for k, v in digests.items()}
    look = lambda uses, loaded=False: {f"{t}/{e}": now.get(f"{t}/{e}") for t, e in uses}
    monkeypatch.setattr(rec, "entry_digests", look)
    monkeypatch.setattr(shop, "entry_digests", look)
    monkeypatch.setattr("robustlit.models.entry_digests", look)


@pytest.fixture
def users():
    "An experiment that uses the entry that it is told to."
    source = "note('datasets', data); return pd.DataFrame(dict(y=[1]))"
    return experiment(cpu=dict(seed=0))(named("users", source, "data: str = 'digits', seed: int = 0"))


def test_a_changed_entry_makes_stale_what_used_it_and_confirming_settles_it(users, store, monkeypatch):
    entries(monkeypatch, digits="1", mnist="2")
    recorded(users, "cpu", data="digits"), recorded(users, "cpu", data="mnist")
    assert not records(users).stale.any()
    entries(monkeypatch, digits="1", mnist="3", more="4")
    table = run_table(users)
    assert sorted(table.stale_by) == [(), ("datasets/mnist",)] and sorted(records(users).stale) == [False, True]
    assert confirm(users, "only its home changed") == 1 and not records(users).stale.any()
    entries(monkeypatch, digits="1", mnist="5")
    assert confirm(users, "once more") == 1 and not records(users).stale.any()
    entries(monkeypatch, mnist="5")
    record = store.find("local/users", key_of(users, "cpu"))
    assert stale_by(record) == ["datasets/digits"] and confirm(users, "but it is gone") == 0


def test_a_record_of_the_first_schema_has_its_uses_told(drifted, store, monkeypatch):
    adopt(SCHEMAS / "schema-1-and-2.parquet")
    entries(monkeypatch, digits="0123456789abcdef", mnist="1")
    one, two = (store.find("local/drifted", key_of(drifted, "cpu", seed=s)) for s in (0, 1))
    monkeypatch.setattr(rec, "code_digest", lambda fn, loaded=False: "b" * 16)
    monkeypatch.setattr(rec, "definitions", lambda fn, loaded=False: {"toys.drifted": "1"})
    assert records(drifted).stale.all() and stale_by(one) == ["code that was not noted"]
    assert stale_by(two) == ["local.drifted", "toys.drifted"]
    with pytest.raises(ValueError, match="`uses` must name entries of tables.*datasets/mnits"):
        confirm(drifted, "x", uses=[({}, ["datasets/mnits"])])
    with pytest.raises(TypeError, match="no parameter `sed`"):
        confirm(drifted, "x", uses=[(dict(sed=1), [])])
    rules = [(dict(seed=9), ["datasets/digits"]), (dict(rate=0.5), ["datasets/mnist"]), ({}, [])]
    assert confirm(drifted, "same rows", digests=["not one of them"], uses=rules) == 0
    assert confirm(drifted, "same rows", digests=[one.about["digest"]], uses=rules) == 1
    assert confirm(drifted, "same rows") == 1
    told = json.loads((store.results / "local/drifted.confirmed.json").read_text())
    assert told["uses"][1] == dict(where=dict(rate=0.5), uses={"datasets/mnist": "1"})
    assert told["confirmed"][0] | dict(when="") == {
        "from": one.about["digest"],
        "to": "b" * 16,
        "why": "same rows",
        "when": "",
    }
    assert told["definitions"] == {"b" * 16: {"toys.drifted": "1"}} and not records(drifted).stale.any()
    entries(monkeypatch, digits="0123456789abcdef", mnist="2")
    monkeypatch.setattr(rec, "code_digest", lambda fn, loaded=False: "c" * 16)
    monkeypatch.setattr(rec, "definitions", lambda fn, loaded=False: {"toys.drifted": "2"})
    assert stale_by(one) == ["toys.drifted", "datasets/mnist"] and stale_by(two) == ["toys.drifted"]
    assert confirm(drifted, "a step further") == 2 and not records(drifted).stale.any()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        "[1]",
        '{"confirmed": 1}',
        '{"confirmed": [{"from": 1, "to": "a", "why": ""}]}',
        '{"uses": [[]]}',
        '{"definitions": [1]}',
    ],
)
def test_a_damaged_file_of_confirmations_counts_as_none(text, store):
    recorded(slope, "cpu", seed=0)
    path = store.results / "local/slope.confirmed.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.warns(UserWarning, match="slope.confirmed.json is damaged.*no confirmation in it counts"):
        assert len(records(slope)) == 50
    with pytest.raises(DamagedRecord, match="restore it from git"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        confirm(slope, "why not")
    assert path.read_text() == text


def test_the_first_form_of_confirmations_is_read(aging, store):
    recorded(aging(), seed=0)
    fn = aging(MODULE.replace("x * SCALE", "SCALE * x"))
    (record,) = store.load("local/aging").values()
    told = [dict(record_digest=record.about["digest"], code_digest=rec.code_digest(fn.function), why="a", when="b")]
    (store.results / "local").mkdir(parents=True)
    (store.results / "local/aging.confirmed.json").write_text(json.dumps(told))
    assert not records(fn).stale.any()


def test_a_filed_network_carries_what_its_training_used(monkeypatch, tmp_path):
    trained, path = [], tmp_path / "net.pt"

    def train(net):
        trained.append(1)
        note("datasets", "digits")

    def load():
        with noting() as used:
            load_or_train(torch.nn.Linear(1, 1), train, path)
        return used

    entries(monkeypatch, digits="1")
    assert load() == load() == {("datasets", "digits")} and len(trained) == 1
    entries(monkeypatch, digits="2")
    assert load() == load() == {("datasets", "digits")} and len(trained) == 2
    torch.save(torch.nn.Linear(1, 1).state_dict(), path)  # as it was filed before
    assert load() == set() and len(trained) == 2


# Reading


def test_profile_is_the_largest_that_fits():
    for n in (3, 50, 40, 500, 7):
        recorded(slope, n=n)
    recorded(slope, n=500, rate=2)
    got = records(slope).drop_duplicates("key").set_index(["n", "rate"]).profile.to_dict()
    assert got == {
        (3, 1): "smoke",
        (50, 1): "cpu",
        (40, 1): "cpu",
        (500, 1): "paper",
        (7, 1): "custom",
        (500, 2): "custom",
    }
    assert set(records(slope, profile="cpu").n) == {40, 50} and set(largest(records(slope)).n) == {500}


def test_rows_stand_beside_their_parameters():
    for seed in range(3):
        recorded(slope, seed=seed, widths=(seed, 1))
    frame = records(slope, seed=[0, 2])
    assert frame.groupby("seed").y.sum().to_dict() == {0: 3, 2: 9} and set(frame.widths) == {(0, 1), (2, 1)}
    assert len(records(slope, widths=[(1, 1)])) == 3
    with pytest.warns(UserWarning, match="`seed` = 7; recorded are 0, 1, 2"):
        none = records(slope, rate=1.0, seed=7)
    assert len(none) == 0
    assert {"rate", "seed", "profile", "stale", "key", "hardware", "commit"} <= set(none.columns)


@experiment(smoke=dict())
def loose(meta=1.35, seed=0):
    "Without annotations: any value may be asked for."
    return pd.DataFrame(dict(y=[meta]))


@pytest.mark.parametrize(
    "where, why",
    [
        (dict(meta="1.35"), "no record of local/loose has `meta` = '1.35'; recorded are 0, 1.35"),
        (dict(meta=["0", True], seed=1), r"`meta` = \['0', True\]; recorded are 0, 1.35"),
        (dict(meta=0, seed=1), "no record of local/loose has all of meta=0, seed=1"),
    ],
)
def test_what_finds_nothing_says_what_there_is(where, why, recwarn):
    recorded(loose, meta=1.35, seed=1), recorded(loose, meta=0, seed=2)
    with pytest.warns(UserWarning, match=why):
        assert len(records(loose, **where)) == 0


def test_an_empty_store_and_a_query_that_finds_are_silent(recwarn):
    assert len(records(loose, meta=3)) == 0
    recorded(loose, seed=1)
    assert len(records(loose, seed=[1, 2])) == 1 and not recwarn.list


def test_other_versions_do_not_mix():
    recorded(slope)
    newer = dataclasses.replace(slope, version=3)
    assert len(records(newer)) == 0 and len(records(newer, version=2)) == 3


def test_missing_lists_the_grid_that_is_left():
    recorded(slope, seed=1, rate=2)
    left = missing(slope, "smoke", dict(rate=[1, 2], seed=range(2)))
    assert left == [dict(rate=1, seed=0), dict(rate=1, seed=1), dict(rate=2, seed=0)]
    with pytest.raises(TypeError, match="`grid` must give each parameter a list"):
        missing(slope, "smoke", dict(seed=1))


# Places


def test_project_folder_is_the_nearest_with_results(tmp_path, monkeypatch):
    inner = tmp_path / "project" / "nbs" / "deep"
    inner.mkdir(parents=True)
    for name in ("ROBUSTLIT_RUNS", "ROBUSTLIT_RESULTS"):
        monkeypatch.delenv(name)
    monkeypatch.chdir(inner)
    assert Store().runs == inner / "runs"
    (tmp_path / "project" / "results").mkdir()
    assert Store().runs == tmp_path / "project" / "runs" and Store(runs="here").runs == inner / "here"


def test_outside_a_project_the_packages_tables_are_read(tmp_path, monkeypatch, store):
    recorded(slope, seed=1)
    table = pack(slope, smoke=True)
    package = tmp_path / "site-packages" / "robustlit"
    (package / "results" / "local").mkdir(parents=True)
    table.rename(package / "results" / "local" / table.name)
    shutil.rmtree(store.results)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("ROBUSTLIT_RUNS", "ROBUSTLIT_RESULTS"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(shop.robustlit, "__file__", str(package / "__init__.py"))
    assert records(slope).seed.unique().tolist() == [1] and Store().names() == ["local/slope"]
    recorded(slope, seed=1), recorded(slope, seed=2)
    assert len(calls) == 2 and pack(slope, smoke=True) == tmp_path / "elsewhere" / "results" / "local" / "slope.parquet"
    assert set(records(slope).seed) == {1, 2} and len(list(package.rglob("*.parquet"))) == 1


def in_notebook(name, **names):
    "A function as a notebook's cell defines it, with what else stands in the notebook."
    space = dict(__name__="__main__", pd=pd, **names)
    exec(f"def {name}(seed: int = 0):\n    return pd.DataFrame(dict(y=[1]))", space)
    return space[name]


def name_of(fn):
    call = experiment(smoke=dict(seed=0))(fn)
    exps._registry.pop(call.name)
    return call.name


def test_a_notebooks_function_belongs_to_the_paper_that_its_default_exp_names(tmp_path, monkeypatch):
    "Although `forgetting` is a module of one paper."
    page = tmp_path / "nbs" / "12_forgetting.ipynb"
    page.parent.mkdir()
    cell = dict(cell_type="code", source=["#| default_exp other.forgetting"])
    page.write_text(json.dumps(dict(cells=[dict(cell_type="markdown", source=["# x"]), cell])))
    ran = ["", "#| default_exp sleep.forgetting", "1 + 1"]
    assert name_of(in_notebook("forgetting", In=ran)) == "sleep/forgetting"
    assert name_of(in_notebook("toy", In=ran)) == "local/toy"
    assert name_of(in_notebook("forgetting", In=[""])) == "local/forgetting"
    assert name_of(in_notebook("forgetting", In=[""], __vsc_ipynb_file__=str(page))) == "other/forgetting"
    monkeypatch.setenv("ROBUSTLIT_NOTEBOOK", str(page))
    assert name_of(in_notebook("forgetting", In=[""])) == "other/forgetting"
    assert name_of(in_notebook("forgetting")) == "local/forgetting"  # a script
    monkeypatch.delenv("ROBUSTLIT_NOTEBOOK")
    monkeypatch.chdir(page.parent)
    assert name_of(in_notebook("forgetting", In=[""])) == "other/forgetting"


def test_commit_is_that_of_the_package(tmp_path, monkeypatch):
    package = tmp_path / "repo" / "robustlit"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(shop.robustlit, "__file__", str(package / "__init__.py"))
    git = lambda *args: subprocess.run(["git", "-C", tmp_path / "repo", *args], check=True, capture_output=True)
    commit = shop.git_commit.__wrapped__
    assert commit() is None
    git("init", "-q")
    assert commit() is None  # a repository, but not the package's
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")
    clean = commit()
    assert len(clean) == 12
    (package / "new.py").write_text("")
    assert commit() == f"{clean}-dirty"


def test_no_warning_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded(slope), recorded(slope, "cpu"), pack(slope, smoke=True), records(slope), recorded(slope)


def test_what_a_run_looked_up_is_in_its_record_and_in_the_name_of_a_network(store, monkeypatch):
    fn = named("looks", "return pd.DataFrame(dict(n=[len(load(data).y_test)]))", "data: str = 'digits', seed: int = 0")
    fn.__globals__["load"] = load
    recorded(experiment(cpu=dict(seed=0))(fn), "cpu")
    (record,) = store.load("local/looks").values()
    used = json.loads(record.about["uses"])
    assert re.fullmatch("[0-9a-f]{16}", used["datasets/digits"]) and stale_by(record) == []
    path = network_path(accuracy, dict(data="digits"))
    assert path == network_path(accuracy, dict(data="digits")) != network_path(accuracy, dict(data="mnist"))
    entries(monkeypatch, digits="1")
    assert network_path(accuracy, dict(data="digits")) != path


def test_a_stores_records_are_known_by_name_alone(tmp_path):
    "Also where the experiment was renamed, and nobody has imported it yet."
    ask = "import warnings; warnings.simplefilter('error'); from robustlit.records import Store; s = Store()\n"
    ask += "print(sum(len(s.load(name)) for name in s.names()))"
    root = Path(rec.__file__).parents[1]
    env = dict(os.environ, ROBUSTLIT_RUNS=str(tmp_path), ROBUSTLIT_RESULTS=str(root / "results"))
    done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True)
    rows = [pq.read_table(p, columns=["key"], partitioning=None) for p in (root / "results").glob("*/*.parquet")]
    assert done.stdout.split() == [str(len({k for t in rows for k in t["key"].to_pylist()}))], done.stderr
