"What one file of tests registers, the next one does not see: they share a process, in an order that changes from run to run."

import pytest

from robustlit import claims, experiments


def of_the_package(thing):
    "Whether an experiment or a claim was registered by a module of the package, which is imported only once."
    return getattr(thing, "check", thing).__module__.startswith("robustlit.")


@pytest.fixture(autouse=True, scope="module")
def registries_as_before():
    tables = (experiments._registry, claims._claims)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before):
        kept |= {k: v for k, v in table.items() if of_the_package(v)}
        table.clear()
        table.update(kept)


LONG = "test_oracle test_lab test_soak test_cluster test_slips test_long_work test_promises test_gauntlet".split()


def pytest_collection_modifyitems(items):
    "Files whose few tests take long come first, so that no process waits for one at the end."
    items.sort(key=lambda item: item.path.stem not in LONG)
