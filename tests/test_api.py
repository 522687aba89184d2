"""The public interface, name by name; a change to it is deliberate.

``python tests/test_api.py`` writes ``public_api.txt`` anew. A name or parameter that disappears, or
a default that changes, breaks somebody's program: see "Versions" in CONTRIBUTING.md.
"""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

LISTING = Path(__file__).with_name("public_api.txt")
PACKAGES = ("", "backbones", "callbacks", "data", "layers", "losses", "models", "pipeline", "tasks")

USER = """
import torch
import wsss_affinity as wa
from wsss_affinity.backbones import Backbone, FeatureInfo
from wsss_affinity.layers import random_walk


class Net(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, 3, 8, 1)
        self.feature_info = FeatureInfo((8,), (8,))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.layer(images)]


net = wa.CAMNet(Net(), num_classes=3)
reveal_type(net.cam(torch.rand(1, 3, 64, 64)))
reveal_type(random_walk(torch.rand(1, 2, 8, 8), torch.rand(1, 34, 8, 8)))
reveal_type(wa.run_pipeline(wa.load_config(["experiment=shapes"])))
wa.RandomWalk(method="fast")
wa.AffinitiyNet
"""


def surface():
    """One line for each public name: with parameters and defaults, without types."""
    for package in PACKAGES:
        module = import_module(f"wsss_affinity.{package}".rstrip("."))
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            yield f"{module.__name__}.{name}{_parameters(thing)}"


def _parameters(thing):
    exception = isinstance(thing, type) and issubclass(thing, Exception)
    if exception or not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return ""
    signature = inspect.signature(thing)
    empty = inspect.Parameter.empty
    bare = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return re.sub(r" at 0x\w+", "", str(inspect.Signature(bare)))


def test_the_public_interface_is_the_one_listed():
    listed, found = set(LISTING.read_text().splitlines()), set(surface())
    assert len(listed) > 40
    hint = "if that is meant, run python tests/test_api.py and say so in CHANGELOG.md"
    assert found == listed, f"gone {sorted(listed - found)}, new {sorted(found - listed)}; {hint}"


def test_top_level_names_are_those_of_the_subpackages():
    import wsss_affinity as wa

    for name in wa.__all__:
        home = import_module(f"wsss_affinity.{wa._HOME[name]}")
        assert getattr(wa, name) is getattr(home, name)


@pytest.mark.slow
def test_a_users_program_is_checked_against_our_types(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    import wsss_affinity

    source = Path(wsss_affinity.__file__).parents[1]
    program = (  # on the path like an installed package, so py.typed counts
        f"import sys; sys.path.insert(0, {str(source)!r});"
        "from mypy.main import main; main(args=['--strict', '--no-pretty', 'user.py'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"},
    )
    told = re.findall(r"user\.py:\d+: (.*)", done.stdout)
    assert [line for line in told if line.startswith("note: Revealed")] == [
        'note: Revealed type is "torch._tensor.Tensor"',
        'note: Revealed type is "torch._tensor.Tensor"',
        'note: Revealed type is "wsss_affinity.pipeline.runner.RunResult"',
    ], done.stdout + done.stderr
    errors = [line for line in told if line.startswith("error")]
    assert len(errors) == 2, errors
    assert '"method" to "RandomWalk" has incompatible type' in errors[0]
    assert 'has no attribute "AffinitiyNet"' in errors[1]


if __name__ == "__main__":
    LISTING.write_text("".join(f"{line}\n" for line in surface()))
