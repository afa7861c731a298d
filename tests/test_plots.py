"Figures: colours, spreads, captions, files."

import itertools
import os

import matplotlib

matplotlib.use("agg")
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from robustlit import plots
from robustlit.plots import (
    COLOURS,
    MARKERS,
    about_records,
    caption,
    curve_with_spread,
    heat_table,
    house_style,
    image_grid,
    live_picture,
    needs_records,
    ordered_colours,
    save_figure,
    show,
    spread,
)


@pytest.fixture(autouse=True)
def fresh():
    with plt.rc_context():
        house_style()
        yield
    plt.close("all")


def luminance(colour):
    c = np.asarray(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


# --- colours


def test_every_colour_is_readable_on_white_and_on_black():
    for c in COLOURS:
        assert 1.05 / (luminance(c) + 0.05) >= 3
        assert (luminance(c) + 0.05) / (luminance("#121212") + 0.05) >= 3
    assert len(set(COLOURS)) == len(COLOURS) <= len(MARKERS)


def test_ordered_colours_darken_with_the_value_by_rank():
    got = ordered_colours([4096, 512, 1024, 512, 2048])
    assert list(got) == [512, 1024, 2048, 4096]
    light = [luminance(c) for c in got.values()]
    assert light == sorted(light, reverse=True) and len(set(light)) == 4
    assert 1.05 / (light[0] + 0.05) > 2 and (light[-1] + 0.05) / (luminance("#121212") + 0.05) > 2
    assert list(ordered_colours([1, 2, 100]).values()) == list(ordered_colours([1, 2, 3]).values())
    assert len(ordered_colours([7])) == 1
    with pytest.raises(ValueError, match="`values`"):
        ordered_colours([])


# --- curves


@pytest.fixture
def rows():
    cells = itertools.product((0.0, 1.35), (1, 2, 3), (0, 1, 2), ("a", "b"))
    df = pd.DataFrame(cells, columns=["meta", "task", "seed", "part"])
    df["accuracy"] = 50 + 10 * df.task + 5 * df.meta + 3 * df.seed + (df.part == "a")
    return df


def test_repetitions_are_seeds_not_rows(rows):
    got = spread(rows, "accuracy", ["meta", "task"])
    assert len(got) == 6 and set(got.n) == {3}
    first = got.iloc[0]
    assert first["mean"] == 63.5
    assert first.high - first["mean"] == pytest.approx(3.0) == first["mean"] - first.low


@pytest.mark.parametrize(
    "interval, reach", [("sd", 3.0), ("t", 4.302653 * 3 / 3**0.5), ("range", 3.0), ("none", np.nan)]
)
def test_the_named_interval_is_the_one_drawn(rows, interval, reach):
    got = spread(rows, "accuracy", ["task"], interval=interval).iloc[0]
    assert got.high - got["mean"] == pytest.approx(reach, abs=1e-5, nan_ok=True)


def test_the_band_of_skewed_values_is_the_range_itself():
    df = pd.DataFrame(dict(x=1, seed=[0, 1, 2], y=[0.0, 0.0, 9.0]))
    assert spread(df, "y", ["x"], interval="range").iloc[0].tolist() == [1, 3, 0, 9, 3]


def test_one_seed_has_no_spread_and_a_failed_seed_is_not_dropped(rows):
    alone = spread(rows[rows.seed == 0], "accuracy", ["task"])
    assert set(alone.n) == {1} and alone.low.isna().all() and alone["mean"].notna().all()
    failed = rows.assign(accuracy=rows.accuracy.where((rows.seed != 1) | (rows.task != 2)))
    got = spread(failed, "accuracy", ["task"]).set_index("task")
    assert got["mean"].isna().tolist() == [False, True, False] and got.n[2] == 3


def test_a_curve_draws_its_table_and_says_n(rows):
    fig, ax = plt.subplots()
    table = curve_with_spread(ax, rows.sample(frac=1, random_state=0), "task", "accuracy", group="meta")
    assert table.columns.tolist() == ["meta", "task", "mean", "low", "high", "n"]
    lines = ax.get_lines()
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2, 3]] * 2
    assert lines[1].get_ydata().tolist() == table[table.meta == 1.35]["mean"].tolist()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["meta = 0, n = 3", "meta = 1.35, n = 3"]
    assert len({line.get_marker() for line in lines}) == 2 and "SD" in ax.get_ylabel()
    assert [line.get_color() for line in lines] == list(ordered_colours([0, 1.35]).values())


def test_words_keep_their_order_and_take_the_categorical_colours(rows):
    fig, ax = plt.subplots()
    named = rows.assign(
        method=rows.meta.map({0.0: "plain", 1.35: "meta"}), task=rows.task.map({1: "z", 2: "b", 3: "a"})
    )
    table = curve_with_spread(ax, named, "task", "accuracy", group="method", style="bars")
    assert table.task.tolist()[:3] == ["z", "b", "a"]
    assert [c[0].get_color() for c in ax.containers] == list(COLOURS[:2])
    fig, ax = plt.subplots()
    curve_with_spread(ax, named, "task", "accuracy", group="method", colours=dict(plain="k", meta="r"))
    assert [line.get_color() for line in ax.get_lines()] == ["k", "r"]


