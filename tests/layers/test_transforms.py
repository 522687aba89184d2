import subprocess
import sys

import pytest
import torch

from wsss_affinity.layers.transforms import outside_graphs, refuse_export, refuse_vmap


def test_a_function_outside_graphs_is_called_as_it_is():
    graphs, compiling = [], []

    @outside_graphs
    def double(x, *, plus=0):
        """Twice."""
        compiling.append(torch.compiler.is_dynamo_compiling())
        return 2 * x + plus

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def function(x):
        return double(x - 1, plus=3) * x

    x = torch.randn(3)
    expected = function(x)
    assert torch.equal(torch.compile(function, backend=backend)(x), expected)
    # one before it and one after
    assert len(graphs) == 2
    assert compiling == [False, False]
    assert (double.__name__, double.__doc__) == ("double", "Twice.")


def test_layers_do_not_import_the_compiler():
    code = "import sys, wsss_affinity.layers; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_refuse_vmap():
    with pytest.raises(ValueError, match=r"^some_layer cannot be mapped by torch\.func\.vmap: it"):
        refuse_vmap("some_layer")


def test_refuse_export():
    refuse_export("some_layer")  # nothing is exported here
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("this torch does not say whether it exports")

    class Layer(torch.nn.Module):
        def forward(self, x):
            refuse_export("some_layer")
            return x

    with pytest.raises(ValueError, match=r"^some_layer cannot be exported: its graph would"):
        torch.export.export(Layer(), (torch.zeros(2),), strict=False)
