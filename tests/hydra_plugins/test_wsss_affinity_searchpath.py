from importlib.metadata import EntryPoint

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from wsss_affinity import config
from wsss_affinity.plugins import GROUP


def test_an_application_of_ones_own_can_choose_a_plugin(tmp_path, monkeypatch):
    entry = EntryPoint("theirs_in_an_app", "their_package:Net", GROUP)
    monkeypatch.setattr(config, "backbone_plugins", lambda: {entry.name: entry})
    (tmp_path / "app.yaml").write_text(
        "defaults: [config, _self_, {override backbone: theirs_in_an_app}]\n"
    )
    try:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            cfg = compose("app")
    finally:
        ConfigStore.instance().repo.get("backbone", {}).pop(f"{entry.name}.yaml", None)
    assert cfg.backbone.name == "theirs_in_an_app"