def test_curves_refuse_bad_requests(rows):
    fig, ax = plt.subplots()
    for words, change in [
        ("'acuracy'", dict(y="acuracy")),
        ("`interval`", dict(interval="sem")),
        ("`style`", dict(style="dots")),
        ("did you mean 'seed'", dict(by="sed")),
    ]:
        with pytest.raises(ValueError, match=words):
            curve_with_spread(ax, rows, **(dict(x="task", y="accuracy") | change))
    with pytest.raises(ValueError, match="got none"):
        curve_with_spread(ax, rows[:0], "task", "accuracy")
    many = rows.assign(name=[f"m{i % 7}" for i in range(len(rows))])
    with pytest.raises(ValueError, match="at most 6"):
        curve_with_spread(ax, many, "task", "accuracy", group="name")


# --- images and tables


def test_images_keep_one_grey_scale():
    x = torch.stack([torch.full((1, 4, 4), 0.25), torch.full((1, 4, 4), 0.5)])
    fig = image_grid(x, ["a", "b"], cols=1)
    assert len(fig.axes) == 2 and [ax.get_title() for ax in fig.axes] == ["a", "b"]
    assert {ax.images[0].get_clim() for ax in fig.axes} == {(0, 1)}
    assert [float(np.mean(ax.images[0].get_array())) for ax in fig.axes] == [0.25, 0.5]


def test_grids_fit_what_they_are_told():
    x = torch.rand(7, 3, 4, 5)
    shape = lambda fig: fig.axes[0].get_subplotspec().get_gridspec().get_geometry()
    assert shape(image_grid(x)) == (1, 7)
    assert shape(image_grid(x, rows=2)) == (2, 4)
    assert shape(image_grid(torch.rand(23, 4, 4))) == (3, 10)
    shown = image_grid((x * 255).byte()).axes[0].images[0].get_array()
    assert shown.shape == (4, 5, 3) and abs(shown - x[0].permute(1, 2, 0).numpy()).max() < 1 / 254


@pytest.mark.parametrize(
    "images, options, words",
    [
        (torch.rand(2, 2, 4, 4), {}, "`images` must have shape"),
        (torch.rand(4, 4), {}, "`images` must have shape"),
        (torch.rand(0, 1, 4, 4), {}, "`images` must have shape"),
        (torch.rand(2, 1, 4, 4) * 2, {}, r"must lie in \[0, 1\]"),
        (torch.rand(2, 1, 4, 4) * torch.nan, {}, r"must lie in \[0, 1\]"),
        (torch.rand(2, 1, 4, 4), dict(titles=["a"]), "`titles` must hold 2"),
        (torch.rand(2, 1, 4, 4), dict(rows=1, cols=1), "must hold 2 images"),
        (torch.rand(2, 1, 4, 4), dict(cols=-1), "`cols`"),
        (torch.rand(2, 1, 4, 4), dict(size=0), "`size`"),
    ],
)
def test_bad_images_are_refused(images, options, words):
    with pytest.raises(ValueError, match=words):
        image_grid(images, **options)


