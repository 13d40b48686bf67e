"""The pixel probe: evaluates frozen features of several depths with a linear classifier of every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from ahm_gym.data import ImageDataset
from ahm_gym.data.draws import check_foreground
from ahm_gym.data.ignored import IGNORED, KNOWN_SHARE, is_counted
from ahm_gym.data.labelled import choose_labelled
from ahm_gym.errors import InputError
from ahm_gym.model.conv_network import ConvNetwork
from ahm_gym.model.encoder_base import Encoder, as_encoder
from ahm_gym.model.patches import pooled
from ahm_gym.segmentation.metrics import Value, mean
from ahm_gym.segmentation.pixel_classifier import (
    Components,
    Maps,
    PixelClassifier,
    Problem,
    choose_penalty,
    fit,
)
from ahm_gym.segmentation.probe import class_dice
from ahm_gym.segmentation.views import (
    NUM_IMAGES,
    batches_of,
    fitted_areas,
    labels_seen,
    parts_of,
    seen,
)

PIXEL_METRICS: tuple[str, ...] = ("ap", "dice", "log_loss")
"""The scores of the pixel probe: average precision, Dice and log-loss."""
MAX_SIDE: int = 32
"""Largest number of rows or columns of the grid of pixels."""


class PixelProbe:
    """A multinomial logistic regression from frozen features to the class of each pixel, for any choice of labels.

    Encoders are compared on a common grid of pixels; see `grid_for`. Each image is encoded only once, even if several
    choices contain it. The maps are kept in single precision: 0.13 MB an image for the tiny vision transformer at 64
    pixels, 0.8 MB for the U-Net at 64 or 128.

    Args:
        encoder: frozen network of a class that `as_encoder` knows. Images are fitted to its image size as a whole, and
            volumes are covered by windows of it; see `seen`.
        dataset: images with labels in the training and the test split.

    Raises:
        InputError: if test has no labels.
    """

    def __init__(self, encoder: nn.Module, dataset: ImageDataset) -> None:
        self.network: nn.Module = encoder
        self.encoder: Encoder = as_encoder(encoder)
        self.dataset: ImageDataset = dataset
        self.grid: tuple[int, ...] = grid_for(self.encoder.image_size, self.encoder.patch_size)
        self.test: list[int] = dataset.indices("test", labelled=True)
        if not self.test:
            raise InputError(
                f"{dataset.name} has no labelled test images, and the probe needs some: add them, or fine-tune."
            )
        self._pixels: dict[int, tuple[list[Tensor], Tensor]] = {}

    def __call__(
        self, *, labels: int | None = None, seed: int = 0, patients: int | None = None
    ) -> dict[str, Any]:
        """Fits the classifier to one choice of labelled images and measures it on the test split.

        Args:
            labels: number of labelled training images; None uses all of them.
            seed: seed of their choice; see `choose_labelled`. Nothing else is random.
            patients: number of patients whose labelled training images are used, in place of `labels`.

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
            - `grid`: rows and columns of the pixels, of an image or of a window of a volume.
            - `labels`, `num_images`: numbers of training and test images.

        Raises:
            InputError: if there are too few labels.
            EmptyDraw: if the chosen images have no foreground.
        """
        train = choose_labelled(self.dataset, labels, seed, patients)
        check_foreground(self.dataset, train)
        maps, classes = self.pixels(train)
        known = is_counted(classes).flatten(1).any(dim=1)
        if not known.all():
            maps, classes = [one[known] for one in maps], classes[known]
        owners = [owner for owner, counts in zip(self.owners(train), known.tolist(), strict=True) if counts]
        components = Components.of(maps)
        problem = Problem(components(maps), components.variances, classes, self.dataset.num_classes)
        penalty, folds = choose_penalty(problem, owners)
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

    def pixels(self, indices: list[int]) -> tuple[Maps, Int[Tensor, "V *s"]]:
        """Feature maps of these images, and the class of each pixel of the grid; a row for each of their views."""
        missing = [index for index in indices if index not in self._pixels]
        was_training = self.network.training
        self.network.eval()
        for together in batches_of(missing, self.encoder.image_size):
            self._encode(together)
        self.network.train(was_training)
        maps, classes = zip(*(self._pixels[index] for index in indices), strict=True)
        return [torch.cat(same) for same in zip(*maps, strict=True)], torch.cat(classes)

    def owners(self, indices: list[int]) -> list[str]:
        """The patient of each row of `pixels`, which has been called."""
        return [self.dataset.patient(index) for index in indices for _ in self._pixels[index][1]]

    def _encode(self, indices: Sequence[int]) -> None:
        device = next((value.device for value in self.network.parameters()), torch.device("cpu"))
        size = self.encoder.image_size
        with torch.no_grad():
            views, counts = seen(self.dataset, indices, size)
            parts = [
                by_resolution(depth_maps(self.encoder, part.to(device)), self.grid)
                for part in parts_of(views)
            ]
        maps = [torch.cat(same).split(counts) for same in zip(*parts, strict=True)]
        for place, index in enumerate(indices):
            labels = labels_seen(self.dataset, index, size)
            classes = [pixel_classes(label, self.dataset.num_classes, size, self.grid) for label in labels]
            self._pixels[index] = [one[place].clone() for one in maps], torch.stack(classes)

    def _scores(self, classifier: PixelClassifier) -> dict[str, Any]:
        """The scores on the test split; see `__call__`."""
        maps, classes = self.pixels(self.test)
        chunks = [
            classifier([one[start : start + NUM_IMAGES] for one in maps], self.grid).double()
            for start in range(0, len(classes), NUM_IMAGES)
        ]
        cases = [self.dataset.case_of(index) for index in self.test for _ in self._pixels[index][1]]
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


def grid_for(image_size: tuple[int, ...], patch_size: int) -> tuple[int, ...]:
    """The grid of pixels that are classified: four a patch side, halved until no side exceeds `MAX_SIDE`.

    Four a side show what interpolation between patches can resolve. More cost memory and show nothing new: between
    the patches of a vision transformer all features are interpolated.
    """
    stride = max(patch_size // 4, 1)
    while max(image_size) > MAX_SIDE * stride:
        stride *= 2
    return tuple(max(side // stride, 1) for side in image_size)


def depth_maps(encoder: Encoder, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B ..."]]:
    """The encoder's feature maps of all depths: of a U-Net those of all resolutions and the decoder's last one."""
    if isinstance(encoder, ConvNetwork):
        maps = encoder.encode(images)
        return [*maps, encoder.decode(maps)]
    # An encoder of fewer depths repeats a map.
    return list({id(one): one for one in encoder.feature_maps(images)}.values())


def by_resolution(maps: Sequence[Float[Tensor, "B ..."]], grid: tuple[int, ...]) -> Maps:
    """The maps, averaged to the grid where they are finer, with those of one resolution joined; on the CPU."""
    joined: dict[tuple[int, ...], list[Tensor]] = {}
    for one in maps:
        size = tuple(min(sides) for sides in zip(one.shape[2:], grid, strict=True))
        joined.setdefault(size, []).append(pooled(one.float(), size))
    return [torch.cat(same, dim=1).movedim(1, -1).cpu().contiguous() for same in joined.values()]


def pixel_classes(
    label: Integer[Tensor, "*S0"], num_classes: int, image_size: tuple[int, ...], grid: tuple[int, ...]
) -> Int[Tensor, "*s"]:
    """The class with the largest area in each pixel of the grid; the label is fitted to `image_size` like its image.

    It is `IGNORED` where less than `KNOWN_SHARE` of the area has a class.
    """
    shares = pooled(fitted_areas(label, num_classes, image_size)[None], grid)[0]
    return shares[:-1].argmax(dim=0).masked_fill(1.0 - shares[-1] < KNOWN_SHARE, IGNORED)


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
    log_probabilities: Float[Tensor, "B K *s"], classes: Int[Tensor, "B *s"], cases: Sequence[str]
) -> dict[str, dict[str, list[Value]]]:
    """The scores of each case over all its pixels, with one value per foreground class.

    A score is None if the case has no pixel of the class, so that it is None for every encoder. `ap` is the average
    precision of the class against all others, `log_loss` the mean of -log p of whether a pixel has the class, in nats,
    and `dice` takes the most probable class of each pixel. `share` is the class's share of the pixels. Ignored pixels
    do not count.
    """
    found = {}
    for case in dict.fromkeys(cases):
        own = torch.tensor([one == case for one in cases])
        scores, true = log_probabilities[own].transpose(0, 1).flatten(1), classes[own].flatten()  # K n, n
        scores, true = scores[:, is_counted(true)], true[is_counted(true)]
        rows = [_class_scores(scores, true, k) for k in range(1, len(scores))]
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
