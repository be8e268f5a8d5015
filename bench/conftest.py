"""What pytest needs to run the benchmarks from wherever they are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fusedrnn.bench.peers import one_thread
from fusedrnn.bench.session import Session


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: a row of the short run")
    config.addinivalue_line("markers", "rows: what a benchmark is run on")
    if not any(isinstance(plugin, Session) for plugin in config.pluginmanager.get_plugins()):
        config.pluginmanager.register(Session())


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield
