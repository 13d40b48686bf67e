"""A penalised logistic regression of pixels on feature maps of several resolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ahm_gym.data.ignored import IGNORED, is_counted
from ahm_gym.model.decoders import INTERPOLATION

PENALTIES: tuple[float, ...] = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
"""Penalties to choose from, the strongest first; see `fit`."""
DEFAULT_PENALTY: float = 1.0
"""The penalty where cross-validation is impossible, as with a single image."""
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
Maps: TypeAlias = list[Float[Tensor, "B ... _"]]
"""Feature maps (B, h, w, D) of the same images, of volumes with one axis more, one for each resolution, with the
channels last."""


@dataclass(frozen=True)
class PixelClassifier:
    """A linear map from the features of each pixel to the logarithms of the class probabilities.

    A pixel's features are the standardised maps of all depths, interpolated linearly. Interpolation and a linear
    map can change places, so only one map per class is interpolated, never the features.
    """

    weights: list[Float[Tensor, "_ K"]]
    """Weights of the features, one matrix for each resolution."""
    bias: Float[Tensor, " K"]
    present: Bool[Tensor, " K"]
    """The classes that occur in the labels it was fitted to."""
    absent_probability: float
    """Probability of every other class."""

    def __call__(self, maps: Maps, grid: tuple[int, ...]) -> Float[Tensor, "B K *s"]:
        """Logarithms of the class probabilities at every pixel of the grid."""
        scores = logits(maps, self.weights, self.bias, grid)
        present = self.present.view(-1, *[1] * len(grid))
        scores = scores.masked_fill(~present, -torch.inf).log_softmax(dim=1)
        known = torch.tensor(1.0 - self.absent_probability * int((~self.present).sum())).log()
        never = torch.tensor(self.absent_probability).log()
        return torch.where(present, scores + known, never)

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
        parts = [_components(one.flatten(0, -2)) for one in maps]
        centres, bases, variances = (list(column) for column in zip(*parts, strict=True))
        return cls(centres, bases, variances)

    def __call__(self, maps: Maps) -> Maps:
        return [
            (one - centre) @ basis for one, centre, basis in zip(maps, self.centres, self.bases, strict=True)
        ]


def logits(
    maps: Maps, weights: Sequence[Float[Tensor, "_ K"]], bias: Float[Tensor, " K"], grid: tuple[int, ...]
) -> Float[Tensor, "B K *s"]:
    """The linear map of the interpolated features."""
    total = bias.view(-1, *[1] * len(grid))
    mode = INTERPOLATION[len(grid)]
    for one, matrix in zip(maps, weights, strict=True):
        total = total + functional.interpolate((one @ matrix).movedim(-1, 1), grid, mode=mode)
    return total


@dataclass(frozen=True)
class Problem:
    """The pixels that a classifier is fitted to."""

    maps: Maps
    """Components of the features."""
    variances: list[Float[Tensor, " _"]]
    """Variance of each component."""
    classes: Int[Tensor, "B *s"]
    num_classes: int

    def __getitem__(self, chosen: Bool[Tensor, " B"]) -> Problem:
        """The pixels of these images."""
        return replace(self, maps=[one[chosen] for one in self.maps], classes=self.classes[chosen])

    @property
    def grid(self) -> tuple[int, ...]:
        """Length of each axis of the pixels."""
        return tuple(self.classes.shape[1:])


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
    Ignored pixels do not count.
    """
    classes, num_classes = problem.classes, problem.num_classes
    counts = classes.flatten().bincount(minlength=num_classes)[:num_classes]
    num_pixels = max(int(counts.sum()), 1)
    shares = counts / num_pixels
    weights = [torch.zeros(one.shape[-1], num_classes) for one in problem.maps]
    bias = shares.clamp(min=1 / num_pixels).log()  # the solution for features that say nothing
    for penalty in penalties:
        weights, bias = _minimise(problem, shares, weights, bias, penalty / len(classes))
        yield PixelClassifier(weights, bias, counts > 0, 1.0 / (num_pixels + num_classes))


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
        loss = functional.cross_entropy(scores, problem.classes, ignore_index=IGNORED) + 0.5 * penalty * norm
        loss.backward()
        return loss

    absent = (shares == 0).view(-1, *[1] * len(problem.grid))
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
    known = is_counted(problem.classes)
    classes = torch.where(known, problem.classes, 0)
    losses = functional.nll_loss(classifier(problem.maps, problem.grid), classes, reduction="none")
    return float(losses[classifier.present[classes] & known].sum())
