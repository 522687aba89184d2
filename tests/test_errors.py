import pytest

from wsss_affinity.errors import WSSSError, did_you_mean


def test_error_prints_its_message_alone():
    assert str(WSSSError("no such file; give another")) == "no such file; give another"
    assert isinstance(WSSSError("x"), Exception)
    assert not isinstance(WSSSError("x"), ValueError)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet8", "did you mean 'resnet18' or 'resnet50'?"),
        ("vgg", "did you mean 'vgg16'?"),
        ("zzz", "valid names: resnet18, resnet50, vgg16"),
        ("", "valid names: resnet18, resnet50, vgg16"),
    ],
)
def test_did_you_mean(name, expected):
    assert did_you_mean(name, ["vgg16", "resnet50", "resnet18", "vgg16"]) == expected


def test_did_you_mean_keeps_to_its_limit():
    names = [f"resnet{n}" for n in range(10)]
    assert did_you_mean("resnet", names, limit=2).count("'resnet") == 2
