import pytest
import torch

from wsss_affinity.layers import Neighborhood
from wsss_affinity.layers.neighborhood import pair_slices

# the published order for radius 5, written out
RADIUS_5 = [
    *[(0, 1), (0, 2), (0, 3), (0, 4)],
    *[(1, -4), (1, -3), (1, -2), (1, -1), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)],
    *[(2, -4), (2, -3), (2, -2), (2, -1), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)],
    *[(3, -3), (3, -2), (3, -1), (3, 0), (3, 1), (3, 2), (3, 3)],
    *[(4, -2), (4, -1), (4, 0), (4, 1), (4, 2)],
]


def test_radius_5_has_the_34_offsets_in_order():
    neighborhood = Neighborhood()
    assert neighborhood.offsets.tolist() == [list(o) for o in RADIUS_5]
    assert neighborhood.offsets.dtype == torch.int64
    assert neighborhood.pairs == tuple(RADIUS_5)
    assert len(neighborhood) == 34
    assert repr(neighborhood) == "Neighborhood(radius=5)"


@pytest.mark.parametrize("radius", [2, 3, 4, 5, 6, 9])
def test_the_half_disc_and_its_mirror_image_are_the_punctured_disc(radius):
    pairs = Neighborhood(radius).pairs
    both = {*pairs, *((-dy, -dx) for dy, dx in pairs)}
    reach = range(-radius, radius + 1)
    disc = {(dy, dx) for dy in reach for dx in reach if 0 < dy * dy + dx * dx < radius * radius}
    assert both == disc
    assert len(both) == 2 * len(pairs)


def test_offsets_are_not_shared():
    Neighborhood(3).offsets.zero_()
    assert Neighborhood(3).offsets[0].tolist() == [0, 1]


@pytest.mark.parametrize("radius", [1, 0, -3, 2.5, 5.0, "5", True, None])
def test_radius_must_be_a_whole_number_of_at_least_2(radius):
    with pytest.raises(ValueError, match="whole number of at least 2, got"):
        Neighborhood(radius)


@pytest.mark.parametrize("border", ["full", "psa"])
@pytest.mark.parametrize(
    ("radius", "height", "width"), [(5, 12, 13), (5, 3, 2), (5, 1, 1), (2, 4, 1), (3, 1, 9)]
)
def test_valid_marks_the_pairs_inside_the_grid(radius, height, width, border):
    valid = Neighborhood(radius).valid(height, width, border)
    assert valid.shape == (len(Neighborhood(radius)), height, width)
    assert valid.dtype == torch.bool
    rim = radius - 1
    for k, (dy, dx) in enumerate(Neighborhood(radius).pairs):
        for y in range(height):
            for x in range(width):
                inside = y + dy < height and 0 <= x + dx < width
                if border == "psa":
                    inside = inside and y < height - rim and rim <= x < width - rim
                assert valid[k, y, x].item() == inside


def test_psa_border_drops_pairs_and_isolates_ten_corner_pixels():
    """Figures of the published code on the grid of a 375 x 500 image at stride 8."""
    height, width = 47, 63
    full = Neighborhood().valid(height, width, "full")
    psa = Neighborhood().valid(height, width, "psa")
    assert bool((full | ~psa).all())  # nothing is added
    dropped = 1 - psa.sum().item() / full.sum().item()
    assert dropped == pytest.approx(0.138, abs=5e-4)

    partners = torch.zeros(height, width, dtype=torch.int64)
    for k, (dy, dx) in enumerate(RADIUS_5):
        for y, x in psa[k].nonzero().tolist():
            partners[y, x] += 1
            partners[y + dy, x + dx] += 1
    # top left, where no pixel further left looks right; and the two bottom corners
    top, bottom = [(0, 0), (0, 1), (0, 2), (0, 3)], [(45, 0), (45, 62), (46, 0), (46, 1)]
    alone = [tuple(p) for p in (partners == 0).nonzero().tolist()]
    assert alone == [*top, *bottom, (46, 61), (46, 62)]


def test_border_is_checked():
    with pytest.raises(ValueError, match="border must be 'full' or 'psa', got 'none'"):
        Neighborhood().valid(4, 4, "none")


@pytest.mark.parametrize("size", [(6, 7), (3, 3), (1, 1), (2, 9)])
def test_pair_slices_cut_out_both_ends_of_every_pair(size):
    height, width = size
    grid = torch.arange(height * width).view(height, width)
    for dy, dx in RADIUS_5:
        source, target = pair_slices(dy, dx)
        expected = [
            (y * width + x, (y + dy) * width + x + dx)
            for y in range(height)
            for x in range(width)
            if y + dy < height and 0 <= x + dx < width
        ]
        first, second = grid[source].flatten().tolist(), grid[target].flatten().tolist()
        assert list(zip(first, second, strict=True)) == expected
