"The command line: what it refuses, what it keeps when a run fails or is killed, and that it goes on from there."

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from robustlit.command import main
from robustlit.digest import code_digest
from robustlit.execution import own_kernel
from robustlit.records import Store, _refuse_lost_parameters, read_records, records
from robustlit.sweeps import (
    _defaults_of,
    _duration,
    _expected,
    find_notebook,
    notebooks,
    open_notebook,
    parse_grid,
    parse_value,
    plan,
)

MODULE = """
import os, time
from pathlib import Path
from types import SimpleNamespace
import pandas as pd
from robustlit.records import experiment

@experiment(smoke=dict(size=2), cpu=dict(size=5))
def tiny(level: float = 1.0, size: int = 3, seed: int = 0):
    here = Path(os.environ["TINY"])
    with open(here / "started", "a") as f:
        f.write(f"{seed} {os.getpid()}\\n")
    if level < 0:
        raise ValueError(f"`level` must be >= 0, got {level}")
    until = time.monotonic() + 200
    while seed and (here / "hold").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return pd.DataFrame(dict(y=[level * i for i in range(size)], cores=int(os.environ["OMP_NUM_THREADS"])))
"""

CELLS = [
    ("#| default_exp tiny", None),
    ("from robustlit.records import recorded\nfrom tiny import tiny", None),
    ('profile: str = "smoke"\nlevel: float = None\nseed: int = 0', "parameters"),
    ("#| eval: false\nraise SystemError('never run')", None),
    ("rows = recorded(tiny, profile=profile, level=level, seed=seed)", None),
    ("print(f'sum {rows.y.sum():g}')", "report"),
]


