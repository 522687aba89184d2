import pytest
import torch
import torch.nn.functional as F

from wsss_affinity.models.multi_scale import in_halves, multi_scale_sum, out_of_memory

CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")


def left_half_counts_double(images):
    """Not symmetric, and with its own grid of half the size."""
    ramp = torch.linspace(2, 1, images.shape[-1])
    return F.avg_pool2d((images * ramp).mean(1, keepdim=True), 2, ceil_mode=True)


def test_equals_a_sum_by_hand():
    images, size = torch.rand(2, 3, 12, 20), (10, 16)
    expected = torch.zeros(2, 1, *size)
    for scale in (0.5, 1.25):
        target = (round(12 * scale), round(20 * scale))
        scaled = F.interpolate(images, target, mode="bicubic", antialias=True)
        for axes in ((), (3,)):
            maps = left_half_counts_double(scaled.flip(axes))
            expected += F.interpolate(maps, size, mode="bilinear").flip(axes)
    result = multi_scale_sum(
        left_half_counts_double, images, size=size, scales=(0.5, 1.25), flip=True
    )
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("flip", [False, True])
def test_a_constant_counts_once_a_scale_and_mirror_image(flip):
    result = multi_scale_sum(
        lambda x: x[:, :1], torch.ones(1, 3, 9, 7), size=(9, 7), scales=(1.0, 0.5, 2.0), flip=flip
    )
    torch.testing.assert_close(result, torch.full((1, 1, 9, 7), 6.0 if flip else 3.0))


def test_a_scale_never_leaves_nothing_of_the_image():
    result = multi_scale_sum(
        lambda x: x, torch.ones(1, 3, 2, 2), size=(2, 2), scales=(0.01,), flip=False
    )
    torch.testing.assert_close(result, torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_scales_are_checked(scales):
    with pytest.raises(ValueError, match=r"positive factors, e.g. \(0.5, 1.0\), got \["):
        multi_scale_sum(lambda x: x, torch.ones(1, 3, 2, 2), size=(2, 2), scales=scales, flip=True)


def fits(most, error, sizes):
    """Doubles a batch of at most ``most`` items and notes its size."""

    def function(batch):
        sizes.append(len(batch))
        if len(batch) > most:
            raise error
        return 2 * batch

    return function


@pytest.mark.parametrize("error", [CUDA, CPU])
def test_a_batch_too_large_is_halved_until_it_fits(error):
    batch, sizes = torch.arange(5.0), []
    result = in_halves(fits(2, error, sizes), batch)
    assert result.tolist() == [0, 2, 4, 6, 8]
    assert sizes == [5, 3, 2, 1, 2]


@pytest.mark.parametrize("error", [CUDA, CPU])
def test_a_single_item_too_large_is_an_error(error):
    sizes = []
    with pytest.raises(type(error)) as caught:
        in_halves(fits(0, error, sizes), torch.zeros(2))
    assert out_of_memory(caught.value)
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be reported later",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_what_the_libraries_of_cuda_say(text):
    assert out_of_memory(RuntimeError(text))
    assert not out_of_memory(ValueError(text))


def test_other_errors_are_not_tried_again():
    sizes = []
    with pytest.raises(RuntimeError, match="shapes differ"):
        in_halves(fits(0, RuntimeError("shapes differ"), sizes), torch.zeros(2))
    assert sizes == [2]


def test_image_and_mirror_image_go_one_by_one_where_memory_is_short():
    images, options = torch.rand(1, 3, 12, 20), {"size": (10, 16), "scales": (0.5, 1), "flip": True}
    sizes = []

    def short(batch):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise CUDA
        return left_half_counts_double(batch)

    expected = multi_scale_sum(left_half_counts_double, images, **options)
    torch.testing.assert_close(multi_scale_sum(short, images, **options), expected)
    assert sizes == [2, 1, 1] * 2
