"""The probe: evaluates frozen patch features with a linear map, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from ahm_gym.data import ImageDataset
from ahm_gym.data.draws import check_foreground
from ahm_gym.data.ignored import KNOWN_SHARE
from ahm_gym.data.labelled import choose_labelled
from ahm_gym.errors import InputError
from ahm_gym.model.encoder_base import Encoder, as_encoder
from ahm_gym.model.patches import patchify
from ahm_gym.segmentation.metrics import Value, mean
from ahm_gym.segmentation.views import batches_of, fitted_areas, labels_seen, parts_of, seen

PENALTIES: Tensor = torch.logspace(-4, 6, 41, dtype=torch.float64)
"""Ridge penalties to choose from, for a squared error that is summed over all training patches."""
BACKGROUND_WEIGHTS: tuple[float, ...] = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12)
"""Factors of the predicted share of background to choose from.

Ridge regression shrinks towards the mean: without such a factor, small structures would never be the largest class
of a patch.
"""


@dataclass(frozen=True)
class Fitted:
    """A regression of the probe, as chosen on val."""

    weights: Float[Tensor, "D K"]
    bias: Float[Tensor, " K"]
    penalty: float
    background_weight: float
    val_dice: float
    """Patch Dice on val, 0 to 1."""
    val_r2: float
    """The largest share of the variance of the label fractions on val that any penalty explains."""
    num_labels: int


class Probe:
    """A ridge regression from frozen patch features to label fractions, for any choice of labelled images.

    Each image is encoded only once, even if several choices contain it.

    Args:
        encoder: frozen network of a class that `as_encoder` knows. Images are fitted to its image size as a whole,
            volumes are covered by windows of it; see `seen`. Patch features are standardised over the training patches.
        dataset: images with labels in all three splits.
        tested: False if only `val_dice` is wanted: test labels are then not needed, and no test image is read.

    Raises:
        InputError: if val or test has no labels.
    """

    def __init__(self, encoder: nn.Module, dataset: ImageDataset, *, tested: bool = True) -> None:
        self.network: nn.Module = encoder
        self.encoder: Encoder = as_encoder(encoder)
        self.dataset: ImageDataset = dataset
        self.val: list[int] = dataset.indices("val", labelled=True)
        self.test: list[int] = dataset.indices("test", labelled=True) if tested else []
        for split, indices in (("val", self.val), ("test", self.test)):
            if not indices and (tested or split == "val"):
                raise InputError(
                    f"{dataset.name} has no labelled {split} images, and the probe needs some: add them, or "
                    "fine-tune."
                )
        self._cases = {index: dataset.case_of(index) for index in [*self.val, *self.test]}
        self._patches: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, *, labels: int | None = None, seed: int = 0, patients: int | None = None
    ) -> dict[str, Any]:
        """Fits the regression to one choice of labelled images and measures its patch Dice on the test split.

        Args:
            labels: number of labelled training images; None uses all of them.
            seed: seed of their choice; see `choose_labelled`.
            patients: number of patients whose labelled training images are used, in place of `labels`.

        Returns:
            A dictionary with these keys.

            - `patch_dice`: on test; also `per_class`, and in `cases` for every case and class.
            - `lambda`, `background_weight`: the ridge penalty and the factor of the predicted share of background
              that have the best `val_patch_dice`.
            - `val_r2`: the largest share of the variance of the label fractions on val that any penalty explains.
            - `labels`, `num_images`: numbers of training and test images.

        Raises:
            InputError: if there are too few labels, or no patch of val is mostly foreground.
            EmptyDraw: if the chosen images have no foreground.
        """
        fitted = self._fit(labels, seed, patients)
        features, targets = self.patches(self.test)
        predicted = features @ fitted.weights + fitted.bias
        found = patch_dice(weighted(predicted, fitted.background_weight), targets, self.cases(self.test))
        return {
            "patch_dice": mean_dice(found),
            "per_class": {str(index + 1): value for index, value in enumerate(class_dice(found))},
            "cases": found,
            "lambda": fitted.penalty,
            "background_weight": fitted.background_weight,
            "val_patch_dice": fitted.val_dice,
            "val_r2": fitted.val_r2,
            "labels": fitted.num_labels,
            "num_images": len(self.test),
        }

    def val_dice(self, *, labels: int | None = None, seed: int = 0, patients: int | None = None) -> float:
        """The `val_patch_dice` of a call, 0 to 1, to choose settings by; no test image is read.

        It is a little too high, because the penalty and one factor are chosen by it; see `__call__` for the rest.
        """
        return self._fit(labels, seed, patients).val_dice

    def _fit(self, labels: int | None, seed: int, patients: int | None) -> Fitted:
        """The regression on one choice of labelled images, with the penalty and the factor that are best on val."""
        train = choose_labelled(self.dataset, labels, seed, patients)
        check_foreground(self.dataset, train)
        features, targets = self.patches(train)
        features, targets = counted(features, targets)
        deviation, centre = torch.std_mean(features, dim=(0, 1))
        deviation = deviation.clamp(min=1e-6)
        weights, bias = ridge((features - centre) / deviation, targets, PENALTIES)  # N D K, N K
        # The weights include the standardisation: there are far fewer of them than of features.
        weights = weights / deviation[:, None]
        bias = bias - centre @ weights
        features, targets = self.patches(self.val)
        stacked = features @ weights.permute(1, 0, 2).flatten(1)  # B L N*K
        predictions = list((stacked.unflatten(2, bias.shape) + bias).unbind(dim=2))
        best, weight, score = choose_map(predictions, targets, self.cases(self.val))
        if score is None:
            raise InputError(
                f"no patch of {self.dataset.name}'s labelled val images is mostly foreground, and the probe needs some "
                "to choose its penalty: add val images with the structure, choose a smaller `patch_size`, or fine-tune."
            )
        r2 = max(explained(*counted(predicted, targets)) for predicted in predictions)
        return Fitted(weights[best], bias[best], float(PENALTIES[best]), weight, score, r2, len(train))

    def patches(self, indices: list[int]) -> tuple[Float[Tensor, "V L D"], Float[Tensor, "V L K"]]:
        """Features and label fractions of all patches of these images, in double precision; see `label_fractions`.

        A row is an image or a window of a volume.
        """
        missing = [index for index in indices if index not in self._patches]
        was_training = self.network.training
        self.network.eval()
        for together in batches_of(missing, self.encoder.image_size):
            self._encode(together)
        self.network.train(was_training)
        features, fractions = zip(*(self._patches[index] for index in indices), strict=True)
        return torch.cat(features), torch.cat(fractions)

    def _encode(self, indices: Sequence[int]) -> None:
        device = next((value.device for value in self.network.parameters()), torch.device("cpu"))
        size, patch_size = self.encoder.image_size, self.encoder.patch_size
        with torch.no_grad():
            views, counts = seen(self.dataset, indices, size)
            features = torch.cat(
                [self.encoder.patch_features(part.to(device)).double().cpu() for part in parts_of(views)]
            )
        for index, tokens in zip(indices, features.split(counts), strict=True):
            labels = labels_seen(self.dataset, index, size)
            shares = [label_fractions(label, self.dataset.num_classes, size, patch_size) for label in labels]
            self._patches[index] = tokens, torch.stack(shares).double()

    def cases(self, indices: list[int]) -> list[str]:
        """Names of the cases of these val or test images, one for each row of `patches`, which has been called."""
        return [self._cases[index] for index in indices for _ in self._patches[index][0]]


def counted(
    values: Float[Tensor, "B L D"], fractions: Float[Tensor, "B L K"]
) -> tuple[Float[Tensor, "B2 L2 D"], Float[Tensor, "B2 L2 K"]]:
    """The values and fractions of the patches that count, as those of one image if some do not."""
    there = fractions.sum(dim=2) > 0
    return (values, fractions) if there.all() else (values[there][None], fractions[there][None])


def weighted(predicted: Float[Tensor, "B L K"], background_weight: float) -> Float[Tensor, "B L K"]:
    """The predicted shares of the classes, with that of the background (class 0) multiplied by this factor."""
    factors = torch.ones(predicted.shape[2], dtype=predicted.dtype)
    factors[0] = background_weight
    return predicted * factors


def choose_map(
    predictions: list[Float[Tensor, "B L K"]], targets: Float[Tensor, "B L K"], cases: list[str]
) -> tuple[int, float, Value]:
    """Index of the best prediction, the best factor of its background, and the resulting patch Dice.

    The Dice is None if no target is mostly foreground, because the predictions cannot be compared then.
    """
    scores = {
        (index, weight): mean_dice(patch_dice(weighted(predicted, weight), targets, cases))
        for index, predicted in enumerate(predictions)
        for weight in BACKGROUND_WEIGHTS
    }
    index, weight = max(scores, key=lambda choice: scores[choice] or 0.0)
    return index, weight, scores[index, weight]


def explained(predicted: Float[Tensor, "B L K"], fractions: Float[Tensor, "B L K"]) -> float:
    """R squared of predicted label fractions: the explained share of variance, mean over the foreground classes."""
    error = (predicted - fractions).square().sum(dim=(0, 1))[1:]
    variance = (fractions - fractions.mean(dim=(0, 1))).square().sum(dim=(0, 1))[1:]
    there = variance > 0
    return float((1.0 - error[there] / variance[there]).mean())


def ridge(
    features: Float[Tensor, "B L D"], targets: Float[Tensor, "B L K"], penalties: Float[Tensor, " N"]
) -> tuple[Float[Tensor, "N D K"], Float[Tensor, "N K"]]:
    """Weights and bias of the ridge regression for every penalty; the bias is not penalised."""
    inputs, outputs = features.flatten(0, 1), targets.flatten(0, 1)
    centre, bias = inputs.mean(dim=0), outputs.mean(dim=0)
    inputs, outputs = inputs - centre, outputs - bias
    values, vectors = torch.linalg.eigh(inputs.T @ inputs)
    projected = vectors.T @ (inputs.T @ outputs)  # D K
    # Rounding can make eigenvalues slightly negative.
    values = values.clamp(min=0.0)
    weights = vectors @ (projected / (values + penalties[:, None])[..., None])  # N D K
    return weights, bias - centre @ weights


def patch_dice(
    predicted: Float[Tensor, "B L K"], fractions: Float[Tensor, "B L K"], cases: list[str]
) -> dict[str, list[Value]]:
    """Dice of every foreground class over the patches of each case; a patch belongs to its largest class.

    It is None if a case has no true patch of the class, even if some are predicted, so that it is None for every
    encoder. Patches without a share of any class do not count.

    Args:
        predicted: predicted shares of the classes.
        fractions: true shares of the classes.
        cases: name of the case of each image.
    """
    classes = torch.arange(1, fractions.shape[2])
    found, true = (values.argmax(dim=2)[..., None] == classes for values in (predicted, fractions))  # B L K-1
    found &= fractions.sum(dim=2, keepdim=True) > 0
    counts = (found & true).sum(dim=1), found.sum(dim=1), true.sum(dim=1)  # B K-1 each
    rows = {case: row for row, case in enumerate(dict.fromkeys(cases))}
    row_of_image = torch.tensor([rows[case] for case in cases])
    none = torch.zeros(len(rows), len(classes), dtype=torch.int64)
    pooled = (none.index_add(0, row_of_image, count).tolist() for count in counts)
    return {
        case: [2 * shared / (a + b) if b else None for shared, a, b in zip(*row, strict=True)]
        for case, *row in zip(rows, *pooled, strict=True)
    }


def class_dice(cases: dict[str, list[Value]]) -> list[Value]:
    """The mean Dice of every class over the cases that define it."""
    return [mean([v for v in column if v is not None]) for column in zip(*cases.values(), strict=True)]


def mean_dice(cases: dict[str, list[Value]]) -> Value:
    """The mean over the classes of `class_dice`, without undefined ones."""
    return mean([value for value in class_dice(cases) if value is not None])


def label_fractions(
    label: Integer[Tensor, "*S0"], num_classes: int, image_size: tuple[int, ...], patch_size: int
) -> Float[Tensor, "L K"]:
    """Share of each patch that each class covers, with the label fitted to `image_size` like its image.

    Shares are those of the area that is not ignored. They are all 0 if that is less than `KNOWN_SHARE` of the patch,
    which then does not count.
    """
    fitted = fitted_areas(label, num_classes, image_size)  # K+1 *S
    shares = patchify(fitted[:, None], patch_size).mean(dim=2).T
    ignored = shares[:, -1:]
    if not ignored.any():
        return shares[:, :-1]
    known = 1.0 - ignored
    return torch.where(known < KNOWN_SHARE, 0.0, shares[:, :-1] / known.clamp(min=KNOWN_SHARE))
