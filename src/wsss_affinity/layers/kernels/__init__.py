"""Triton kernels for CUDA: the same results as the torch operators beside them, faster."""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

from torch import Tensor, nn


def available(tensor: Tensor) -> bool:
    """Whether the kernels can take this tensor; where not, torch operators do the work.

    Tensors of other types may hold no values, as the fake ones of ``torch.export``.
    """
    return tensor.is_cuda and type(tensor) in (Tensor, nn.Parameter) and _recent_triton()


@lru_cache(maxsize=1)
def _recent_triton() -> bool:
    if find_spec("triton") is None:
        return False
    major, minor = import_module("triton").__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 4)  # tuples of tensors; comes with torch 2.8