def write_notebook(path, cells):
    made = [nbformat.v4.new_code_cell(text, metadata=dict(tags=[tag] if tag else [])) for text, tag in cells]
    kernel = dict(name="python3", display_name="python3", language="python")
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=dict(kernelspec=kernel)), path)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("{home}")  # braces: papermill formats paths
    (home / "tiny.py").write_text(MODULE)
    write_notebook(home / "10_tiny.ipynb", CELLS)
    return home


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ROBUSTLIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("TINY", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return Store()


@pytest.fixture
def tiny(home):
    return str(home / "10_tiny.ipynb")


def started(folder):
    path = folder / "started"
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


# What is typed


@pytest.mark.parametrize(
    "text, value",
    [("1", 1), ("1.5", 1.5), ("1e-3", 0.001), ("true", True), ("null", None), ("adam", "adam"), ("[1, 2]", [1, 2])],
)
def test_values(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_grids():
    assert parse_grid("0:5") == [0, 1, 2, 3, 4] and parse_grid("0,0.5,a") == [0, 0.5, "a"]
    assert parse_grid("-2:1,9") == [-2, -1, 0, 9] and parse_grid("[1,2],[3]") == [[1, 2], [3]]
    for empty in ("", "3:3", ",", "0,3:3", "5:0"):
        with pytest.raises(ValueError, match="holds no value"):
            parse_grid(empty)


@pytest.mark.parametrize(
    "text, values",
    [
        ("'a,b',c", ["a,b", "c"]),
        ("\"a, b\",'it''s',don't", ["a, b", "it's", "don't"]),
        ("[[1,2],[3,[1e-3,None]]],[]", [[[1, 2], [3, [0.001, None]]], []]),
        ("(64, 32),(16,)", [[64, 32], [16]]),
        ("['a, b', c],{a: [1, 2]}", [["a, b", "c"], {"a": [1, 2]}]),
        ("None,null,~", [None, None, None]),
        ("0:10:2,7,", [0, 2, 4, 6, 8, 7]),
        ("'0..5','1',2020-01-01,# 1", ["0..5", "1", "2020-01-01", "# 1"]),
    ],
)
def test_grids_of_texts_and_lists(text, values):
    found = parse_grid(text)
    assert found == values and [type(v) for v in found] == [type(v) for v in values]


@pytest.mark.parametrize(
    "text, annotation, value",
    [
        ("1", str, "1"),
        ("no", str | None, "no"),
        ("None", str | None, None),
        ("'None'", str, "None"),
        ("[a", str, "[a"),
        ("no", str | int, "no"),
        ("7", str | int, 7),
        ("1.0", int, 1),
        ("1e3", Annotated[int, "any"], 1000),
        ("1", float, 1),
        ("[1, no]", list[str], ["1", "no"]),
        ("[[1, 2.0]]", tuple[tuple[int, ...], ...], [[1, 2]]),
        ("off", Literal["on", "off"], "off"),
    ],
)
def test_values_are_what_their_annotation_asks_for(text, annotation, value):
    found = parse_value(text, annotation)
    assert found == value and type(found) is type(value)
    if text != "[a":
        assert parse_grid(f"{text},{text}", annotation) == [value, value]


@pytest.mark.parametrize(
    "text",
    ["0..5", "0-5", "0:5:", ":5", "0:1:0.1", "0:10:0", "0 : 5", "0,1,...,5", "range(5)", "0 1 2", "0;1", "0 to 5"],
)
def test_what_looks_like_a_range_is_asked_about(text):
    with pytest.raises(ValueError, match="looks like a range: did you mean .*0:[56]"):
        parse_grid(text)
    assert parse_grid(text, str) and parse_grid(f"'{text}'") == [text]


@pytest.mark.parametrize("text", ["[1,2", "(1", "'a", "'a'b", "1,,2", "[[1]", "{a: 1"])
def test_a_grid_that_is_not_closed_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(text) + "` must") as refused:
        parse_grid(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["[0,,1]", "[,1]", "[[1],,]", "(1,,)"])
def test_a_list_without_a_value_between_two_commas_is_refused(text):
    for parse in (parse_value, parse_grid):
        with pytest.raises(ValueError, match="must have a value between two commas"):
            parse(text)
    assert parse_value("[]") == [] and parse_value("[0,1,]") == [0, 1]


@pytest.mark.parametrize("annotation", [None, float, int | None, bool, list[int]])
def test_no_value_is_not_the_profiles_choice(annotation):
    "As where the shell fills in a variable that is not set; a text may be empty."
    for text in ("", "  "):
        with pytest.raises(ValueError, match="there is no value, .*; None is the profile's choice"):
            parse_value(text, annotation)
    assert parse_value("", str) == "" and parse_value("None", annotation) is None


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["sweep", "TINY", "-g", "levl", "1,2"], "10_tiny.ipynb has no parameter `levl`; did you mean 'level'"),
        (["run", "TINY", "-p", "sed", "1"], "did you mean 'seed'"),
        (["run", "TINY", "-p", "size", "1"], "has no parameter `size`"),
        (["run", "TINY", "--profile", "cpv"], "`profile` is unknown: 'cpv'; did you mean 'cpu'"),
        (["run", "TINY", "--profile", "paper"], "`profile` is unknown"),
        (["run", "TINY", "-p", "level", "nan"], "`level` must be finite"),
        (["sweep", "TINY", "-g", "seed", "0:2", "-p", "seed", "1"], "`seed` must be set once only"),
        (["sweep", "TINY", "-g", "seed", "0:2", "-g", "seed", "3"], "`seed` must be set once only"),
        (["sweep", "TINY", "-g", "seed", "2:2"], "holds no value"),
        (["sweep", "TINY", "-g", "seed", "0..2"], "`seed`: `0..2` looks like a range: did you mean 0:2 without 2"),
        (["sweep", "TINY", "-g", "seed", "0,one"], "`seed` must be a whole number, got 'one'"),
        (["run", "TINY", "-p", "seed", "0:2"], "`seed` must be a whole number, got '0:2'"),
        (["run", "TINY", "-p", "level", "[1"], "`level`: `[1` must close its ["),
        (["sweep", "TINY", "--jobs", "0"], "`--jobs` must be a whole number >= 1"),
        (["sweep", "TINY", "--threads", "-1"], "`--threads` must be a whole number >= 1"),
        (["run", "forgeting"], "'metaplasticity/forgetting'"),
        (["run", "gradient_masking"], "is one of several: say 'dropen/gradient_masking' or"),
        (["run", "pgd"], "or 'sleep/strong_attacks'"),
        (["run", "blur"], "did you mean 'sleep/noise_blur_fgsm' or"),
        (["run", "removal"], "did you mean"),
        (["run", "class-incremental"], "did you mean 'benchmark/class_incremental' or 'sleep/class_incremental'"),
        (["run", "audit"], "did you mean 'benchmark/audit_reliability' or"),
        (["run", "gradiants"], "did you mean 'dropen/gradient_masking' or"),
        (["run", "nowhere.ipynb"], "there is no notebook nowhere.ipynb"),
        (["pack", "forgeting"], "'metaplasticity/forgetting'"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(words, complaint, tiny, store, capsys):
    assert main([tiny if w == "TINY" else w for w in words]) == 2
    assert complaint in capsys.readouterr().err
    assert not store.runs.exists()


def test_a_notebook_that_is_no_experiment_is_refused(tmp_path):
    write_notebook(tmp_path / "a.ipynb", CELLS[1:])
    with pytest.raises(ValueError, match="or define one function under `@experiment`, got none"):
        open_notebook(str(tmp_path / "a.ipynb"))
    write_notebook(tmp_path / "b.ipynb", CELLS[:2])
    with pytest.raises(ValueError, match="no cell tagged `parameters`"):
        open_notebook(str(tmp_path / "b.ipynb"))


def defaults(tmp_path, text):
    "What the cell of the parameters gives."
    write_notebook(tmp_path / "a.ipynb", [CELLS[0], (text, "parameters")])
    return _defaults_of(tmp_path / "a.ipynb")


@pytest.mark.parametrize(
    "text, value",
    [
        ("level, seed = 2.5, 3", dict(level=2.5, seed=3)),
        ("(a, b), c = [1, 2], None", dict(a=1, b=2, c=None)),
        ("a = b = 'x'", dict(a="x", b="x")),
        ("eps: float = 8 / 255", dict(eps=8 / 255)),
        ("n = 2**3\nwide = [n] * 2\nlow = -n", dict(n=8, wide=[8, 8], low=-8)),
        ("seeds = list(range(3))\nmore = dict(a=1)", dict(seeds=[0, 1, 2], more=dict(a=1))),
        ("size = 3 if True else 4", dict(size=3)),
        ("'A text.'\n%matplotlib inline\n!ls\nimport math\nprint(1)\nx = 1", dict(x=1)),
    ],
)
def test_what_the_parameters_cell_sets_is_understood(text, value, tmp_path):
    assert defaults(tmp_path, text) == value


@pytest.mark.parametrize(
    "text",
    [
        "import math\nlevel = math.sqrt(2)",
        "level = 1\nlevel += 1",
        "if True:\n    level = 1",
        "for level in range(3):\n    pass",
        "level: float",
        "a, *b = 1, 2, 3",
        "a, b = 1, 2, 3",
        "a, b = 3",
        "d = {}\nd['level'] = 1",
        "print(level := 1)",
        "level = open('/etc/hostname').read()",
        "level = __import__('os').getpid()",
        "level = unknown",
        "level = 1 / 0",
        "level = [i for i in range(3)]",
        "with open('x') as level:\n    pass",
        "def level():\n    pass",
        "level = = 1",
    ],
)
def test_what_the_parameters_cell_does_besides_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="the cell tagged `parameters` in .*a.ipynb must"):
        defaults(tmp_path, text)


