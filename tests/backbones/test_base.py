import copy

import pytest
import torch
from torch import nn

from wsss_affinity.backbones import Backbone, FeatureInfo, load_weights
from wsss_affinity.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from wsss_affinity.errors import WSSSError


class Small(Backbone):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.Dropout(0.5))
        self.feature_info = FeatureInfo((4, 5), (2, 4))

    @property
    def stages(self):
        return [self.stem, self.body]

    def forward(self, images):
        first = self.stem(images)
        return [first, self.body(first)]


def trainable(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def in_training(module):
    return {name for name, m in module.named_modules() if m.training}


def test_defaults():
    backbone = Backbone()
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert backbone.stages == []
    assert backbone.pretrained is False
    with pytest.raises(NotImplementedError):
        backbone(torch.zeros(1, 3, 8, 8))


def test_nothing_is_frozen_at_first():
    net = Small()
    assert len(trainable(net)) == 8
    assert len(in_training(net.train())) == 9
    assert in_training(net.eval()) == set()


def test_frozen_batchnorm_keeps_parameters_and_statistics():
    net = Small()
    net.freeze(batchnorm=True)
    assert trainable(net) == {"stem.0.weight", "stem.0.bias", "body.0.weight", "body.0.bias"}
    before = copy.deepcopy(net.state_dict())
    for mode in (net, net.train(), net.eval().train()):
        assert "stem.1" not in in_training(mode)
        assert {"", "stem", "stem.0", "body.0", "body.2"} <= in_training(mode)
        mode(torch.randn(2, 3, 8, 8) + 5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_frozen_stages_keep_parameters_and_statistics():
    net = Small()
    net.freeze(num_stages=1)
    assert {name.split(".")[0] for name in trainable(net)} == {"body"}
    before = copy.deepcopy(net.state_dict())
    net.train()(torch.randn(2, 3, 8, 8) + 5)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
    assert "stem" not in in_training(net)
    assert "body.2" in in_training(net)


def test_freezing_keeps_the_mode():
    net = Small().eval()
    net.freeze(batchnorm=True, num_stages=2)
    assert in_training(net) == set()
    assert trainable(net) == set()
    assert net.train() is net


def test_freezing_holds_for_copies_and_replaced_modules():
    net = Small()
    net.freeze(batchnorm=True)
    twin = copy.deepcopy(net)
    net.eval()
    assert "stem.1" not in in_training(twin.train())
    assert "stem.0" in in_training(twin)
    replaced = nn.SyncBatchNorm.convert_sync_batchnorm(net).train()
    assert isinstance(replaced.stem[1], nn.SyncBatchNorm)
    assert "stem.1" not in in_training(replaced)


@pytest.mark.parametrize("num_stages", [-1, 3])
def test_number_of_stages_is_checked(num_stages):
    with pytest.raises(WSSSError, match=f"freeze_stages={num_stages} .* has 2 stages"):
        Small().freeze(num_stages=num_stages)


# --- weights ------------------------------------------------------------------------------------


def randomized(module):
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.uniform_()
    return module


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "module.network."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_load_weights(tmp_path, prefix, wrapped):
    source, path = randomized(Small()), tmp_path / "weights.pth"
    state = {prefix + name: value for name, value in source.state_dict().items()}
    state[prefix + "fc.weight"] = torch.zeros(7, 7)  # a head, for which there is no place
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    target = Small()
    assert load_weights(target, str(path)) == []
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_load_weights_names_what_was_missing(tmp_path):
    path = tmp_path / "weights.pth"
    state = randomized(Small()).state_dict()
    del state["body.0.bias"], state["body.1.num_batches_tracked"]
    torch.save(state, path)
    target = Small()
    bias = target.body[0].bias.detach().clone()
    assert load_weights(target, path) == ["body.0.bias"]
    assert torch.equal(target.body[0].bias, bias)
    assert torch.equal(target.stem[0].weight, state["stem.0.weight"])


def test_load_weights_without_a_file(tmp_path):
    with pytest.raises(WSSSError, match=r"none\.pth does not exist; give the path"):
        load_weights(Small(), tmp_path / "none.pth")


def test_load_weights_of_another_shape(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**Small().state_dict(), "stem.0.weight": torch.zeros(9, 3, 3, 3)}, path)
    with pytest.raises(
        WSSSError, match=r"stem.0.weight has shape \(9, 3, 3, 3\), .* \(4, 3, 3, 3\)"
    ):
        load_weights(Small(), path)


def test_load_weights_of_another_architecture(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(WSSSError, match=r"fits 0 of 12 entries .*another architecture"):
        load_weights(Small(), path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(3)])
def test_load_weights_of_no_state_dict(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(WSSSError, match="holds no mapping of names to tensors; save or pass"):
        load_weights(Small(), path)


def test_load_weights_of_no_torch_file(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("hello")
    with pytest.raises(WSSSError, match=r"cannot be read as a state dict .*torch.save"):
        load_weights(Small(), path)
    torch.save(Small(), path)  # a pickled module, which is code
    with pytest.raises(WSSSError, match="cannot be read as a state dict"):
        load_weights(Small(), path)
