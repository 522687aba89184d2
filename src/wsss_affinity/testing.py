"""What a backbone must keep, as a test class that authors of backbones inherit.

A file of tests needs no more than this::

    from wsss_affinity.testing import BackboneContract

    class TestMyNet(BackboneContract):
        def make(self):
            return MyNet()  # or a name, or {"_target_": "my_pkg.MyNet", "width": 32}
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from wsss_affinity.backbones import Backbone, Spec, create_backbone
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import AffinityNet, CAMNet, SegmentationNet


class BackboneContract:
    """Tests of the contract of :class:`wsss_affinity.backbones.Backbone`; they need pytest.

    Attributes:
        sizes: Heights and widths of the images that are tried.
        output_strides: Tried one by one; each must be kept or refused in one sentence.
        architecture: Segmentation network that takes the backbone as its encoder.
        options: For ``create_backbone``, e.g. ``{"output_stride": 8}``.
        tolerance: Largest relative difference of two runs that ought to be the same.
    """

    sizes: tuple[tuple[int, int], ...] = ((64, 96), (65, 47), (33, 70))
    output_strides: tuple[int, ...] = (8, 16)
    architecture: str = "DeepLabV3Plus"
    options: Mapping[str, Any] = MappingProxyType({})
    tolerance: float = 1e-5

    def make(self) -> Spec:
        """What is tested: a name, an import path with arguments, or a new module."""
        raise NotImplementedError("return the backbone from make()")

    def built(self) -> Backbone:
        """The backbone in evaluation mode, made once a class; tests that change it take a copy."""
        kind = type(self)
        if "_built" not in vars(kind):
            torch.manual_seed(0)
            kind._built = create_backbone(self.make(), **self.options).eval()  # type: ignore[attr-defined]
        backbone: Backbone = kind._built  # type: ignore[attr-defined]
        return backbone

    def test_description(self) -> None:
        """feature_info and mean make sense; that they are there is seen to where it is built."""
        net = self.built()
        info = net.feature_info
        assert len(info.channels) == len(info.strides) >= 1, f"not one stride a map: {info}"
        assert all(isinstance(n, int) and n >= 1 for n in (*info.channels, *info.strides)), info
        # the last may have been brought to a chosen stride
        assert list(info.strides[:-1]) == sorted(info.strides[:-1]), f"not finest first: {info}"
        assert max(map(abs, net.mean)) <= 1, "mean is of RGB in [0, 1], not in [0, 255]"

    def test_shapes(self) -> None:
        """Every size of image gives maps of the promised channels, sizes rounded up."""
        net = self.built()
        for height, width in self.sizes:
            with torch.no_grad():
                maps = net(torch.rand(2, 3, height, width))
            self._check(net, maps, 2, height, width)

    def test_output_stride_is_kept_or_refused(self) -> None:
        """The last map has the output stride asked for, or there is one sentence."""
        height, width = self.sizes[-1]
        for stride in self.output_strides:
            try:
                net = create_backbone(self.make(), **{**self.options, "output_stride": stride})
            except WSSSError as error:
                if str(stride) not in str(error):
                    raise AssertionError(f"the refusal does not name {stride}: {error}") from error
                continue
            last = net.feature_info.strides[-1]
            assert last == stride, f"asked for output_stride {stride}, got {last}"
            with torch.no_grad():
                self._check(net, net.eval()(torch.rand(1, 3, height, width)), 1, height, width)

    def test_evaluation_is_deterministic(self) -> None:
        """The same images give the same maps, alone and in a batch."""
        net = self.built()
        images = torch.rand(2, 3, *self.sizes[0])
        with torch.no_grad():
            first, again, alone = net(images), net(images), net(images[1:])
        for a, b, c in zip(first, again, alone, strict=True):
            assert torch.equal(a, b), "two runs in evaluation mode differ"
            self._near(a[1:], c, "an image alone gives other maps than in a batch")
            assert a.isfinite().all(), "maps are not finite"

    def test_maps_see_the_image(self) -> None:
        """Different images give different maps."""
        net = self.built()
        torch.manual_seed(0)
        with torch.no_grad():
            one, two = net(torch.randn(2, 3, *self.sizes[0]))[-1]
        assert not torch.equal(one, two), "the last map does not depend on the image"

    def test_images_are_left_alone(self) -> None:
        """Neither the images nor maps handed out are written over, by stages or a later call."""
        net = copy.deepcopy(self.built())
        given: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(stage: int, module: nn.Module, args: tuple[Any, ...]) -> None:
            if stage not in given and args and isinstance(args[0], Tensor):
                given[stage] = args[0], args[0].clone()

        # a stage may be a container made on the spot, so that only what it holds is called
        for i, stage in enumerate(getattr(net, "stages", ())):
            for module in stage.modules():
                module.register_forward_pre_hook(partial(keep, i))
        images = torch.randn(1, 3, *self.sizes[0])
        before = images.clone()
        with torch.no_grad():
            maps = net(images)
        assert torch.equal(images, before), "forward changes its input"
        storages = {m.untyped_storage().data_ptr() for m in maps}
        for tensor, value in given.values():
            if tensor.untyped_storage().data_ptr() in storages:
                assert torch.equal(tensor, value), "a stage writes over the map it is given"
        kept = [m.clone() for m in maps]
        with torch.no_grad():
            net(torch.randn(1, 3, *self.sizes[0]))
        assert all(map(torch.equal, maps, kept)), "a later call writes over the maps of an earlier"

    def test_gradients_flow(self) -> None:
        """Each map's gradient reaches the image; most parameters have one from all maps."""
        net = copy.deepcopy(self.built())
        images = torch.randn(1, 3, *self.sizes[0], requires_grad=True)
        maps = net(images)
        for i, feature_map in enumerate(maps):
            # squared, since the sum of what a normalisation layer leaves is constant
            loss = feature_map.square().sum()
            (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
            assert gradient.abs().sum() > 0, f"no gradient from map {i} to the image"
        sum((m.square().sum() for m in maps), torch.zeros(())).backward()
        trained = [p for p in net.parameters() if p.requires_grad]
        reached = sum(p.grad is not None for p in trained)
        assert 2 * reached > len(trained), f"{reached} of {len(trained)} parameters are reached"

    def test_freezing(self) -> None:
        """Frozen stages and BatchNorms stay as they are while training."""
        net = copy.deepcopy(self.built())
        if not isinstance(net, Backbone) or not net.stages:
            return  # it offers none
        net.freeze(batchnorm=True, num_stages=1)
        net.train()
        # a stage may be a container made on the spot
        frozen = [m for m in net.stages[0].modules() if not list(m.children())]
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for module in frozen + norms:
            assert not module.training, f"a frozen {type(module).__name__} is in training mode"
            assert not any(p.requires_grad for p in module.parameters())
        kept = {k: v.clone() for m in norms for k, v in m.state_dict(prefix=str(id(m))).items()}
        with torch.no_grad():
            net(torch.randn(2, 3, *self.sizes[0]))
        now = {k: v for m in norms for k, v in m.state_dict(prefix=str(id(m))).items()}
        assert all(torch.equal(v, now[k]) for k, v in kept.items()), "statistics have changed"
        try:
            net.freeze(num_stages=len(net.stages) + 1)
        except WSSSError:
            return
        raise AssertionError("more stages than there are can be frozen")

    def test_state_dict_goes_round(self) -> None:
        """Weights written to a file and read into another network give the same maps."""
        net = self.built()
        # a copy would keep what the file lacks
        torch.manual_seed(1)
        twin = create_backbone(self.make(), **self.options).eval()
        saved = net.state_dict()
        with torch.no_grad():
            for name, value in (*twin.named_parameters(), *twin.named_buffers()):
                # buffers that are not saved are made with the network
                if name in saved or isinstance(value, nn.Parameter):
                    value.zero_()
        stream = io.BytesIO()
        torch.save(saved, stream)
        stream.seek(0)
        twin.load_state_dict(torch.load(stream, weights_only=True))
        self._same(net, twin, "after a round trip of its state dict")

    def test_copies(self) -> None:
        """A deep copy and a pickled one give the same maps and share nothing."""
        net = self.built()
        twin = copy.deepcopy(net)
        shared = {p.data_ptr() for p in net.parameters()} & {
            p.data_ptr() for p in twin.parameters()
        }
        assert not shared, "a deep copy shares parameters with the original"
        self._same(net, twin, "in a deep copy")
        del twin
        self._same(net, pickle.loads(pickle.dumps(net)), "in a pickled copy")

    def test_in_cam_net(self) -> None:
        """CAMNet gives logits and maps on it, and can be trained."""
        net = CAMNet(copy.deepcopy(self.built()), num_classes=3)
        height, width = self.sizes[1]
        images, stride = torch.rand(2, 3, height, width), net.backbone.feature_info.strides[-1]
        assert net(images).shape == (2, 3)
        assert net.cam(images).shape == (2, 3, -(-height // stride), -(-width // stride))
        net(images).square().sum().backward()
        assert any(p.grad is not None for p in net.backbone.parameters())

    def test_in_affinity_net(self) -> None:
        """AffinityNet runs on it at output stride 8, whatever stride it has."""
        if len(self.built().feature_info.channels) < 3:
            return  # AffinityNet needs three maps, and says so
        net = AffinityNet(copy.deepcopy(self.built()), output_stride=8).eval()
        height, width = self.sizes[1]
        with torch.no_grad():
            affinity = net(torch.rand(1, 3, height, width))
        assert affinity.shape == (1, 34, -(-height // 8), -(-width // 8))
        assert affinity.isfinite().all()

    def test_as_segmentation_encoder(self) -> None:
        """A segmentation network on it gives one score a pixel and label."""
        net = SegmentationNet(
            4, architecture=self.architecture, encoder=copy.deepcopy(self.built())
        ).eval()
        height, width = self.sizes[1]
        with torch.no_grad():
            assert net(torch.rand(1, 3, height, width)).shape == (1, 4, height, width)

    def _check(self, net: Backbone, maps: Any, batch: int, height: int, width: int) -> None:
        info = net.feature_info
        assert isinstance(maps, (list, tuple)), f"a list of maps is wanted, got {type(maps)}"
        found = [tuple(m.shape) for m in maps]
        wanted = [
            (batch, channels, -(-height // stride), -(-width // stride))
            for channels, stride in zip(info.channels, info.strides, strict=True)
        ]
        assert found == wanted, f"images of {height}×{width}: maps {found}, promised {wanted}"

    def _same(self, net: Backbone, twin: Backbone, when: str) -> None:
        images = torch.rand(1, 3, *self.sizes[0])
        with torch.no_grad():
            for a, b in zip(net(images), twin(images), strict=True):
                self._near(a, b, f"the maps are others {when}")

    def _near(self, a: Tensor, b: Tensor, message: str) -> None:
        scale = max(float(a.abs().max()), 1e-12)
        assert float((a - b).abs().max()) <= self.tolerance * scale, message
