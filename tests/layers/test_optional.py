from types import SimpleNamespace

import pytest

from wsss_affinity.layers import optional


@pytest.mark.parametrize(
    ("version", "expected"),
    [("3.4.0", True), ("3.10.1", True), ("4.0.0+git12", True), ("3.3.1", False), (None, False)],
)
def test_recent(monkeypatch, version, expected):
    spec = None if version is None else object()
    monkeypatch.setattr(optional, "find_spec", lambda name: spec)
    module = SimpleNamespace(__version__=version)
    monkeypatch.setattr(optional, "import_module", lambda name: module)
    optional.recent.cache_clear()
    try:
        assert optional.recent("some_package", (3, 4)) == expected
    finally:
        optional.recent.cache_clear()
