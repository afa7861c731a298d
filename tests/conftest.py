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
