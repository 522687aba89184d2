"""The method once more: slow, dense, float64 NumPy, and without a line of the library.

Written from the description of the method (Ahn & Kwak, CVPR 2018, and its published code), so that
the library has something independent to agree with. One image at a time, except in the loss, whose
means go over the batch. Grids are numbered row by row: pixel (y, x) of an (h, w) grid is y * w + x.
"""

import math

import numpy as np

UNSURE = 255
EPS = 1e-5


# Class activation maps and the background's score


def resize_bilinear(maps, size):
    """(C, h, w) → (C, H, W), bilinear, corners not aligned."""
    for axis, new in ((1, size[0]), (2, size[1])):
        old = maps.shape[axis]
        where = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
        low = np.floor(where).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (where - low).reshape([-1 if a == axis else 1 for a in range(3)])
        maps = (1 - share) * np.take(maps, low, axis) + share * np.take(maps, high, axis)
    return maps


def resize_bicubic(maps, size):
    """(C, h, w) → (C, H, W) with the kernel of PIL, which widens as the image shrinks."""
    for axis, new in ((1, size[0]), (2, size[1])):
        old = maps.shape[axis]
        stretch = max(old / new, 1)
        centre = (np.arange(new)[:, None] + 0.5) * old / new
        x = np.abs(np.arange(old) + 0.5 - centre) / stretch
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weight = np.where(x < 1, near, np.where(x < 2, far, 0))
        weight /= weight.sum(1, keepdims=True)
        maps = np.moveaxis(np.tensordot(weight, maps, (1, axis)), 0, axis)
    return maps


def conv1x1(maps, weight):
    """(C, h, w) with weights (D, C) → (D, h, w)."""
    return np.einsum("dc,chw->dhw", np.float64(weight), np.float64(maps))


def cam(features, weight):
    """The classifier's 1×1 convolution, then relu."""
    return np.maximum(conv1x1(features, weight), 0)


def aggregate_cams(maps, mirrored, label, size):
    """Sum of the maps of all scales at image size, mirrored back, of the present classes only.

    Args:
        maps: One (C, h, w) for each view of the image.
        mirrored: For each of them, whether the image was mirrored.
        label: (C,), 1 where the class is in the image.
        size: (H, W) of the image.
    """
    total = np.zeros((len(label), *size))
    for view, is_mirrored in zip(maps, mirrored, strict=True):
        view = resize_bilinear(np.float64(view), size)
        if is_mirrored:
            view = view[:, :, ::-1]
        total += view * np.float64(label)[:, None, None]
    return total


def normalize(maps):
    """Every class divided by its largest value over the image + 1e-5."""
    return np.stack([one / (one.max() + EPS) for one in np.float64(maps)])


def with_background(cams, alpha):
    """[bg, CAM] with bg = (1 − max over the classes)^α."""
    cams = np.float64(cams)
    return np.concatenate([(1 - cams.max(0, keepdims=True)) ** alpha, cams])


# Affinity labels


def class_of(index, classes):
    """The value in a mask of the channel `index` of [bg, present classes]."""
    return 0 if index == 0 else int(classes[index - 1]) + 1


def hard_labels(low, high, classes):
    """Both CRF results (1 + n, H, W) → label map (H, W): the background wins conflicts."""
    labels = np.empty(low.shape[1:], np.int64)
    for y, x in np.ndindex(*labels.shape):
        value = class_of(np.argmax(low[:, y, x]), classes)
        if value == 0:
            value = UNSURE
        if np.argmax(high[:, y, x]) == 0:
            value = 0
        labels[y, x] = value
    return labels


def soft_labels(low, high, classes, stride=8):
    """The published form: pooled first, and only then the arg-max; outside the image is unsure."""
    low, high = pool(low, stride), pool(high, stride)
    labels = hard_labels(low, high, classes)
    for y, x in np.ndindex(*labels.shape):
        if low[:, y, x].max() < EPS and high[:, y, x].max() < EPS:
            labels[y, x] = UNSURE
    return labels


# Pairs


def offsets(radius=5):
    """The forward half-disc, (dy, dx): to the right first, then row by row."""
    found = [(0, dx) for dx in range(1, radius)]
    for dy in range(1, radius):
        found += [(dy, dx) for dx in range(1 - radius, radius) if dy**2 + dx**2 < radius**2]
    return found


def pairs(height, width, radius=5, border="full"):
    """All pairs of a grid: three int arrays (P,), of the offset, of the source, of its neighbour.

    With `border="psa"` the sources stop radius − 1 rows before the bottom and radius − 1 columns
    before both sides.
    """
    margin = {"full": 0, "psa": radius - 1}[border]
    found = []
    for k, (dy, dx) in enumerate(offsets(radius)):
        for y in range(height - margin):
            for x in range(margin, width - margin):
                if y + dy < height and 0 <= x + dx < width:
                    found.append((k, y * width + x, (y + dy) * width + x + dx))
    return np.array(found, np.int64).reshape(-1, 3).T


