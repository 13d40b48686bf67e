import pytest
import torch

from ahm_gym.masking.sorting import sorting_order


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_rows_are_sorted_and_equal_values_keep_their_order(dtype):
    values = torch.randint(0, 5, (7, 40), generator=torch.Generator().manual_seed(0)).to(dtype)
    stable = sorting_order(values, stable=True)
    assert torch.equal(stable, values.to(torch.int64).argsort(dim=1, stable=True))
    order = sorting_order(values)
    assert torch.equal(values.gather(1, order), values.gather(1, stable))
    assert torch.equal(order.sort(dim=1).values, torch.arange(40).expand(7, 40))
