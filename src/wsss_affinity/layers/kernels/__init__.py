"""Triton kernels for CUDA: the same results as the torch operators beside them, faster."""

from torch import Tensor, nn

from wsss_affinity.layers.optional import recent


def available(tensor: Tensor) -> bool:
    """Whether the kernels can take this tensor; where not, torch operators do the work.

    Tensors of other types may hold no values, as the fake ones of ``torch.export``.
    """
    # tuples of tensors need 3.4, which comes with torch 2.8
    return tensor.is_cuda and type(tensor) in (Tensor, nn.Parameter) and recent("triton", (3, 4))
