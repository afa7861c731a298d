"The zoo: names, parents and views, one training a network, and what is said before it."

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from robustlit import zoo
from robustlit.attacks import LOSSES
from robustlit.digest import Table
from robustlit.evaluation import logits_of
from robustlit.metaplasticity.continual import learned
from robustlit.sleep.networks import VIEWS
from robustlit.zoo import find_network, load_network, network, network_of, networks, views_of

networks()  # every paper is imported, so that no test registers its networks in a zoo that is put away
TINY = dict(data="digits", hidden=(20, 16), epochs=1, batch_size=50)


@pytest.fixture(autouse=True)
def own_zoo(tmp_path, monkeypatch):
    "Networks and names of a test are gone after it."
    monkeypatch.setenv("ROBUSTLIT_RUNS", str(tmp_path))
    monkeypatch.setattr(zoo, "_networks", Table("networks", dict(zoo._networks)))
    torch.set_num_threads(1)


def files(tmp_path):
    return sorted((tmp_path / "networks").glob("*.pt"))


def named(fn, module, **about):
    "`fn` as if it stood in another module, registered."
    fn.__module__ = module
    return network(**about)(fn)


def counted(calls, fail=False):
    "A network that counts its trainings."

    def small(seed: int = 0, data: str = "digits", size: int = 3):
        "Two lines in one.\n\nThe second."
        torch.manual_seed(seed)

        def train(net):
            calls.append((seed, size))
            if fail:
                raise KeyboardInterrupt
            with torch.no_grad():
                net.weight.add_(1)

        return nn.Linear(size, size).train(), train

    return small


# Names


def test_the_zoo_imports_no_paper_until_it_is_asked():
    code = (
        "import sys\nfrom robustlit.zoo import find_network\n"
        "papers = lambda: sorted(m for m in sys.modules if m.startswith(('robustlit.sleep.', 'robustlit.metap')))\n"
        "first = papers(); known = find_network('sleep_B')\n"
        "print(first, known.name, 'robustlit.sleep.baselines' in papers(), 'robustlit.metaplasticity.continual' in papers())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[-2] == "[] sleep/sleep_B True False", done.stderr


def test_everything_declared_is_registered_under_its_name():
    table = networks()
    assert set(zoo._declared()) == {n for n in table.index if not n.startswith("local/")} == set(table.index)
    assert {"sleep/sleep", "sleep/control", "metaplasticity/binary", "metaplasticity/real"} <= set(table.index)
    assert table.index.is_unique and (table.description.str.len() > 10).all()
    assert set(table.parent) - {""} <= set(table.index)
    for name in table.index:
        views = views_of(name)
        assert len(set(views)) == len(views) >= 1
        assert {v for v, _ in views} <= set(VIEWS) and {loss for _, loss in views} <= {*LOSSES, "square"}
    assert set(networks("sleep").index) == {n for n in table.index if n.startswith("sleep/")}


def test_short_names_and_names_of_ones_own():
    assert find_network("control").name == find_network("sleep/control").name == "sleep/control"
    named(counted([]), "robustlit.dropen.nets")
    named(counted([]), "robustlit.filtering.nets")
    with pytest.raises(ValueError, match="whose 'small' is meant: 'dropen/small' or 'filtering/small'"):
        find_network("small")
    for paper in ("dropen", "filtering"):
        assert find_network("small", paper).name == find_network(f"{paper}/small").name == f"{paper}/small"
    assert find_network("dropen/small", "filtering").name == "dropen/small"
    assert find_network("control", "filtering").name == "sleep/control"  # no other paper has one


def test_a_private_function_gives_its_name_without_the_underscore():
    fn = counted([])
    fn.__name__ = "_blur"
    named(fn, "robustlit.dropen.nets")
    assert find_network("blur", "dropen").name == "dropen/blur" and find_network("blur", "sleep").name == "sleep/blur"


@pytest.mark.parametrize(
    "name, near", [("sleeep", "sleep"), ("sleep/contrl", "sleep/control"), ("asleep_B", "sleep_B")]
)
def test_unknown_names_are_refused(name, near):
    with pytest.raises(ValueError, match=f"`name` is unknown: '{name}'; did you mean .*'{near}'"):
        load_network(name)


def test_parents_are_of_the_same_paper_unless_they_say_otherwise():
    for parent, full in ((None, None), ("other", "dropen/other"), ("sleep/control", "sleep/control")):
        named(counted([]), "robustlit.dropen.nets", parent=parent)
        assert find_network("dropen/small").parent == full
    assert find_network("sleep/sleep_B").parent == "sleep/authors" and find_network("sleep/control").parent is None


def test_a_notebooks_function_takes_the_place_of_the_packages():
    edited = counted([])
    edited.__name__ = "_control"
    named(edited, "__main__")
    ours = find_network("control", "sleep")
    assert ours.name == "sleep/control" and "size" in ours.settings
    again = counted([])
    again.__name__ = "_control"
    named(again, "robustlit.sleep.baselines")
    assert find_network("sleep/control") is ours  # an import later on does not undo the edit
    named(counted([]), "__main__")
    assert find_network("small").name == "local/small"
    named(counted([]), "mine.nets")
    assert find_network("mine/small").name == "mine/small"


# One training


def test_a_network_is_trained_once_and_found_from_then_on(tmp_path, capsys):
    calls = []
    make = named(counted(calls), "robustlit.dropen.nets")
    first = load_network("dropen/small", 4, "digits")
    again = make(4, size=3)
    assert calls == [(4, 3)] and len(files(tmp_path)) == 1
    assert not first.training and not again.training and torch.equal(first.weight, again.weight)
    torch.manual_seed(4)
    assert torch.equal(first.weight, nn.Linear(3, 3).weight + 1)
    load_network("small", 5, "digits"), load_network("small", 4, "mnist"), load_network("small", 4, "digits", size=2)
    assert calls == [(4, 3), (5, 3), (4, 3), (4, 2)] and len(files(tmp_path)) == 4
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told] == [
        "dropen/small (seed 4, data digits) is trained, once",
        "dropen/small (seed 5, data digits) is trained, once",
        "dropen/small (seed 4, data mnist) is trained, once",
        "dropen/small (seed 4, data digits) is trained, once",
    ]


