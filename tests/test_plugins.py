from importlib.metadata import EntryPoint

import pytest

from wsss_affinity.errors import WSSSError
from wsss_affinity.plugins import GROUP, backbone_plugins, load_plugin


def test_nothing_is_installed_here():
    assert "theirs" not in backbone_plugins()


def test_a_plugin_is_imported_when_it_is_wanted():
    entry = EntryPoint("tiny", "wsss_affinity.backbones.tiny:TinyBackbone", GROUP)
    assert load_plugin(entry).__name__ == "TinyBackbone"


@pytest.mark.parametrize("value", ["no_such_package:Net", "wsss_affinity.plugins:Nett"])
def test_one_that_cannot_be_is_one_sentence(value):
    with pytest.raises(WSSSError, match=r"backbone 'x' of the installed package .* cannot be impo"):
        load_plugin(EntryPoint("x", value, GROUP))
