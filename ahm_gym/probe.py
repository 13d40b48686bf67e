"""The probe: how much a linear map can read from frozen patch features, in seconds."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.data.store import cover
from ahm_gym.encoders import Encoder, patch_features
from ahm_gym.errors import InputError
from ahm_gym.labelled import choose_labelled
from ahm_gym.patches import grid_of, patchify
from ahm_gym.scoring import Value, mean

PENALTIES = torch.logspace(-4, 6, 41, dtype=torch.float64)
"""Ridge penalties to choose from, on the sum of squares over all training patches."""
BACKGROUND_WEIGHTS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12)
"""Factors on the predicted share of background to choose from. A ridge regression shrinks towards the mean, where
small structures never are the largest class of a patch, and the more so the more patches it sees."""
BATCH_SIZE = 64


def probe(
    encoder: Encoder,
    dataset: ImageDataset,
    *,
    labels: int | None = None,
    seed: int = 0,
    image_size: tuple[int, int],
    patch_size: int,
) -> dict[str, Any]:
    """Patch Dice on the test split of a ridge regression from patch features to the label fractions.

    Args:
        encoder: frozen; the features are its normed patch tokens, or the averages of a U-Net's feature map over
            the patches, standardised over the training patches.
        dataset: with labels in all three splits.
        labels: number of labelled training images; None takes all.
        seed: which ones; see `choose_labelled`.
        image_size: rows and columns of the images; whole images are fitted to it.
        patch_size: side of a patch in pixels.

    Returns:
        `patch_dice` on test, `per_class` the same for every class, `cases` the same for every case and class,
        `lambda` the ridge penalty and `background_weight` the factor on the predicted share of background with the
        best `val_patch_dice`, `labels` and `num_images`: the numbers of training and of test images.

    Raises:
        InputError: where a split has no labels, or the labels do not suffice.
    """
    train = choose_labelled(dataset, labels, seed)
    val, test = (dataset.indices(split, labelled=True) for split in ("val", "test"))
    for split, indices in (("val", val), ("test", test)):
        if not indices:
            raise InputError(
                f"{dataset.name} has no labelled {split} images, and the probe needs some: add them, or "
                "fine-tune."
            )
    features, targets = _patches(encoder, dataset, train, image_size, patch_size)
    deviation, centre = torch.std_mean(features, dim=(0, 1))
    deviation = deviation.clamp(min=1e-6)
    maps = ridge((features - centre) / deviation, targets, PENALTIES)
    features, targets = _patches(encoder, dataset, val, image_size, patch_size)
    cases = [dataset.sample(index).case for index in val]
    predictions = [(features - centre) / deviation @ weights + bias for weights, bias in maps]
    best, weight, score = choose_map(predictions, targets, cases)
    features, targets = _patches(encoder, dataset, test, image_size, patch_size)
    cases = [dataset.sample(index).case for index in test]
    weights, bias = maps[best]
    predicted = (features - centre) / deviation @ weights + bias
    found = patch_dice(weighted(predicted, weight), targets, cases)
    return {
        "patch_dice": mean_dice(found),
        "per_class": {str(index + 1): value for index, value in enumerate(class_dice(found))},
        "cases": found,
        "lambda": float(PENALTIES[best]),
        "background_weight": weight,
        "val_patch_dice": score,
        "labels": len(train),
        "num_images": len(test),
    }


def weighted(predicted: Float[Tensor, "B L K"], background_weight: float) -> Float[Tensor, "B L K"]:
    """Predicted shares of the classes, that of the background (class 0) times this factor."""
    factors = torch.ones(predicted.shape[2], dtype=predicted.dtype)
    factors[0] = background_weight
    return predicted * factors


def choose_map(
    predictions: list[Float[Tensor, "B L K"]], targets: Float[Tensor, "B L K"], cases: list[str]
) -> tuple[int, float, float]:
    """Place of the best prediction, the factor on its background, and the patch Dice that they give."""
    scores = {
        (index, weight): mean_dice(patch_dice(weighted(predicted, weight), targets, cases)) or 0.0
        for index, predicted in enumerate(predictions)
        for weight in BACKGROUND_WEIGHTS
    }
    index, weight = max(scores, key=lambda choice: scores[choice])
    return index, weight, scores[index, weight]


def ridge(
    features: Float[Tensor, "B L D"], targets: Float[Tensor, "B L K"], penalties: Float[Tensor, " N"]
) -> list[tuple[Float[Tensor, "D K"], Float[Tensor, " K"]]]:
    """Weights and bias of a ridge regression for every penalty; the bias is not penalised."""
    inputs, outputs = features.flatten(0, 1), targets.flatten(0, 1)
    centre, bias = inputs.mean(dim=0), outputs.mean(dim=0)
    inputs, outputs = inputs - centre, outputs - bias
    values, vectors = torch.linalg.eigh(inputs.T @ inputs)
    projected = vectors.T @ (inputs.T @ outputs)  # D K
    # Rounding leaves tiny negative eigenvalues.
    values = values.clamp(min=0.0)
    solutions = [vectors @ (projected / (values + penalty)[:, None]) for penalty in penalties]
    return [(weights, bias - centre @ weights) for weights in solutions]


def patch_dice(
    predicted: Float[Tensor, "B L K"], fractions: Float[Tensor, "B L K"], cases: list[str]
) -> dict[str, list[Value]]:
    """Dice of every foreground class over the patches of each case, each patch counted as its largest class.

    None where a case has no patch of the class, neither predicted nor true.

    Args:
        predicted: of every image.
        fractions: true shares of the classes.
        cases: names of the images' cases.
    """
    classes = torch.arange(1, fractions.shape[2])
    found, true = (values.argmax(dim=2)[..., None] == classes for values in (predicted, fractions))  # B L K-1
    overlap, size = (found & true).sum(dim=1), found.sum(dim=1) + true.sum(dim=1)  # B K-1
    rows = {case: row for row, case in enumerate(dict.fromkeys(cases))}
    row_of_image = torch.tensor([rows[case] for case in cases])
    none = torch.zeros(len(rows), len(classes), dtype=torch.int64)
    pooled = (none.index_add(0, row_of_image, counts).tolist() for counts in (overlap, size))
    return {
        case: [2 * shared / both if both else None for shared, both in zip(*pair, strict=True)]
        for case, *pair in zip(rows, *pooled, strict=True)
    }


def class_dice(cases: dict[str, list[Value]]) -> list[Value]:
    """The mean of every class over the cases that have it."""
    return [mean([v for v in column if v is not None]) for column in zip(*cases.values(), strict=True)]


def mean_dice(cases: dict[str, list[Value]]) -> Value:
    """The mean over the classes that have a Dice."""
    return mean([value for value in class_dice(cases) if value is not None])


def label_fractions(
    label: Int[Tensor, "H0 W0"], num_classes: int, image_size: tuple[int, int], patch_size: int
) -> Float[Tensor, "L K"]:
    """Area share of every class in every patch, the label fitted to `image_size` as its image is."""
    one_hot = torch.nn.functional.one_hot(label, num_classes).permute(2, 0, 1).float()
    fitted = cover(one_hot, image_size)  # K H W
    return patchify(fitted[:, None], patch_size).mean(dim=2).T


def _patches(
    encoder: Encoder,
    dataset: ImageDataset,
    indices: list[int],
    image_size: tuple[int, int],
    patch_size: int,
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L K"]]:
    """Features and label fractions of every patch of these samples, in double precision."""
    grid_of(image_size, patch_size)
    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    features, fractions = [], []
    for start in range(0, len(indices), BATCH_SIZE):
        chosen = indices[start : start + BATCH_SIZE]
        with torch.no_grad():
            tokens = patch_features(encoder, dataset.resized(chosen, image_size).to(device), patch_size)
        features.append(tokens.double().cpu())
        for index in chosen:
            label = dataset.sample(index).label
            assert label is not None, "only labelled samples are chosen"
            fractions.append(label_fractions(label, dataset.num_classes, image_size, patch_size))
    encoder.train(was_training)
    return torch.cat(features), torch.stack(fractions).double()
