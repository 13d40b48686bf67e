import pytest
import torch

from ahm_gym.errors import InputError
from ahm_gym.model.patches import grid_of, patchify, unpatchify


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_unpatchify_is_the_inverse_of_patchify_on_non_square_images(channels):
    images = torch.randn(2, channels, 24, 40)
    assert torch.equal(unpatchify(patchify(images, 8), (3, 5), 8), images)


def test_patch_values_are_ordered_row_column_channel():
    images = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6).float()
    patch = patchify(images, 2)[0, 4]  # second row of patches, second column
    expected = [images[0, c, 2 + r, 2 + k].item() for r in range(2) for k in range(2) for c in range(2)]
    assert patch.tolist() == expected


def test_a_patch_size_that_does_not_divide_is_refused_with_a_way_out():
    with pytest.raises(InputError, match=r"patch size 7 does not divide the image size 64x64.*multiple of 7"):
        grid_of((64, 64), 7)
