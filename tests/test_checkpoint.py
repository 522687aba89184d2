import logging
import pickle
import struct

import pytest
import torch

import wsss_affinity as wa
from wsss_affinity.backbones import create_backbone
from wsss_affinity.checkpoint import LoadReport, load_published, read_state_dict
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import AffinityNet, CAMNet, SegmentationNet

AFFINITY_HEAD = [
    "levels.0.weight",
    "levels.1.weight",
    "levels.2.weight",
    "norms.0.weight",
    "norms.0.bias",
    "norms.1.weight",
    "norms.1.bias",
    "norms.2.weight",
    "norms.2.bias",
    "fuse.weight",
]


@pytest.fixture(scope="module")
def published():
    """The backbone of VGG16 LargeFOV, under the published names."""
    torch.manual_seed(1)
    return dict(create_backbone("vgg16_largefov").state_dict())


@pytest.fixture(scope="module")
def cam_net():
    return CAMNet("vgg16_largefov", 20)


@pytest.fixture(scope="module")
def affinity_net():
    return AffinityNet("vgg16_largefov")


def params_file(path, arrays):
    """Writes float32 tensors as MXNet does."""
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for value in arrays.values():
        parts.append(struct.pack(f"<IiI{value.ndim}q", 0xF993FAC9, 0, value.ndim, *value.shape))
        parts.append(struct.pack("<iii", 1, 0, 0) + value.numpy().tobytes())
    parts.append(struct.pack("<Q", len(arrays)))
    parts += [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    path.write_bytes(b"".join(parts))


def test_it_is_public():
    assert wa.load_published is load_published


# --- the report ---------------------------------------------------------------------------------


def test_imagenet_weights_leave_the_heads(published, cam_net, affinity_net, caplog):
    state = {**published, "fc8_imagenet.weight": torch.zeros(1)}
    with caplog.at_level(logging.WARNING):
        report = load_published(cam_net, state)
    assert report == LoadReport(("head.classifier.weight",), ("fc8_imagenet.weight",))
    assert caplog.messages == [
        "the state dict lacks head.classifier.weight; kept as they were",
        "the state dict: no place for fc8_imagenet.weight; left out",
    ]
    report = load_published(affinity_net, published)
    assert sorted(report.missing) == sorted(AFFINITY_HEAD)
    assert report.unexpected == ()
    assert caplog.messages[2].endswith("… (10 in all); kept as they were")


def test_nothing_to_report_is_no_warning(published, caplog):
    net = create_backbone("vgg16_largefov")
    assert not net.pretrained
    assert load_published(net, published) == LoadReport((), ())
    assert net.pretrained
    assert caplog.messages == []
    assert all(torch.equal(v, published[n]) for n, v in net.state_dict().items())


def test_a_whole_network_goes_into_a_backbone(published):
    net = create_backbone("vgg16_largefov")
    for head in ("fc8.weight", "f9.weight"):
        report = load_published(net, {**published, head: torch.zeros(1)})
        assert report == LoadReport((), (head,))


def test_head_that_a_file_lacks_stays(published, cam_net):
    before = cam_net.head.classifier.weight.detach().clone()
    report = load_published(cam_net, {n: v + 1 for n, v in published.items()})
    assert report.missing == ("head.classifier.weight",)
    assert torch.equal(cam_net.head.classifier.weight, before)
    assert torch.equal(cam_net.backbone.fc6.bias, published["fc6.bias"] + 1)
    assert cam_net.backbone.pretrained


def test_incomplete_backbone_is_refused(published, cam_net):
    before = cam_net.backbone.fc6.bias.detach().clone()
    state = {n: v + 1 for n, v in published.items() if n != "fc7.bias"}
    with pytest.raises(WSSSError, match=r"lacks 1 entries of the backbone \(fc7.bias\); give a wh"):
        load_published(cam_net, state)
    assert torch.equal(cam_net.backbone.fc6.bias, before)


# --- what does not fit --------------------------------------------------------------------------

ONE = torch.zeros(1)
OTHERS = {
    "the affinity network of VGG16 LargeFOV, .*; build AffinityNet\\('vgg16_largefov'\\), or": {
        "conv5_3.weight": ONE,
        "f9.weight": ONE,
    },
    "the affinity network of ResNet38d, .*; build AffinityNet\\('resnet38d'\\), or give": {
        "module.b4_5.bn_branch2a.weight": ONE,
        "module.f9.weight": ONE,
    },
    "the CAM network of ResNet38d, .*; build CAMNet\\('resnet38d', num_classes=7\\), or": {
        "b4_5.bn_branch2a.weight": ONE,
        "fc8.weight": torch.zeros(7, 4096, 1, 1),
    },
    "ImageNet weights of ResNet38d, .*; build on backbone 'resnet38d'": {
        "b4_5.bn_branch2a.weight": ONE
    },
    "torchvision's VGG16, .*; give it as weights of backbone 'vgg16'": {"features.28.weight": ONE},
    "a ResNet of torchvision, .* weights of backbone 'resnet18', …": {"layer4.0.conv1.weight": ONE},
    "a network of this library, .* use its load_state_dict": {"backbone.b4_5.x": ONE},
    r"none of the networks known here \(a, b, c, d, … \(5 in all\)\)": dict.fromkeys("abcde", ONE),
    r"none of the networks known here \(no entries\), .* of ResNet38d and VGG16 LargeFOV": {},
}


@pytest.mark.parametrize("looks", OTHERS)
def test_another_network_is_named(cam_net, looks):
    with pytest.raises(WSSSError, match=f"^the state dict looks like {looks}") as info:
        load_published(cam_net, OTHERS[looks])
    assert "but the model is CAMNet with VGG16LargeFOV; " in str(info.value)


def test_a_cam_network_is_no_affinity_network(affinity_net, published):
    state = {**published, "fc8.weight": torch.zeros(20, 1024, 1, 1)}
    with pytest.raises(
        WSSSError,
        match=r"looks like the CAM network of VGG16 LargeFOV, but the model is AffinityNet with "
        r"VGG16LargeFOV; build CAMNet\('vgg16_largefov', num_classes=20\), or give it as weights",
    ):
        load_published(affinity_net, state)


def test_files_of_torchvision_are_known_by_their_real_names(cam_net):
    for name, title in (("vgg16", "torchvision's VGG16"), ("resnet18", "a ResNet of torchvision")):
        state = create_backbone(name).network.state_dict()
        with pytest.raises(WSSSError, match=f"looks like {title}"):
            load_published(cam_net, state)
    with pytest.raises(WSSSError, match="looks like a network of this library"):
        load_published(cam_net, cam_net.state_dict())


@pytest.mark.parametrize("make", [lambda: CAMNet("tiny", 20), lambda: SegmentationNet(4)])
def test_another_model_is_named(make, published):
    model = make()
    with pytest.raises(WSSSError, match=f"but the model is {type(model).__name__} with "):
        load_published(model, published)
    with pytest.raises(WSSSError, match="but the model is TinyBackbone; published weights are of"):
        load_published(create_backbone("tiny"), create_backbone("tiny").state_dict())


def test_number_of_classes(cam_net, published):
    state = {**published, "fc8.weight": torch.zeros(81, 1024, 1, 1)}
    with pytest.raises(
        WSSSError,
        match=r"is of 81 classes, the model of 20; build CAMNet\('vgg16_largefov', num_classes=81",
    ):
        load_published(cam_net, state)


def test_nothing_is_loaded_half(cam_net, published):
    before = {n: v.clone() for n, v in cam_net.state_dict().items()}
    state = {n: v + 5 for n, v in published.items()}
    # the fully connected layer of the undilated network
    state["fc7.weight"] = torch.zeros(4096, 4096)
    with pytest.raises(
        WSSSError,
        match=r"fc7.weight has shape \(4096, 4096\), CAMNet with VGG16LargeFOV expects "
        r"\(1024, 1024, 1, 1\); it is of another variant",
    ):
        load_published(cam_net, state)
    assert all(torch.equal(v, before[n]) for n, v in cam_net.state_dict().items())


# --- files --------------------------------------------------------------------------------------


def test_only_tensors_are_read(tmp_path, cam_net):
    path = tmp_path / "net.pth"
    torch.save({"conv5_3.weight": "text"}, path)
    with pytest.raises(WSSSError, match=r"net\.pth holds no mapping of names to tensors; save or"):
        load_published(cam_net, path)
    with pytest.raises(WSSSError, match=r"^the state dict holds no mapping of names to tensors"):
        load_published(cam_net, {"conv5_3.weight": "text"})
    with pytest.raises(WSSSError, match=r"none\.pth does not exist; give the path"):
        load_published(cam_net, tmp_path / "none.pth")


class Dangerous:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran code')",)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, 2))])
def test_pickles_are_refused(tmp_path, cam_net, save):
    path = tmp_path / "net.pth"
    save({"conv5_3.weight": Dangerous()}, path)
    with pytest.raises(WSSSError, match=r"net.pth .*pickled objects, which are refused because"):
        load_published(cam_net, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_old_and_new(tmp_path, legacy):
    path = tmp_path / "net.pth"
    state = {"module.conv1a.weight": torch.ones(2), "fc8.weight": torch.zeros(3)}
    # the published files are older than torch's zip format
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    assert {n: v.tolist() for n, v in read_state_dict(path).items()} == {
        "conv1a.weight": [1, 1],
        "fc8.weight": [0, 0, 0],
    }


def test_names_of_mxnet(tmp_path):
    """Those of Wu et al.'s Model A1 become all names of ResNet38d, and a classifier."""
    units = {2: 3, 3: 3, 4: 6, 5: 3}
    blocks = [f"{g}a" if i == 0 else f"{g}b{i}" for g, n in units.items() for i in range(n)]
    convs, norms = ["conv1a"], ["bn7"]
    for block in [*blocks, "6a", "7a"]:
        branches = ["2a", "2b1"] + (["2b2"] if block in ("6a", "7a") else [])
        norms += [f"bn{block}_branch{b}" for b in branches]
        convs += [f"res{block}_branch{b}" for b in branches]
        convs += [f"res{block}_branch1"] if block.endswith("a") else []
    names = [f"arg:{conv}_weight" for conv in convs]
    for norm in norms:
        names += [f"arg:{norm}_gamma", f"arg:{norm}_beta"]
        names += [f"aux:{norm}_moving_mean", f"aux:{norm}_moving_var"]
    names += ["arg:linear1000_weight", "arg:linear1000_bias", "data"]
    params_file(tmp_path / "a1.params", {n: torch.tensor([float(i)]) for i, n in enumerate(names)})
    state = read_state_dict(tmp_path / "a1.params")
    with torch.device("meta"):
        own = create_backbone("resnet38d").state_dict()
    wanted = {n for n in own if not n.endswith("num_batches_tracked")}
    assert state.keys() == wanted | {"linear1000.weight", "linear1000.bias", "data"}
    number = {name: i for i, name in enumerate(names)}
    for theirs, ours in {
        "arg:conv1a_weight": "conv1a.weight",
        "arg:res2a_branch1_weight": "b2.conv_branch1.weight",
        "arg:res4b5_branch2b1_weight": "b4_5.conv_branch2b1.weight",
        "arg:bn5b2_branch2a_gamma": "b5_2.bn_branch2a.weight",
        "arg:bn7a_branch2b2_beta": "b7.bn_branch2b2.bias",
        "aux:bn7_moving_mean": "bn7.running_mean",
        "aux:bn6a_branch2b1_moving_var": "b6.bn_branch2b1.running_var",
    }.items():
        assert state[ours].item() == number[theirs]


def test_params_of_mxnet_as_weights(tmp_path, published):
    path = tmp_path / "vgg.params"
    arrays = {f"arg:{n.replace('.', '_')}": v for n, v in published.items()}
    params_file(path, {**arrays, "arg:linear1000_weight": torch.zeros(2, 2)})
    net = create_backbone("vgg16_largefov", weights=str(path))
    assert net.pretrained
    assert all(torch.equal(v, published[n]) for n, v in net.state_dict().items())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WSSSError, match=r"vgg.params cannot be read: it ends \d+ bytes too early"):
        create_backbone("vgg16_largefov", weights=str(path))


@pytest.mark.slow
def test_params_of_mxnet_into_resnet38d(tmp_path):
    net = create_backbone("resnet38d")
    arrays = {}
    what = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
    for name, value in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            layer, end = name.rsplit(".", 1)
            block, _, branch = layer.rpartition(".")
            group, _, unit = block.partition("_")
            block = f"{group[1:]}{'b' + unit if unit else 'a'}_" if group else ""
            branch = branch.replace("conv_", "res" + block).replace("bn_", "bn" + block)
            end = what.get(end, "moving_var") if "bn" in branch else end
            arrays[f"{'aux' if 'moving' in end else 'arg'}:{branch}_{end}"] = value + 0.5
    params_file(tmp_path / "a1.params", arrays)
    other = create_backbone("resnet38d", weights=str(tmp_path / "a1.params"))
    for name, value in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(other.state_dict()[name], value + 0.5), name


def test_another_architecture_as_weights(tmp_path):
    torch.save({"b4_5.bn_branch2a.weight": ONE}, tmp_path / "res38.pth")
    with pytest.raises(
        WSSSError, match=r"res38.pth looks like ImageNet weights of ResNet38d, .* VGG16LargeFOV;"
    ):
        create_backbone("vgg16_largefov", weights=str(tmp_path / "res38.pth"))
