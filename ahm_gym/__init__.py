"""Self-supervised pretraining for medical image segmentation in which the mask is learned."""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from ahm_gym.api import (
        EvaluateResult,
        FinetuneResult,
        MaskBenchResult,
        PredictResult,
        PretrainResult,
        ProbeResult,
        SweepResult,
        embed,
        evaluate,
        export,
        finetune,
        load_encoder,
        make_vec,
        maskbench,
        predict,
        pretrain,
        probe,
        sweep,
    )
    from ahm_gym.errors import InputError, RunError
    from ahm_gym.model.pretrainer import Pretrainer
    from ahm_gym.model.vit import MaskedAutoencoder

__version__ = "0.1.0"

__all__ = [
    "EvaluateResult",
    "FinetuneResult",
    "InputError",
    "MaskBenchResult",
    "MaskedAutoencoder",
    "PredictResult",
    "PretrainResult",
    "Pretrainer",
    "ProbeResult",
    "RunError",
    "SweepResult",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "load_encoder",
    "make_vec",
    "maskbench",
    "predict",
    "pretrain",
    "probe",
    "sweep",
]

_ELSEWHERE = {
    "InputError": "ahm_gym.errors",
    "MaskedAutoencoder": "ahm_gym.model.vit",
    "Pretrainer": "ahm_gym.model.pretrainer",
    "RunError": "ahm_gym.errors",
}
"""Modules of the public names that are not in `ahm_gym.api`."""

for _form in ("Masking", "MultiBinaryMasking", "SequentialMasking", "GroupMasking", "RectangleMasking"):
    gymnasium.register(
        id=f"AHM/{_form}-v0",
        entry_point=f"ahm_gym.envs:{_form}Env",
        vector_entry_point=f"ahm_gym.envs:{_form}VectorEnv",
        nondeterministic=True,  # a seed fixes images and draws, but the autoencoder has learned in between
    )
gymnasium.register(id="AHM/Curriculum-v0", entry_point="ahm_gym.envs:CurriculumEnv")


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, because importing torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "ahm_gym.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