def test_heat_tables_write_every_number_that_is_known():
    table = pd.DataFrame([[97.14, np.nan], [5, 50]], columns=pd.Index(["a", "b"], name="on"))
    ax = heat_table(table.rename_axis("after"))
    assert [t.get_text() for t in ax.texts] == ["97.1", "5.0", "50.0"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("on", "after")
    assert [t.get_color() for t in ax.texts[:2]] == ["black", "white"]
    with pytest.raises(ValueError, match="`low` must be below"):
        heat_table(table, low=1, high=1)


# --- captions and files


def test_captions_are_read_off_the_provenance(rows):
    df = rows.assign(profile="cpu", hardware="cpu, 2 cores, AMD EPYC", stale=False)
    assert caption(df) == "profile cpu, n = 3 seeds, 2-core AMD EPYC CPU"
    assert caption(df[df.seed == 0]) == "profile cpu, n = 1 seed, 2-core AMD EPYC CPU"
    uneven = df[(df.meta == 0) | (df.seed < 2)]
    assert (
        caption(uneven, per="meta") == caption(uneven, ["meta"]) == "profile cpu, n = 2 to 3 seeds, 2-core AMD EPYC CPU"
    )
    mixed = pd.concat([df, df.assign(profile="paper", hardware="NVIDIA H200", stale=True)])
    assert (
        caption(mixed)
        == "profiles cpu and paper, n = 3 seeds, 2-core AMD EPYC CPU and NVIDIA H200, some from older code"
    )
    assert caption(df.drop(columns="seed").assign(key="k1")).startswith("profile cpu, n = 1 run,")
    for bad, what in ((df[:0], "be rows from `records`"), (rows, "have the columns profile, hardware")):
        with pytest.raises(ValueError, match=f"`df` must {what}"):
            caption(bad)


def test_a_live_picture_is_drawn_by_its_knobs():
    knobs, asked = dict(a=widgets.IntSlider(1), b=widgets.Checkbox(False)), []

    def draw(**values):
        asked.append(values)
        fig, ax = plt.subplots(figsize=(2, 1))
        ax.plot([0, values["a"]], lw=1 + 5 * values["b"])
        return fig

    figures = plt.get_fignums()
    shown = live_picture(draw, knobs)
    seen = [shown.value]
    for name, value in (("a", 7), ("b", True), ("a", 7)):
        knobs[name].value = value
        seen.append(shown.value)
    assert asked == [dict(a=1, b=False), dict(a=7, b=False), dict(a=7, b=True)]
    assert len(set(seen)) == 3 and all(s[:2] == b"\xff\xd8" for s in seen) and plt.get_fignums() == figures


def test_figures_are_kept_whole_where_the_environment_says(tmp_path, monkeypatch):
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    monkeypatch.setenv("ROBUSTLIT_FIGURES", str(tmp_path / "here"))
    first = save_figure(fig, "curve")
    assert first == tmp_path / "here" / "curve.png" and first.read_bytes()[:4] == b"\x89PNG"
    before = first.read_bytes()
    assert save_figure(fig, "curve").read_bytes() == before
    monkeypatch.delenv("ROBUSTLIT_FIGURES")
    (tmp_path / "settings.ini").touch()
    monkeypatch.chdir(tmp_path)
    assert save_figure(fig, "curve") == tmp_path / "runs" / "figures" / "curve.png"
    assert save_figure(fig, "other.v1", tmp_path / "there") == tmp_path / "there" / "other.v1.png"


def test_a_failed_write_leaves_the_old_figure_and_no_litter(tmp_path, monkeypatch):
    fig, ax = plt.subplots()
    kept = save_figure(fig, "curve", tmp_path)
    before = kept.read_bytes()

    def broken(self, f, **_):
        f.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(plots.Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        save_figure(fig, "curve", tmp_path)
    assert os.listdir(tmp_path) == ["curve.png"] and kept.read_bytes() == before


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "white space", None])
def test_figure_names_stay_in_their_folder(name, tmp_path):
    fig, _ = plt.subplots()
    with pytest.raises((TypeError, ValueError), match="`name`"):
        save_figure(fig, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_style_needs_no_notebook():
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)
    assert plt.rcParams["savefig.facecolor"] == "white"


# --- the figure of an experiment


def recorded_rows(profile="cpu"):
    points = itertools.product(("sleep", "control"), ("blur", "noise"), (0.0, 0.5), range(3))
    df = pd.DataFrame(points, columns=["network", "stressor", "strength", "seed"])
    df["accuracy"] = 90 - 40 * df.strength + df.seed + (df.network == "sleep")
    return df.assign(
        unit=df.stressor.map(dict(blur="pixels", noise="variance")), profile=profile, hardware="GPU", stale=False
    )


def test_show_has_a_panel_a_value_one_legend_and_says_what_it_rests_on():
    fig = show(recorded_rows(), panels="stressor", lines="network")
    blur, noise = fig.axes
    assert [ax.get_title("left") for ax in fig.axes] == ["blur", "noise"] and blur.get_ylim() == (0, 101)
    assert (blur.get_xlabel(), noise.get_xlabel()) == ("strength (pixels)", "strength (variance)")
    assert not blur.get_legend() and [t.get_text() for t in fig.legends[0].texts] == ["control", "sleep"]
    assert [*blur.lines[0].get_ydata()] == [91, 71]
    assert fig.get_supxlabel() == "mean ± 1 SD; profile cpu, n = 3 seeds, GPU"


def test_show_draws_the_largest_profile_alone():
    paper = recorded_rows("paper").assign(accuracy=50.0)
    fig = show(pd.concat([recorded_rows(), paper]), panels="stressor", lines="network")
    assert [*fig.axes[0].lines[0].get_ydata()] == [50, 50] and "profile paper, n = 3" in fig.get_supxlabel()


def test_without_records_one_sentence_says_how_to_make_them(capsys):
    empty = pd.DataFrame(columns=["network", "profile"])
    empty.attrs["experiment"] = "sleep/strong_attacks"
    assert show(empty, lines="network") is None
    assert needs_records(lambda df: df.stressor)(empty) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines == [about_records(empty)] * 2
    assert lines[0].startswith("No records of sleep/strong_attacks yet: `robustlit sweep sleep/strong_attacks")
    assert about_records(recorded_rows(), ["network"]) == caption(recorded_rows(), ["network"])


def test_show_refuses_a_column_that_is_not_there():
    with pytest.raises(ValueError, match="netwrok"):
        show(recorded_rows(), lines="netwrok")
