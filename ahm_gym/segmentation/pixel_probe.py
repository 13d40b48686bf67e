"""The pixel probe: evaluates frozen features of several depths with a linear classifier of every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ahm_gym.data import ImageDataset
from ahm_gym.data.store import cover
from ahm_gym.errors import InputError
from ahm_gym.model.conv_network import ConvNetwork
from ahm_gym.model.encoder_base import Encoder, as_encoder
from ahm_gym.segmentation.batches import choose_labelled
from ahm_gym.segmentation.metrics import Value, mean
from ahm_gym.segmentation.probe import BATCH_SIZE, class_dice

PIXEL_METRICS: tuple[str, ...] = ("ap", "dice", "log_loss")
"""The scores of the pixel probe: average precision, Dice and log-loss."""
PENALTIES: tuple[float, ...] = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
"""Penalties to choose from, the strongest first; see `fit`."""
DEFAULT_PENALTY: float = 1.0
"""The penalty where cross-validation is impossible, as with a single image."""
MAX_SIDE: int = 32
"""Largest number of rows or columns of the grid of pixels."""
NUM_FOLDS: int = 5
"""Largest number of folds of the cross-validation."""
FOLD_IMAGES: int = 40
"""Largest number of images for the cross-validation: more change the choice little, and would take minutes."""
STEPS: int = 100
"""Largest number of L-BFGS iterations of a fit."""
TOLERANCE: float = 3e-4
"""Largest entry of the gradient at which a fit ends."""
SMALLEST_DEVIATION: float = 1e-6
"""Features that vary less are not scaled up to a deviation of 1."""
SMALLEST_VARIANCE: float = 1e-6
"""Components with less variance are left out; a standardised feature has 1."""
SMALLEST_CURVATURE: float = 1e-4
"""Least curvature to assume for rare classes."""

Maps: TypeAlias = list[Float[Tensor, "B _ _ _"]]
"""Feature maps (B, h, w, D) of the same images, one for each resolution, with the channels last."""


@dataclass(frozen=True)
class PixelClassifier:
    """A linear map from the features of each pixel to the logarithms of the class probabilities.

    A pixel's features are the standardised maps of all depths, interpolated bilinearly. Interpolation and a linear
    map can change places, so only one map per class is interpolated, never the features.
    """

    weights: list[Float[Tensor, "_ K"]]
    """Weights of the features, one matrix for each resolution."""
    bias: Float[Tensor, " K"]
    present: Bool[Tensor, " K"]
    """The classes that occur in the labels it was fitted to."""
    absent_probability: float
    """Probability of every other class."""

    def __call__(self, maps: Maps, grid: tuple[int, int]) -> Float[Tensor, "B K h w"]:
        """Logarithms of the class probabilities at every pixel of the grid."""
        scores = logits(maps, self.weights, self.bias, grid)
        scores = scores.masked_fill(~self.present[:, None, None], -torch.inf).log_softmax(dim=1)
        known = torch.tensor(1.0 - self.absent_probability * int((~self.present).sum())).log()
        never = torch.tensor(self.absent_probability).log()
        return torch.where(self.present[:, None, None], scores + known, never)

    def after(self, components: Components) -> PixelClassifier:
        """The same map from the features as they come, where this one takes their components."""
        weights = [basis @ own for basis, own in zip(components.bases, self.weights, strict=True)]
        shifts = [centre @ own for centre, own in zip(components.centres, weights, strict=True)]
        return replace(self, weights=weights, bias=self.bias - torch.stack(shifts).sum(dim=0))


@dataclass(frozen=True)
class Components:
    """The principal components of standardised features, by resolution.

    A rotation does not change the penalty, so the solution is the same as without; but it is reached in far fewer
    steps, since the components are uncorrelated and their variances known. Components of next to no variance are
    left out.
    """

    centres: list[Float[Tensor, " _"]]
    bases: list[Float[Tensor, "_ _"]]
    """From features to components, with the standardisation."""
    variances: list[Float[Tensor, " _"]]

    @classmethod
    def of(cls, maps: Maps) -> Components:
        """The components over all positions of these maps."""
        parts = [_components(one.flatten(0, 2)) for one in maps]
        centres, bases, variances = (list(column) for column in zip(*parts, strict=True))
        return cls(centres, bases, variances)

    def __call__(self, maps: Maps) -> Maps:
        return [
            (one - centre) @ basis for one, centre, basis in zip(maps, self.centres, self.bases, strict=True)
        ]


class PixelProbe:
    """A multinomial logistic regression from frozen features to the class of each pixel, for any choice of labels.

    Encoders are compared on a common grid of pixels; see `grid_for`. Each image is encoded only once, even if several
    choices contain it. The maps are kept in single precision: 0.13 MB an image for the tiny vision transformer at 64
    pixels, 0.8 MB for the U-Net at 64 or 128.

    Args:
        encoder: frozen network of a class that `as_encoder` knows. Images are fitted to its image size as a whole.
        dataset: images with labels in the training and the test split.

    Raises:
        InputError: if test has no labels.
    """

    def __init__(self, encoder: nn.Module, dataset: ImageDataset) -> None:
        self.network: nn.Module = encoder
        self.encoder: Encoder = as_encoder(encoder)
        self.dataset: ImageDataset = dataset
        self.grid: tuple[int, int] = grid_for(self.encoder.image_size, self.encoder.patch_size)
        self.test: list[int] = dataset.indices("test", labelled=True)
        if not self.test:
            raise InputError(
                f"{dataset.name} has no labelled test images, and the probe needs some: add them, or fine-tune."
            )
        self._pixels: dict[int, tuple[list[Tensor], Tensor]] = {}

    def __call__(self, *, labels: int | None = None, seed: int = 0) -> dict[str, Any]:
        """Fits the classifier to one choice of labelled images and measures it on the test split.

        Args:
            labels: number of labelled training images; None uses all of them.
            seed: seed of their choice; see `choose_labelled`. Nothing else is random.

        Returns:
            A dictionary with these keys.

            - `ap`, `dice`, `log_loss`: means over the foreground classes, each the mean over the test cases that have
              the class; see `case_scores`. Also in `per_class`, and in `cases` for every case and class.
            - `per_class`: also has `share`, the mean share of the class in these cases: the average precision of a
              classifier that sees nothing.
            - `absent_classes`: foreground classes that no labelled training image contains. Their average precision is
              that of chance.
            - `penalty`, `folds`: the strength chosen by cross-validation and its number of folds, 0 if it was not
              possible and `DEFAULT_PENALTY` was taken.
            - `grid`: rows and columns of the pixels.
            - `labels`, `num_images`: numbers of training and test images.

        Raises:
            InputError: if there are too few labels.
        """
        train = choose_labelled(self.dataset, labels, seed)
        maps, classes = self.pixels(train)
        components = Components.of(maps)
        problem = Problem(components(maps), components.variances, classes, self.dataset.num_classes)
        penalty, folds = choose_penalty(problem, self.owners(train))
        classifier = next(fit(problem, [penalty])).after(components)
        absent = (~classifier.present[1:]).nonzero()[:, 0] + 1
        return {
            **self._scores(classifier),
            "absent_classes": absent.tolist(),
            "penalty": penalty,
            "folds": folds,
            "grid": list(self.grid),
            "labels": len(train),
            "num_images": len(self.test),
        }

    def pixels(self, indices: list[int]) -> tuple[Maps, Int[Tensor, "B h w"]]:
        """Feature maps of these images, and the class of each pixel of the grid."""
        missing = [index for index in indices if index not in self._pixels]
        was_training = self.network.training
        self.network.eval()
        for start in range(0, len(missing), BATCH_SIZE):
            self._encode(missing[start : start + BATCH_SIZE])
        self.network.train(was_training)
        maps, classes = zip(*(self._pixels[index] for index in indices), strict=True)
        return [torch.stack(same) for same in zip(*maps, strict=True)], torch.stack(classes)

    def owners(self, indices: list[int]) -> list[str]:
        """The patient of each image."""
        cases = [self.dataset.sample(index).case for index in indices]
        return [self.dataset.patients.get(case, case) for case in cases]

    def _encode(self, indices: list[int]) -> None:
        device = next((value.device for value in self.network.parameters()), torch.device("cpu"))
        size = self.encoder.image_size
        with torch.no_grad():
            images = self.dataset.resized(indices, size).to(device)
            maps = by_resolution(depth_maps(self.encoder, images), self.grid)
        for place, index in enumerate(indices):
            label = self.dataset.sample(index).label
            assert label is not None, "only labelled samples are chosen"
            classes = pixel_classes(label, self.dataset.num_classes, size, self.grid)
            self._pixels[index] = [one[place].clone() for one in maps], classes

    def _scores(self, classifier: PixelClassifier) -> dict[str, Any]:
        """The scores on the test split; see `__call__`."""
        maps, classes = self.pixels(self.test)
        chunks = [
            classifier([one[start : start + BATCH_SIZE] for one in maps], self.grid).double()
            for start in range(0, len(self.test), BATCH_SIZE)
        ]
        cases = [self.dataset.sample(index).case for index in self.test]
        found = case_scores(torch.cat(chunks), classes, cases)
        columns = {
            name: class_dice({case: scores[name] for case, scores in found.items()})
            for name in (*PIXEL_METRICS, "share")
        }
        per_class = {
            str(index): {name: column[index - 1] for name, column in columns.items()}
            for index in range(1, self.dataset.num_classes)
        }
        kept = {case: {name: scores[name] for name in PIXEL_METRICS} for case, scores in found.items()}
        means = {name: mean([v for v in columns[name] if v is not None]) for name in PIXEL_METRICS}
        return {**means, "per_class": per_class, "cases": kept}


def grid_for(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the pixels that are classified: four a patch side, halved until no side exceeds `MAX_SIDE`.

    Four a side show what interpolation between patches can resolve. More cost memory and show nothing new: between
    the patches of a vision transformer all features are interpolated.
    """
    stride = max(patch_size // 4, 1)
    while max(image_size) > MAX_SIDE * stride:
        stride *= 2
    return max(image_size[0] // stride, 1), max(image_size[1] // stride, 1)


def depth_maps(encoder: Encoder, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
    """The encoder's feature maps of all depths: of a U-Net those of all resolutions and the decoder's last one."""
    if isinstance(encoder, ConvNetwork):
        maps = encoder.encode(images)
        return [*maps, encoder.decode(maps)]
    # An encoder of fewer depths repeats a map.
    return list({id(one): one for one in encoder.feature_maps(images)}.values())


def by_resolution(maps: Sequence[Float[Tensor, "B _ _ _"]], grid: tuple[int, int]) -> Maps:
    """The maps, averaged to the grid where they are finer, with those of one resolution joined; on the CPU."""
    joined: dict[tuple[int, int], list[Tensor]] = {}
    for one in maps:
        size = min(one.shape[2], grid[0]), min(one.shape[3], grid[1])
        joined.setdefault(size, []).append(functional.adaptive_avg_pool2d(one.float(), size))
    return [torch.cat(same, dim=1).permute(0, 2, 3, 1).cpu().contiguous() for same in joined.values()]


def pixel_classes(
    label: Int[Tensor, "H0 W0"], num_classes: int, image_size: tuple[int, int], grid: tuple[int, int]
) -> Int[Tensor, "h w"]:
    """The class with the largest area in each pixel of the grid; the label is fitted to `image_size` like its image."""
    one_hot = functional.one_hot(label, num_classes).permute(2, 0, 1).float()
    return functional.adaptive_avg_pool2d(cover(one_hot, image_size), grid).argmax(dim=0)


def logits(
    maps: Maps, weights: Sequence[Float[Tensor, "_ K"]], bias: Float[Tensor, " K"], grid: tuple[int, int]
) -> Float[Tensor, "B K h w"]:
    """The linear map of the interpolated features."""
    total = bias[:, None, None]
    for one, matrix in zip(maps, weights, strict=True):
        total = total + functional.interpolate((one @ matrix).permute(0, 3, 1, 2), grid, mode="bilinear")
    return total


@dataclass(frozen=True)
class Problem:
    """The pixels that a classifier is fitted to."""

    maps: Maps
    """Components of the features."""
    variances: list[Float[Tensor, " _"]]
    """Variance of each component."""
    classes: Int[Tensor, "B h w"]
    num_classes: int

    def __getitem__(self, chosen: Bool[Tensor, " B"]) -> Problem:
        """The pixels of these images."""
        return replace(self, maps=[one[chosen] for one in self.maps], classes=self.classes[chosen])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the pixels."""
        return self.classes.shape[1], self.classes.shape[2]


def _components(features: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor, Tensor]:
    deviation, centre = torch.std_mean(features, dim=0, correction=0)
    scale = 1.0 / deviation.clamp(min=SMALLEST_DEVIATION)
    inputs = (features - centre) * scale
    if len(inputs) < inputs.shape[1]:
        _, singular, vectors = torch.linalg.svd(inputs, full_matrices=False)
        variances, vectors = singular.square() / len(inputs), vectors.T
    else:
        variances, vectors = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    kept = variances > SMALLEST_VARIANCE
    return centre, scale[:, None] * vectors[:, kept], variances[kept]


def fit(problem: Problem, penalties: Sequence[float]) -> Iterator[PixelClassifier]:
    """Yields multinomial logistic regressions with these L2 penalties, by L-BFGS; each starts from the one before.

    They minimise the sum over the images of the mean cross-entropy of their pixels, plus half the penalty times the
    squared norm of the weights of the standardised features. So a penalty means the same for any number of images.
    The bias is not penalised. Classes without a pixel are left out, and get the probability 1 / (pixels + classes).
    """
    classes, num_classes = problem.classes, problem.num_classes
    counts = classes.flatten().bincount(minlength=num_classes)
    shares = counts / counts.sum()
    weights = [torch.zeros(one.shape[3], num_classes) for one in problem.maps]
    bias = shares.clamp(min=1 / classes.numel()).log()  # the solution for features that say nothing
    for penalty in penalties:
        weights, bias = _minimise(problem, shares, weights, bias, penalty / len(classes))
        yield PixelClassifier(weights, bias, counts > 0, 1.0 / (classes.numel() + num_classes))


def _minimise(
    problem: Problem,
    shares: Float[Tensor, " K"],
    weights: list[Float[Tensor, "_ K"]],
    bias: Float[Tensor, " K"],
    penalty: float,
) -> tuple[list[Float[Tensor, "_ K"]], Float[Tensor, " K"]]:
    """Weights and bias of the smallest loss, from these; see `fit`."""
    # In units of the curvature of the loss at the start, it is about as steep in every direction.
    curvature = (shares * (1.0 - shares)).clamp(min=SMALLEST_CURVATURE)
    units = [(curvature * variance[:, None] + penalty).rsqrt() for variance in problem.variances]
    units.append(curvature.rsqrt())
    free = [(one / unit).requires_grad_() for one, unit in zip([*weights, bias], units, strict=True)]
    optimizer = torch.optim.LBFGS(
        free,
        max_iter=STEPS,
        history_size=10,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        *own, shift = (one * unit for one, unit in zip(free, units, strict=True))
        scores = logits(problem.maps, own, shift, problem.grid).masked_fill(absent, -torch.inf)
        norm = torch.stack([matrix.square().sum() for matrix in own]).sum()
        loss = functional.cross_entropy(scores, problem.classes) + 0.5 * penalty * norm
        loss.backward()
        return loss

    absent = (shares == 0)[:, None, None]
    optimizer.step(closure)  # type: ignore[arg-type]
    *found, shift = (one.detach() * unit for one, unit in zip(free, units, strict=True))
    return found, shift


def folds_of(owners: Sequence[str]) -> list[int]:
    """The fold of each image; the images of one patient share a fold, unless there is only one patient.

    Patients go to the folds in turn, in the order of their first image, which the choice of labels has shuffled.
    """
    names = list(dict.fromkeys(owners))
    if len(names) == 1:
        return [place % NUM_FOLDS for place in range(len(owners))]
    return [names.index(owner) % NUM_FOLDS for owner in owners]


def choose_penalty(problem: Problem, owners: Sequence[str]) -> tuple[float, int]:
    """The penalty with the smallest log-loss on the held-out pixels of all folds, and the number of folds.

    Penalties are tried from the strongest until the loss grows. Only the first `FOLD_IMAGES` images take part. Pixels
    of classes that a fold was not fitted to do not count.

    Args:
        problem: pixels of all labelled training images.
        owners: patient of each image.
    """
    folds = torch.tensor(folds_of(owners[:FOLD_IMAGES]))
    num_folds = int(folds.max()) + 1
    if num_folds == 1:
        return DEFAULT_PENALTY, 0
    used = problem[torch.arange(len(owners)) < len(folds)]
    held = [used[folds == fold] for fold in range(num_folds)]
    paths = [fit(used[folds != fold], PENALTIES) for fold in range(num_folds)]
    best, smallest = DEFAULT_PENALTY, torch.inf
    for penalty, *classifiers in zip(PENALTIES, *paths, strict=True):
        loss = sum(_loss(classifier, part) for classifier, part in zip(classifiers, held, strict=True))
        if loss >= smallest:
            break
        best, smallest = penalty, loss
    return best, num_folds


def _loss(classifier: PixelClassifier, problem: Problem) -> float:
    """The summed log-loss of the pixels whose class the classifier knows."""
    losses = functional.nll_loss(classifier(problem.maps, problem.grid), problem.classes, reduction="none")
    return float(losses[classifier.present[problem.classes]].sum())


def average_precision(scores: Float[Tensor, " n"], true: Bool[Tensor, " n"]) -> float:
    """The area under the precision-recall curve as scikit-learn defines it, without interpolation; 0 to 1.

    It is the sum over all thresholds of the gain in recall times the precision. Equal scores share a threshold.
    """
    values, order = scores.sort(descending=True)
    hits = true[order].double().cumsum(dim=0)
    last = torch.cat((values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)))
    ranks = last.nonzero()[:, 0] + 1
    hits = hits[last]
    gains = torch.diff(hits, prepend=torch.zeros(1, dtype=hits.dtype))
    return float((gains * hits / ranks).sum() / hits[-1])


def case_scores(
    log_probabilities: Float[Tensor, "B K h w"], classes: Int[Tensor, "B h w"], cases: Sequence[str]
) -> dict[str, dict[str, list[Value]]]:
    """The scores of each case over all its pixels, with one value per foreground class.

    A score is None if the case has no pixel of the class, so that it is None for every encoder. `ap` is the average
    precision of the class against all others, `log_loss` the mean of -log p of whether a pixel has the class, in nats,
    and `dice` takes the most probable class of each pixel. `share` is the class's share of the pixels.
    """
    found = {}
    for case in dict.fromkeys(cases):
        own = torch.tensor([one == case for one in cases])
        scores = log_probabilities[own].transpose(0, 1).flatten(1)  # K n
        rows = [_class_scores(scores, classes[own].flatten(), k) for k in range(1, len(scores))]
        found[case] = {name: [row[name] for row in rows] for name in (*PIXEL_METRICS, "share")}
    return found


def _class_scores(scores: Float[Tensor, "K n"], classes: Int[Tensor, " n"], index: int) -> dict[str, Value]:
    true = classes == index
    if not true.any():
        return dict.fromkeys((*PIXEL_METRICS, "share"))
    found = scores.argmax(dim=0) == index
    others = torch.cat((scores[:index], scores[index + 1 :])).logsumexp(dim=0)
    return {
        "ap": average_precision(scores[index], true),
        "dice": 2 * int((found & true).sum()) / int(found.sum() + true.sum()),
        "log_loss": float(-torch.where(true, scores[index], others).mean()),
        "share": float(true.double().mean()),
    }
