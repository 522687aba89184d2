from importlib.metadata import EntryPoint

import pytest

from wsss_affinity.backbones import create_backbone, list_backbones
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


def offer(folder, package, value):
    info = folder / package / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ntheirs = {value}\n")
    return str(folder / package)


def test_two_packages_that_offer_one_name_are_told_when_it_is_chosen(tmp_path, monkeypatch):
    tiny = "wsss_affinity.backbones.tiny:TinyBackbone"
    monkeypatch.syspath_prepend(offer(tmp_path, "one", tiny))
    assert create_backbone("theirs").feature_info.strides[0] == 2
    monkeypatch.syspath_prepend(offer(tmp_path, "twin", tiny))
    assert load_plugin(backbone_plugins()["theirs"]).__name__ == "TinyBackbone"
    monkeypatch.syspath_prepend(offer(tmp_path, "two", "elsewhere:Net"))
    assert "theirs" in list_backbones()
    with pytest.raises(
        WSSSError,
        match=r"backbone 'theirs' is offered by two installed packages, '(one|twin)' and 'two'; "
        "uninstall one of them",
    ):
        create_backbone("theirs")
