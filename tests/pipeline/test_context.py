from wsss_affinity.backbones import create_backbone
from wsss_affinity.config import load_config
from wsss_affinity.pipeline.context import backbone_options, with_backbone


def test_an_object_is_frozen_as_its_own_section_says():
    net = create_backbone("tiny")
    frozen = ["backbone=registered", "backbone.freeze_batchnorm=true", "backbone.freeze_stages=2"]
    cfg = with_backbone(load_config(frozen), net)
    options = backbone_options(cfg)
    assert options.pop("backbone").startswith("wsss_affinity.backbones.tiny.TinyBackbone@")
    assert options == {"weights": None, "freeze_batchnorm": True, "freeze_stages": 2}
    assert cfg.train_segmentation.freeze_batchnorm is True


def test_what_a_section_says_of_another_network_is_not_for_an_object():
    options = backbone_options(
        with_backbone(load_config(["backbone=resnet18"]), create_backbone("tiny"))
    )
    del options["backbone"]
    assert options == {"weights": None, "freeze_batchnorm": False, "freeze_stages": 0}