def test_two_parameters_cells_are_refused(tmp_path):
    write_notebook(tmp_path / "a.ipynb", [CELLS[0], ("a = 1", "parameters"), ("b = 1", "parameters")])
    with pytest.raises(ValueError, match="must have one cell tagged `parameters`, got 2"):
        _defaults_of(tmp_path / "a.ipynb")


def by_papermill(home, tmp_path, cells=CELLS, **parameters):
    "A notebook executed by papermill alone; returns the error that stopped it, or None."
    write_notebook(tmp_path / "tiny.ipynb", cells)
    env = dict(PYTHONPATH=os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")]), OMP_NUM_THREADS="1")
    with own_kernel(env):
        try:
            papermill.execute_notebook(
                str(tmp_path / "tiny.ipynb"), str(tmp_path / "out.ipynb"), parameters, progress_bar=False
            )
        except PapermillExecutionError as e:
            return f"{e.ename}: {e.evalue}"


def test_papermill_alone_cannot_record_the_defaults_under_a_misspelt_name(home, store, tmp_path):
    cells = [c for c in CELLS if not c[0].startswith("#| eval")]
    said = by_papermill(home, tmp_path, cells, levl=3)
    assert said.startswith(
        "TypeError: `levl` was set by papermill, but is no parameter of this notebook: did you mean 'level'"
    )
    assert not store.runs.exists() and not started(tmp_path)
    assert by_papermill(home, tmp_path, cells, level=3, seed=0) is None
    assert records(open_notebook(str(home / "10_tiny.ipynb")).experiment, store=store).y.tolist() == [0, 3]


def test_papermill_without_a_cell_of_parameters_is_noticed(home, store, tmp_path):
    cells = [(text, None) for text, _ in CELLS if not text.startswith("#| eval")]
    said = by_papermill(home, tmp_path, cells, level=3)
    assert said.startswith("ValueError: `level` was set by papermill and again later: tag that cell `parameters`")
    assert not started(tmp_path)


@pytest.mark.parametrize(
    "ran",
    [
        ["", "import numpy", "# Parameters\nlevel = 1", "rows = 1"],
        ["", "data = 'x'", "# Parameters\nlevel: float = 1"],
        ["", "data = 'x'", "# Parameters\n# of the run\nlevel = 1"],
        ["", "a, b = 1, 2", "# Parameters\nb = 3\n"],
        ["", "a = 1", "# Parameters\na = 3\n", "a = 4", "!ls", "x ="],
        [],
    ],
)
def test_cells_that_papermill_did_not_write_are_left_alone(ran):
    _refuse_lost_parameters(ran)


def test_usage_errors_and_version():
    for words, code in ([], 2), (["sweep"], 2), (["run", "x", "-p", "a"], 2), (["--version"], 0):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == code


def test_every_experiment_notebook_opens():
    assert "metaplasticity/forgetting" in notebooks()
    short = [name.partition("/")[2] for name in notebooks()]
    for name, path in notebooks().items():
        notebook = open_notebook(name)
        assert notebook.experiment.name == name and find_notebook(name) == path
        assert short.count(path.stem[3:]) > 1 or find_notebook(path.stem[3:]) == path
        unknown = set(notebook.defaults) - set(notebook.experiment.parameters) - {"profile"}
        assert len(plan(notebook)) == 1 and not unknown


def test_equal_parameters_are_planned_once(tiny):
    runs = plan(open_notebook(tiny), grid=dict(level=[1, 1.0, 2], seed=[0]))
    assert [r.parameters for r in runs] == [dict(level=1, seed=0), dict(level=2, seed=0)]


def test_overviews(tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIT_DATA", str(tmp_path))
    for words in ["list"], ["status"], ["data"]:
        assert main(words) == 0
    out = capsys.readouterr().out
    assert "50_forgetting.ipynb" in out and "ROBUSTLIT_DATA" in out
    assert re.search(r"metaplasticity/forgetting +smoke +0 +0", out) and re.search(r"mnist +not found; looked for", out)


# What is run


def test_a_sweep_is_expected_to_take_what_its_nearest_records_took(tiny):
    notebook = open_notebook(tiny)
    record = lambda wall, **given: SimpleNamespace(parameters=given, about=dict(wall_s=wall))
    found = [
        record(10.0, level=2.0, size=2, seed=0),
        record(30.0, level=2.0, size=2, seed=1),
        record(500.0, level=8.0, size=2, seed=2),
    ]
    runs = plan(notebook, dict(level=2.0, seed=7), profile="smoke")
    assert _expected(notebook, runs, found) == [20.0] and _expected(notebook, runs, []) == []
    large = plan(notebook, dict(level=9.0, seed=2), profile="smoke")
    assert _expected(notebook, [*runs, *large], found) == [20.0, 500.0]
    assert [_duration(x) for x in (90, 600, 9000)] == ["90 s", "10 min", "2.5 h"]


def test_sweep_keeps_failures_and_resumes(tiny, store, tmp_path, capsys):
    words = ["sweep", tiny, "-g", "level", "2,-1", "-p", "seed", "4", "--jobs", "2", "--threads", "3"]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "1 of 2 runs recorded, 1 failed" in out
    (line,) = [line for line in out.splitlines() if "FAILED" in line]
    assert "level=-1" in line and "ValueError: `level` must be >= 0, got -1.0" in line
    failed = nbformat.read(line.rpartition("see ")[2], as_version=4)
    assert any(o.output_type == "error" for c in failed.cells for o in c.get("outputs", []))
    frame = records("local/tiny", store=store)
    assert frame.y.tolist() == [0, 2] and set(frame.seed) == {4} and set(frame.cores) == {3}
    kept = nbformat.read(store.runs / "local/tiny/notebooks" / f"{frame.key[0]}.ipynb", as_version=4)
    assert not any("report" in c.metadata.get("tags", []) for c in kept.cells)

    assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 runs, 1 have a record, 1 to run" in out and len(started(tmp_path)) == 2
    assert re.search(r"expected: about \d+ s, by the median seconds of the nearest records", out)
    assert main(["sweep", tiny, "-g", "level", "2.0", "-p", "seed", "4"]) == 0
    assert "nothing to run" in capsys.readouterr().out and len(started(tmp_path)) == 2
    assert main(["pack"]) == 0 and "packed by smoke=True" in capsys.readouterr().out
    assert main(["pack", "--smoke"]) == 0 and len(read_records(store.table_path("local/tiny"))) == 1


def test_run_shows_its_report_and_force_runs_again(tiny, store, tmp_path, capsys, monkeypatch):
    "And all that in this Python, whatever the machine calls python3."
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/nowhere/python"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", "/usr/bin")
    words = ["run", tiny, "-p", "level", "3", "--profile", "cpu"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "sum 30" in out and "no record yet" in out
    for what in "notebook", "record":
        assert Path(re.search(rf"^{what}: +(.+)$", out, re.M)[1]).is_file()
    assert main([*words, "--dry-run"]) == 0 and "its record is" in capsys.readouterr().out
    assert main([*words, "--force"]) == 0 and "sum 30" in capsys.readouterr().out
    assert [seed for seed, _ in started(tmp_path)] == [0, 0] and len(store.run_paths("local/tiny")) == 2


# Whose records they are, and of which code


@pytest.fixture
def own(tmp_path):
    "Makes a folder with the notebook and its module, changed by replacing one text by another."

    def make(folder, old="level * i", new="level * i"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "tiny.py").write_text(MODULE.replace(old, new))
        write_notebook(tmp_path / folder / "10_tiny.ipynb", CELLS)
        return str(tmp_path / folder / "10_tiny.ipynb")

    return make


def test_two_notebooks_of_one_name_do_not_share_records(own, store, capsys, tmp_path):
    a, b = own("a"), own("b", new="100 + i")
    assert main(["run", a]) == 0 and main(["run", b]) == 2
    said = capsys.readouterr().err
    assert f"local/tiny has records of {tmp_path}/a/tiny.py, got {tmp_path}/b/tiny.py" in said and "group='b'" in said
    assert main(["sweep", b, "-g", "seed", "0:2", "--dry-run"]) == 2
    with pytest.raises(ValueError, match="must not share records"):
        records(open_notebook(b).experiment)
    assert records(open_notebook(a).experiment).y.tolist() == [0, 1] and len(started(tmp_path)) == 1
    own("b", "@experiment(", "@experiment(group='b', ")
    assert main(["run", b, "--dry-run"]) == 0 and "b/tiny defaults: no record yet" in capsys.readouterr().out


def test_pack_mixes_no_two_notebooks_of_one_name(own, store, capsys, tmp_path, monkeypatch):
    a, b = own("a"), own("b", new="100 + i")
    table = store.table_path("local/tiny")
    assert main(["run", a]) == 0 and main(["pack", "local/tiny", "--smoke"]) == 0
    was = table.read_bytes()
    shutil.rmtree(store.runs)  # what is packed may go
    assert main(["run", a, "--dry-run"]) == 0 and "its record is" in capsys.readouterr().out
    assert main(["run", b]) == 2, "the table is another's"
    assert f"local/tiny has records of {tmp_path}/a/tiny.py, got {tmp_path}/b/tiny.py" in capsys.readouterr().err
    with monkeypatch.context() as m:  # who does not see the table makes records of his own
        m.setenv("ROBUSTLIT_RESULTS", str(tmp_path / "other"))
        assert main(["run", b]) == 0
    open_notebook(a)
    capsys.readouterr()
    assert main(["pack", "local/tiny", "--smoke"]) == 2 and table.read_bytes() == was
    assert f"got {tmp_path}/b/tiny.py: two experiments must not share records" in capsys.readouterr().err
    (tmp_path / "a").rename(tmp_path / "gone")  # it moved, or is no more
    assert main(["pack", "local/tiny", "--smoke"]) == 0


def test_a_notebook_that_moved_keeps_its_records(own, tmp_path, capsys):
    assert main(["run", own("a")]) == 0
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    moved = str(tmp_path / "elsewhere" / "10_tiny.ipynb")
    assert main(["run", moved, "--dry-run"]) == 0 and "its record is" in capsys.readouterr().out
    own("a", "def tiny(", "def other(")  # another file where it was
    assert main(["run", moved, "--dry-run"]) == 0


def test_an_edit_is_said_by_every_command_and_stale_runs_again(own, store, capsys, tmp_path):
    a = own("a")
    grid = ["sweep", a, "-g", "level", "1,2", "--jobs", "2"]
    assert main(grid) == 0
    own("a", new="7 + i")
    capsys.readouterr()
    assert main([*grid, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 runs, 2 have a record (2 of them stale by tiny.tiny), 0 to run" in out
    assert len(re.findall("has a record, stale by tiny.tiny$", out, re.M)) == 2
    assert (
        main(grid) == 0
        and "nothing to run; 2 of the records are stale, --stale runs them again" in capsys.readouterr().out
    )
    assert main(["run", a, "-p", "level", "2", "--dry-run"]) == 0
    assert "stale by tiny.tiny (--stale runs it again)" in capsys.readouterr().out
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert (
        re.search(r"local/tiny +smoke +2 +2 +by tiny.tiny", out) and "2 records are stale: `robustlit run` and" in out
    )
    assert (
        main([*grid, "-p", "seed", "5", "--stale", "--dry-run"]) == 0
        and "0 have a record, 2 to run" in capsys.readouterr().out
    )

    assert len(started(tmp_path)) == 2
    assert main(["sweep", "tiny", "-g", "level", "2,3", "--stale", "--jobs", "2"]) == 0  # by its name, too
    assert "2 of 2 runs recorded" in capsys.readouterr().out and len(started(tmp_path)) == 4
    found = records(open_notebook(a).experiment)
    assert found[found.level == 2].y.tolist() == [7, 8] and not found[found.level == 2].stale.any()
    assert found[found.level == 1].stale.all()


def test_a_module_of_one_file_is_digested_as_it_was_imported(own):
    exp = open_notebook(own("c")).experiment
    before = code_digest(exp.function, loaded=True)
    own("c", new="9 + i")
    assert code_digest(exp.function, loaded=True) == before
    assert code_digest(open_notebook(own("c", new="9 + i")).experiment.function, loaded=True) != before


# What is stopped

COMMAND = Path(sys.executable).with_name("robustlit")


def alive(pid):
    "Whether a process runs; a zombie does not."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(condition, seconds=150):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.1)


def none_left(folder):
    wait(lambda: not any(alive(pid) for _, pid in started(folder)), 30)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@needs_proc
def test_killed_in_the_middle_loses_only_the_runs_in_flight(tiny, store, tmp_path, capsys):
    (tmp_path / "hold").touch()  # all but seed 0 wait while it is there
    words = ["sweep", tiny, "-g", "seed", "0:3", "--jobs", "2", "--threads", "1"]
    with open(tmp_path / "log", "w") as log:
        sweep = subprocess.Popen([COMMAND, *words], stdout=log, stderr=log)
    try:
        wait(lambda: sweep.poll() is not None or (len(started(tmp_path)) == 3 and store.run_paths("local/tiny")))
        assert sweep.poll() is None, (tmp_path / "log").read_text()
    finally:
        sweep.kill()  # that is kill -9
    assert sweep.wait(60) == -signal.SIGKILL
    none_left(tmp_path)
    assert [r.parameters["seed"] for r in store.load("local/tiny").values()] == [0]

    (tmp_path / "hold").unlink()
    assert main(words) == 0
    assert "1 have a record, 2 to run" in capsys.readouterr().out
    assert sorted(seed for seed, _ in started(tmp_path)) == [0, 1, 1, 2, 2]
    assert len(records("local/tiny", store=store).key.unique()) == 3


@needs_proc
def test_interrupt_stops_the_kernels_too(tiny, store, tmp_path, capfd):
    (tmp_path / "hold").touch()

    def interrupt():
        wait(lambda: len(started(tmp_path)) == 1)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where a shell started us with &
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        code = main(["sweep", tiny, "-g", "seed", "1:3", "--jobs", "1"])
        watcher.join()
    finally:
        signal.signal(signal.SIGINT, before)
    none_left(tmp_path)
    said = capfd.readouterr().err
    assert code == 130 and "the same command goes on from there" in said and "Traceback" not in said
    assert len(started(tmp_path)) == 1 and store.run_paths("local/tiny") == []