# AffinityNet


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def affinity_features(levels, level_weights, last_weight):
    """1×1 convolution and ELU for each level, concatenated; 1×1 convolution and ELU.

    The levels of the paper's networks share one grid. For others the library's rule is taken over:
    resize to the last one's after ELU (which leaves a map of that size as it is).

    Args:
        levels: The backbone's maps (C_l, h_l, w_l), from early to late.
        level_weights: (D_l, C_l) for each of them.
        last_weight: (D, ΣD_l).
    """
    grid = levels[-1].shape[1:]
    heads = [elu(conv1x1(x, w)) for x, w in zip(levels, level_weights, strict=True)]
    heads = [resize_bilinear(x, grid) for x in heads]
    return elu(conv1x1(np.concatenate(heads), last_weight))


def affinities(features, radius=5):
    """(D, h, w) → planes (K, h, w): exp(−mean over the channels |f_i − f_j|), 0 outside."""
    _, height, width = features.shape
    flat = np.float64(features).reshape(len(features), -1).T
    planes = np.zeros((len(offsets(radius)), height * width))
    for k, i, j in pairs(height, width, radius).T:
        planes[k, i] = np.exp(-np.abs(flat[i] - flat[j]).mean())
    return planes.reshape(-1, height, width)


def pair_sets(labels, radius=5, border="full"):
    """Label map (h, w) → {"bg", "fg", "neg"}: the pairs of each set, as (offset, source)."""
    sets = {"bg": [], "fg": [], "neg": []}
    flat = labels.reshape(-1)
    for k, i, j in pairs(*labels.shape, radius, border).T:
        a, b = flat[i], flat[j]
        if UNSURE in (a, b):
            continue
        name = "neg" if a != b else "bg" if a == 0 else "fg"
        sets[name].append((k, i))
    return sets


def loss(planes, labels, radius=5, border="full"):
    """Affinities (B, K, h, w) and label maps (B, h, w) → {"loss", "bg", "fg", "neg"}."""
    total = {"bg": 0.0, "fg": 0.0, "neg": 0.0}
    count = {"bg": 0, "fg": 0, "neg": 0}
    for one, label in zip(np.float64(planes), labels, strict=True):
        one = one.reshape(len(one), -1)
        for name, found in pair_sets(label, radius, border).items():
            for k, i in found:
                a = one[k, i]
                total[name] -= math.log(1 + EPS - a if name == "neg" else a + EPS)
            count[name] += len(found)
    mean = {name: total[name] / (count[name] + EPS) for name in total}
    return {"loss": mean["bg"] / 4 + mean["fg"] / 4 + mean["neg"] / 2, **mean}


# The random walk


def weight_matrix(planes, radius=5, beta=8.0, border="full"):
    """The dense W (N, N): affinity^β of the pairs in both directions, 1 on the diagonal."""
    _, height, width = planes.shape
    weights = np.eye(height * width)
    for k, i, j in pairs(height, width, radius, border).T:
        weights[i, j] = weights[j, i] = float(planes[k, i // width, i % width]) ** beta
    return weights


def walk(scores, planes, radius=5, beta=8.0, num_steps=256, border="full"):
    """Scores (C, h, w) · T^t, with T = W, every column divided by its sum."""
    weights = weight_matrix(planes, radius, beta, border)
    transition = weights / weights.sum(0, keepdims=True)
    x = np.float64(scores).reshape(len(scores), -1)
    for _ in range(num_steps):
        x = x @ transition
    return x.reshape(scores.shape)


def pad(x, stride=8):
    """(C, H, W) with zeros to the right and below, up to a multiple of the stride."""
    _, height, width = x.shape
    return np.pad(x, ((0, 0), (0, -height % stride), (0, -width % stride)))


def pool(x, stride=8):
    """(C, H, W) → mean of every stride × stride block; both sides are multiples."""
    channels, height, width = x.shape
    pooled = np.zeros((channels, height // stride, width // stride))
    for c, y, x_ in np.ndindex(*pooled.shape):
        block = x[c, y * stride : (y + 1) * stride, x_ * stride : (x_ + 1) * stride]
        pooled[c, y, x_] = np.float64(block).mean()
    return pooled


def pool_scores(scores, stride=8, padding="masked"):
    """Scores of an image (C, H, W) → on the grid of the features.

    "psa" lets the zeros of the padding into the mean, "masked" takes the image's pixels only.
    """
    pooled = pool(pad(scores, stride), stride)
    if padding == "masked":
        pooled /= pool(pad(np.ones((1, *scores.shape[1:])), stride), stride)
    return pooled


def propagate(scores, features, radius=5, padding="masked", **walk_options):
    """Pooled scores, walked over the affinities of the features of the padded image."""
    planes = affinities(features, radius)
    return walk(pool_scores(scores, 8, padding), planes, radius, **walk_options)


def upsample(scores, size, stride=8):
    """Bilinear × stride, cropped to the image: (C, h, w) → (C, H, W); the arg-max is the mask."""
    _, height, width = scores.shape
    large = resize_bilinear(np.float64(scores), (height * stride, width * stride))
    return large[:, : size[0], : size[1]]
