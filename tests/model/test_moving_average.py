import pytest
import torch
from torch import nn

from ahm_gym.model.moving_average import MovingAverage


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_momentum_rises_over_training_and_warms_up_over_the_first_updates():
    teacher = MovingAverage(network())
    assert teacher.momentum(0.0) == pytest.approx(0.1)
    teacher.updates = 90
    assert teacher.momentum(0.0) == pytest.approx(0.91)
    teacher.updates = 10**6
    momenta = [teacher.momentum(progress) for progress in (0.0, 0.5, 1.0)]
    assert momenta == pytest.approx([0.999, 0.99945, 0.9999])


def test_the_teacher_is_the_average_that_follows_from_its_momenta():
    followed = network()
    teacher = MovingAverage(followed, start=0.4, end=0.4)
    expected = followed[0].weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            followed[0].weight.add_(1.0 + step)
        momentum = min(0.4, (1 + step) / (10 + step))
        expected = momentum * expected + (1 - momentum) * followed[0].weight.detach()
        teacher.follow(0.5)
    torch.testing.assert_close(teacher.network[0].weight, expected)
    assert teacher.updates == 4


def test_the_statistics_of_a_network_are_averaged_and_its_counters_copied():
    followed = network()
    teacher = MovingAverage(followed)
    followed(torch.randn(16, 3))
    teacher.follow(0.0)
    first, start = followed[1].running_mean, torch.zeros(2)
    torch.testing.assert_close(teacher.network[1].running_mean, 0.1 * start + 0.9 * first)
    assert int(teacher.network[1].num_batches_tracked) == 1


def test_a_teacher_is_a_frozen_copy():
    followed = network()
    teacher = MovingAverage(followed)
    assert not teacher.network.training and followed.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    before = [value.clone() for value in followed.state_dict().values()]
    teacher.follow(1.0)
    assert all(map(torch.equal, before, followed.state_dict().values()))
