"""Folds of a cross-validation: train and val are divided anew by patient; test stays as it is."""

from __future__ import annotations

import torch

from ahm_gym.data.sample import Split
from ahm_gym.data.store import ImageDataset
from ahm_gym.errors import InputError

SEED: int = 1
"""Seed of the order of the patients; the same for all folds, so that they do not overlap."""


def with_fold(dataset: ImageDataset, fold: int, folds: int) -> ImageDataset:
    """The images with the patients of this fold as val and the other patients of train and val as train.

    If the data names folds, its images are divided as the fold of this number says, and `folds` is not used.

    Patients with labels are spread evenly over the folds. An image of an unknown patient counts as a patient of its
    own. Mean and deviation stay those of the data's own train split.

    Args:
        dataset: images to divide.
        fold: number of the fold, counted from 0.
        folds: number of folds, at least 2.

    Raises:
        InputError: if there is no such fold, or there are fewer patients with labels than folds.
    """
    if dataset.folds:
        if not 0 <= fold < len(dataset.folds):
            raise InputError(
                f"`fold` is {fold}: choose from 0 to {len(dataset.folds) - 1}, as {dataset.name} names "
                f"{len(dataset.folds)} folds."
            )
        return dataset.with_splits(dataset.folds[fold])
    if folds < 2:
        raise InputError(f"`folds` is {folds}: choose 2 or more.")
    if not 0 <= fold < folds:
        raise InputError(f"`fold` is {fold}: choose from 0 to {folds - 1}, one below `folds`.")
    divided = [index for index in range(len(dataset)) if dataset.split_of(index) != "test"]
    patients = {index: dataset.patient(index) for index in divided}
    labelled = {patients[index] for index in divided if dataset.is_labelled(index)}
    if len(labelled) < folds:
        raise InputError(
            f"`folds={folds}` needs as many patients with labels in train and val, and {dataset.name} has "
            f"{len(labelled)}: choose fewer, or add some."
        )
    order = [*_shuffled(labelled), *_shuffled(set(patients.values()) - labelled)]
    held_out = set(order[fold::folds])
    splits: list[Split] = [dataset.split_of(index) for index in range(len(dataset))]
    for index, patient in patients.items():
        splits[index] = "val" if patient in held_out else "train"
    return dataset.with_splits(splits)


def describe_fold(dataset: ImageDataset, fold: int, folds: int) -> str:
    """A sentence on the patients in train and val of a fold."""
    counts = [len({dataset.patient(index) for index in dataset.indices(split)}) for split in ("train", "val")]
    of = f"{len(dataset.folds)} that the data names" if dataset.folds else str(folds)
    return (
        f"fold {fold} of {of}: {counts[0]} patients in train and {counts[1]} in val, as far as names or files say "
        "who they are; an image of an unknown patient counts as one"
    )


def _shuffled(names: set[str]) -> list[str]:
    ordered = sorted(names)
    generator = torch.Generator().manual_seed(SEED)
    return [ordered[place] for place in torch.randperm(len(ordered), generator=generator).tolist()]
