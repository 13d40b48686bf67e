import pytest
import torch
from programs import write_discs

from ahm_gym.data import open_data
from ahm_gym.data.augmentation import Augmentation
from ahm_gym.data.labelled import LabelledBatches
from ahm_gym.errors import InputError


def disc():
    """A bright disc off the centre of a noisy image, and its label."""
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    label = ((rows - 16).square() + (columns - 22).square() < 100)[None].long()
    noise = torch.randn(2, 48, 48, generator=torch.Generator().manual_seed(0))
    return 3.0 * label + 0.3 * noise, label


def test_a_change_is_a_function_of_the_seed_alone():
    image, label = disc()
    augmentation = Augmentation("nnunet")
    first = [augmentation(image, label, seed) for seed in range(8)]
    torch.manual_seed(7)
    second = [Augmentation("nnunet")(image, label, seed) for seed in range(8)]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert type(first[0][0]) is torch.Tensor


def test_image_and_label_move_together():
    image, label = disc()
    moved = 0
    for seed in range(60):
        changed, mask = Augmentation("nnunet")(image, label, seed)
        assert changed.shape == image.shape and mask.shape == label.shape and mask.dtype == torch.int64
        assert set(mask.unique().tolist()) <= {0, 1} and changed.isfinite().all()
        inside, outside = changed[0][mask[0] > 0], changed[0][mask[0] == 0]
        assert inside.mean() > outside.mean() + 1.0
        moved += not torch.equal(mask, label)
    assert 10 < moved < 40  # rotated or zoomed with a probability of 0.36


def test_light_changes_nothing_more():
    image, label = disc()
    assert Augmentation("light")(image, label, 3)[0] is image


def test_batches_with_and_without_differ_in_the_changes_alone(tmp_path):
    dataset = open_data(str(write_discs(tmp_path / "discs.npz")), image_size=(32, 32))
    shape = {"batch_size": 16, "image_size": (32, 32), "seed": 0}
    indices = dataset.indices("train")
    light = LabelledBatches(dataset, indices, **shape)[3]
    strong = LabelledBatches(dataset, indices, **shape, augmentation="nnunet")[3]
    assert torch.equal(strong[0], LabelledBatches(dataset, indices, **shape, augmentation="nnunet")[3][0])
    same = [torch.equal(a, b) for a, b in zip(light[0], strong[0], strict=True)]
    assert 0 < sum(same) < 12


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(InputError, match="unknown augmentation 'nnu-net'.*nnunet"):
        Augmentation("nnu-net")
