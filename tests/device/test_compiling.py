"""Compiled updates, and what happens where there is no compiler."""

import copy
import time

import pytest
import torch
import torch._inductor.config

from ahm_gym.device.compiling import Compiled
from ahm_gym.errors import RunError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder

# The compiler itself uses what torch has deprecated, and looks at gradients.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"), [("tiny", {}), ("resenc", {"hiding": "masked"}), ("tiny", {"target": "latent"})]
)
def test_compiled_updates_equal_those_that_are_not(model, options):
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = mask_top_k(torch.rand(4, 16, generator=torch.Generator().manual_seed(1)), 12)
    losses = []
    for compiled in (False, True):
        autoencoder = build_autoencoder(model, image_size=(32, 32), seed=0, **options)
        autoencoder.compiled = compiled
        pretrainer = Pretrainer(autoencoder, num_steps=3)
        losses.append([float(pretrainer.step(images, mask).loss) for _ in range(3)])
        frozen = copy.deepcopy(pretrainer.autoencoder).requires_grad_(False)
        with torch.no_grad():
            losses[-1].append(float(frozen.run(images, *frozen.mask_inputs(Masks.of(mask))).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_machine_without_a_compiler_is_told_so(monkeypatch):
    never_cached = time.time_ns() % 1e9
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/c++"))
    with pytest.raises(RunError, match=r"could not be compiled.*/nowhere/c\+\+.*leave `compile` out"):
        Compiled(lambda value: value + never_cached)(torch.ones(5))


def test_errors_of_the_function_itself_stay_what_they_are():
    def fails(value):
        raise RunError("no")

    with pytest.raises(RunError, match="^no$"):
        Compiled(fails)(torch.ones(1))
