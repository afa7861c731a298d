"Records: one key a run, nothing lost, nothing half-written, nothing believed that was changed."

import dataclasses
import importlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import robustlit.records as rec
from robustlit.records import (
    DamagedRecord,
    Store,
    adopt,
    canonical,
    confirm,
    experiment,
    find_experiment,
    key_of,
    largest,
    missing,
    pack,
    read_records,
    recorded,
    records,
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
    assert rec._key("metaplasticity/forgetting", 1, bound) == "ba7867ae3ac905a4"


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
    with pytest.raises(ValueError, match="did you mean 'local/slope'"):
        find_experiment("local/slop")
    with pytest.raises(TypeError, match="must be an experiment or its name, got int"):
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

    monkeypatch.setattr(rec.pq, "write_table", half)
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
    assert [p.name for p in store.table_path("local/slope").parent.iterdir()] == ["slope.parquet"]


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
        ("import pandas as pd", "import pandas as pd\nimport robustlit.streams", True),
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
    assert len(records(slope, widths=[(1, 1)])) == 3 and len(records(slope, rate=1.0, seed=7)) == 0
    assert {"rate", "seed", "profile", "stale", "key", "hardware", "commit"} <= set(records(slope, seed=7).columns)


def test_other_versions_do_not_mix():
    recorded(slope)
    newer = types.SimpleNamespace(experiment=dataclasses.replace(slope.experiment, version=3))
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
    monkeypatch.setattr(rec.robustlit, "__file__", str(package / "__init__.py"))
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
    rec._registry.pop(call.experiment.name)
    return call.experiment.name


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
    monkeypatch.setattr(rec.robustlit, "__file__", str(package / "__init__.py"))
    git = lambda *args: subprocess.run(["git", "-C", tmp_path / "repo", *args], check=True, capture_output=True)
    commit = rec.git_commit.__wrapped__
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
