import pytest
import pytorch_lightning as pl
import torch

from wsss_affinity.backbones import create_backbone
from wsss_affinity.errors import WSSSError
from wsss_affinity.models import AffinityNet, CAMNet, SegmentationNet
from wsss_affinity.tasks import CAMTask, Optimization
from wsss_affinity.tasks.base import Task, parameter_groups


def pretrained_cam_net(**options):
    backbone = create_backbone("tiny", **options)
    backbone.pretrained = True
    return CAMNet(backbone, 3)


class BiasedNet(CAMNet):
    """A CAMNet whose head has a bias too."""

    def __init__(self):
        super().__init__("tiny", 3)
        self.backbone.pretrained = True
        self.extra = torch.nn.Linear(3, 3)


def rates(groups):
    return [(g["lr"], g["weight_decay"]) for g in groups]


def test_four_groups():
    net = BiasedNet()
    optimization = Optimization(lr=0.01, weight_decay=5e-4, head_factor=10, bias_factor=2)
    groups = parameter_groups(net, optimization)
    expected = {
        (0.01, 5e-4): {id(p) for n, p in net.backbone.named_parameters() if n.endswith("weight")},
        (0.02, 0.0): {id(p) for n, p in net.backbone.named_parameters() if n.endswith("bias")},
        (0.1, 5e-4): {id(p) for p in net.head.parameters()} | {id(net.extra.weight)},
        (0.2, 0.0): {id(net.extra.bias)},
    }
    found = {(g["lr"], g["weight_decay"]): {id(p) for p in g["params"]} for g in groups}
    assert len(groups) == 4
    assert found == expected


def test_every_parameter_is_in_one_group():
    net = BiasedNet()
    listed = [id(p) for g in parameter_groups(net, Optimization()) for p in g["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in net.parameters()}


def test_frozen_parameters_are_left_out():
    net = pretrained_cam_net(freeze_stages=2, freeze_batchnorm=True)
    frozen = {id(p) for p in net.parameters() if not p.requires_grad}
    listed = {id(p) for g in parameter_groups(net, Optimization()) for p in g["params"]}
    assert frozen
    assert not frozen & listed
    assert frozen | listed == {id(p) for p in net.parameters()}


def test_untrained_backbone_learns_like_a_head():
    groups = parameter_groups(CAMNet("tiny", 3), Optimization(lr=0.01, weight_decay=5e-4))
    assert rates(groups) == [(0.2, 0.0), (0.1, 5e-4)]
    listed = {id(p) for g in groups for p in g["params"]}
    assert len(listed) == len(list(CAMNet("tiny", 3).parameters()))


def test_segmentation_net_says_itself_whether_it_is_pretrained():
    net = SegmentationNet(3, architecture="Unet", encoder="resnet18")
    fresh = parameter_groups(net, Optimization(lr=0.01))
    assert {g["lr"] for g in fresh} == {0.1, 0.2}
    net.pretrained = True
    groups = parameter_groups(net, Optimization(lr=0.01))
    encoder = {id(p) for p in net.backbone.parameters()}
    for group in groups:
        inside = {id(p) in encoder for p in group["params"]}
        assert inside == {group["lr"] in (0.01, 0.02)}
    assert {g["lr"] for g in groups} == {0.01, 0.02, 0.1, 0.2}


def test_affinity_net_has_new_layers_besides_its_backbone():
    net = AffinityNet("tiny")
    net.backbone.pretrained = True
    groups = parameter_groups(net, Optimization(lr=1.0, head_factor=10))
    new = next(g for g in groups if g["lr"] == 10.0)
    assert {id(p) for p in new["params"]} == {
        id(p) for m in (net.levels, net.fuse) for p in m.parameters()
    }


class FewSteps:
    estimated_stepping_batches = 10


def configured(optimization):
    task = CAMTask(pretrained_cam_net(), optimization)
    task._trainer = FewSteps()
    task._fabric = None
    return task.configure_optimizers()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("AdamW", torch.optim.AdamW), ("RMSprop", torch.optim.RMSprop)],
)
def test_optimizer_by_name(name, kind):
    assert type(configured(Optimization(name))["optimizer"]) is kind


def test_optimizer_options():
    optimizer = configured(Optimization("sgd", options={"momentum": 0.9}))["optimizer"]
    assert {g["momentum"] for g in optimizer.param_groups} == {0.9}


def test_poly_schedule():
    made = configured(Optimization(lr=0.01, poly_power=0.9))
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    start = [g["initial_lr"] for g in optimizer.param_groups]
    seen = []
    for _ in range(12):
        seen.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    for step in (0, 1, 5, 9, 10, 11):
        factor = max(0.0, 1 - step / 10) ** 0.9
        assert seen[step] == pytest.approx([factor * lr for lr in start])
    assert seen[5][0] == pytest.approx(start[0] * 0.5358867)
    assert seen[10] == [0.0] * len(start)


def test_unknown_optimizer_names_near_ones():
    with pytest.raises(
        WSSSError, match=r"optimizer 'adamww' is not one of torch.optim; did you mean .*'adamw'"
    ):
        configured(Optimization("adamww"))


def test_base_class_is_no_optimizer():
    with pytest.raises(WSSSError, match=r"optimizer 'Optimizer' is not one of torch\.optim"):
        configured(Optimization("Optimizer"))


@pytest.mark.parametrize(
    ("options", "said"), [({"momentun": 0.9}, "momentun"), ({"momentum": -1.0}, "-1.0")]
)
def test_bad_option_is_an_error(options, said):
    with pytest.raises(WSSSError) as caught:
        configured(Optimization("sgd", options=options))
    assert "optimizer 'sgd' refuses its options" in str(caught.value)
    assert said in str(caught.value)
    assert "see optimization.options" in str(caught.value)


def test_hyper_parameters_are_plain():
    task = CAMTask(CAMNet("tiny", 2), Optimization("adamw", lr=0.5), seed=4)
    assert dict(task.hparams) == {
        "optimization": {
            "name": "adamw",
            "lr": 0.5,
            "weight_decay": 5e-4,
            "head_factor": 10.0,
            "bias_factor": 2.0,
            "poly_power": 0.9,
            "options": {},
        },
        "seed": 4,
    }


def test_forward_is_the_network():
    net = CAMNet("tiny", 2).eval()
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(CAMTask(net)(images), net(images), rtol=0, atol=0)


def test_loss_is_for_subclasses():
    with pytest.raises(NotImplementedError):
        Task(CAMNet("tiny", 2)).loss({})


def test_trainer_takes_the_schedule_from_its_own_steps(tmp_path):
    class Watch(pl.Callback):
        rates: list[float] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer, *_):
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    items = [{"image": torch.rand(3, 16, 16), "labels": torch.ones(2)} for _ in range(4)]
    watch = Watch()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[watch],
    )
    task = CAMTask(CAMNet("tiny", 2), Optimization(lr=0.01, bias_factor=1, head_factor=1))
    trainer.fit(task, torch.utils.data.DataLoader(items, batch_size=2))
    assert watch.rates == pytest.approx([0.01 * (1 - step / 4) ** 0.9 for step in range(4)])
