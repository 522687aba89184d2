"""Affinities of neighbouring patches, read off the self-attention of a vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_affinity.layers.neighborhood import Neighborhood

_EPS = 1e-12
#: of the balancing: a patch that is heeded 1000 times as much then moves affinities by 1e-4
_ROUNDS = 40


def attention_affinity(attention: Tensor, grid: tuple[int, int], radius: int = 5) -> Tensor:
    r"""Affinity of each pair of neighbouring patches, from how much they heed each other.

    .. math::
        s_{ij} = \tfrac12 (A_{ij} + A_{ji}), \qquad
        b_{ij} = d_i s_{ij} d_j \;\text{with}\; \sum_{j \in N(i)} b_{ij} = 1, \qquad
        a_{ij} = b_{ij} / \sqrt{m_i m_j}, \quad m_i = \max_{j \in N(i)} b_{ij}

    That attention tells which patches show the same thing, without any training for it, is the
    observation of Xu et al. ("Multi-class Token Transformer", CVPR 2022), who multiply activation
    maps with attention averaged over heads and layers; Lin et al. ("CLIP is Also an Efficient
    Segmenter", CVPR 2023) make it symmetric, and balance its rows and columns as here, so that
    patches that all others heed do not draw everything. Here this is done among neighbours. The
    last division brings the result to the range of AffinityNet's affinities.

    Args:
        attention: ``(B, N, N)``, at least 0: row ``i`` says how much patch ``i`` heeds each patch.
        grid: Rows and columns of patches; ``N`` is their product.
        radius: Radius of the neighbourhood in patches.

    Returns:
        ``(B, K, *grid)`` in [0, 1], as :func:`~wsss_affinity.layers.pairwise_affinity` makes them,
        in the dtype of ``attention``; float16 and bfloat16 are balanced in float32.

    Raises:
        ValueError: If ``attention`` does not fit the grid, is not floating point, or has negative
            values or NaN.

    Example:
        >>> import torch
        >>> same = torch.eye(2).repeat(2, 2)  # 2×2 patches; those of a column heed each other
        >>> planes = attention_affinity((0.1 + 0.3 * same)[None], (2, 2), radius=2)
        >>> planes[0, :, 0, 0]  # to the right, down left, down, down right
        tensor([0.2500, 0.0000, 1.0000, 0.2500])
    """
    height, width = grid
    if attention.ndim != 3 or attention.shape[1:] != (height * width, height * width):
        raise ValueError(
            f"attention must have shape (B, N, N) with N = {height}·{width}, "
            f"got {tuple(attention.shape)}"
        )
    if not attention.is_floating_point():
        raise ValueError(f"attention must be floating point, got {attention.dtype}")
    if attention.numel():
        low = attention.detach().amin()
        if not bool(low >= 0):  # NaN too
            raise ValueError(
                f"attention must hold values of at least 0, as a softmax gives them, got "
                f"{low.item():g}"
            )
    dtype = torch.promote_types(attention.dtype, torch.float32)
    neighborhood = Neighborhood(radius)
    valid = neighborhood.valid(height, width).to(attention.device)
    plane, y, x = valid.nonzero(as_tuple=True)
    dy, dx = neighborhood.offsets.to(attention.device)[plane].unbind(1)
    first, second = y * width + x, (y + dy) * width + x + dx
    mutual = attention[:, first, second].to(dtype) + attention[:, second, first].to(dtype)
    mutual = mutual / 2
    for reduction in (*["sum"] * _ROUNDS, "amax"):
        most = mutual.new_full((len(mutual), height * width), _EPS)
        for end in (first, second):
            most = most.scatter_reduce(1, end.expand_as(mutual), mutual, reduction)
        mutual = mutual / (most[:, first].sqrt() * most[:, second].sqrt())
    planes = mutual.new_zeros(len(attention), *valid.shape)
    planes[:, valid] = mutual.clamp_max(1)  # rounding may take it above
    return planes.to(attention.dtype)