def test_a_finished_network_is_handed_through(tmp_path, capsys):
    net = nn.Linear(2, 2).train()

    def published(seed=0, data="digits"):
        return net

    assert named(published, "robustlit.dropen.nets")(1) is net and not net.training
    assert not files(tmp_path) and capsys.readouterr().out == ""


@pytest.mark.parametrize("given", [dict(data="digts"), dict(data=3), dict(seed=1.5), dict(seed=True)])
def test_bad_seeds_and_datasets_are_refused_by_both_doors_before_anything_is_trained(tmp_path, given):
    calls = []
    make = named(counted(calls), "robustlit.dropen.nets")
    (name,) = given
    for door in (make, lambda **settings: load_network("dropen/small", **settings)):
        with pytest.raises((TypeError, ValueError), match=f"`{name}`") as e:
            door(**given)
        assert given != dict(data="digts") or "did you mean 'digits'" in str(e.value)
    assert not calls and not files(tmp_path)


def test_an_argument_that_names_a_network_says_which_are_near():
    check = network_of("sleep")
    for known in ("sleep", "sleep/sleep", "metaplasticity/binary", "binary"):
        check.refuse(known, "network")
    with pytest.raises(ValueError, match="`network` is unknown: 'slep'; did you mean 'sleep'"):
        check.refuse("slep", "network")
    with pytest.raises(ValueError, match="`net` is unknown: 'sleep/binry'"):
        check.refuse("sleep/binry", "net")


def test_what_breaks_off_leaves_nothing(tmp_path):
    make = named(counted([], fail=True), "robustlit.dropen.nets")
    with pytest.raises(KeyboardInterrupt):
        make(0)
    assert not files(tmp_path) and not (tmp_path / "networks" / "seconds.jsonl").exists()


def test_settings_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(TypeError, match="sleep/sleep takes seed, data, hidden, epochs, batch_size: .*'width'"):
        load_network("sleep/sleep", width=100)
    assert not files(tmp_path)


@pytest.mark.parametrize("about", [dict(views=()), {}])
def test_a_network_has_a_seed_data_and_a_view(about):
    bad = (lambda data: None) if not about else counted([])
    with pytest.raises(TypeError, match="must take `seed` and `data` and have at least one view"):
        named(bad, "robustlit.dropen.nets", **about)


def test_the_name_changes_nothing(capsys):
    "By a short name, a full one, or from the parent's function: the same file."
    child = load_network("sleep_B", 3, paper="sleep", **TINY)
    capsys.readouterr()
    again, parent = load_network("sleep/sleep_B", 3, **TINY), load_network("sleep/authors", 3, **TINY)
    assert capsys.readouterr().out == "" and all(
        torch.equal(a, b) for a, b in zip(child.parameters(), again.parameters())
    )
    assert all(a.shape == b.shape for a, b in zip(child.parameters(), parent.parameters()))


def test_a_day_of_a_metaplastic_training():
    tiny = dict(data="digits", n_tasks=2, width=16, epochs=1, batch_size=50)
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for whose in ("binary", "real"):
        life = learned(0.7, 16, 3, "digits", 2, 1, 50, network=whose)
        for after, on, bn in ((1, 1, "own"), (2, 1, "own"), (2, 1, "last")):
            want = logits_of(life.at(after, on, bn), x)
            got = load_network(f"metaplasticity/{whose}", 3, meta=0.7, after=after, on=on, bn=bn, **tiny)
            assert torch.equal(logits_of(got, x), want)
        last = load_network(f"metaplasticity/{whose}", 3, meta=0.7, **tiny)
        assert torch.equal(logits_of(last, x), logits_of(life.at(2, 1), x))
    with pytest.raises(ValueError, match="`after`"):
        load_network("metaplasticity/binary", 3, meta=0.7, after=3, **tiny)


# What is said beforehand


def test_the_time_is_known_from_trainings_before(tmp_path, capsys):
    make = named(counted([]), "robustlit.dropen.nets", seconds=7000)
    make(0, "digits", 2)
    log = tmp_path / "networks" / "seconds.jsonl"
    (line,) = log.read_text().splitlines()
    took = json.loads(line)
    assert took["network"] == "dropen/small" and took["settings"] == dict(data="digits", size=2)
    assert 0 <= took["seconds"] < 5
    slow = took | dict(seconds=200.0)
    log.write_text("".join(json.dumps(slow) + "\n" for _ in range(3)) + '{"network": "dro')
    make(1, "digits", 2), make(0), make(0, "digits", 4)
    told = [t.partition(": ")[2] for t in capsys.readouterr().out.splitlines()]
    assert told[0] == "how long that takes is not known yet"
    assert told[1] == "about 3 min, as before"
    assert told[2] == "about 2 h on one core"  # the defaults
    assert told[3].startswith("with these settings it is not known how long that takes, with others about ")


@pytest.mark.parametrize("seconds, told", [(0.1, "1 s"), (89, "89 s"), (91, "2 min"), (5300, "88 min"), (5500, "2 h")])
def test_times_in_words(seconds, told):
    assert zoo._about(seconds) == f"about {told}"
