"""The settings of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ahm_gym.errors import InputError, check_numbers, check_seed, unknown_name
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.segmentation.config import FinetuneConfig

OBJECTIVES: tuple[str, ...] = ("probe", "finetune", "reward")
MAX_SEEDS: int = 1000
PRETRAINING = PretrainConfig()
FINETUNING = FinetuneConfig(validate_every=0)
SET_BY_THE_SWEEP: dict[str, tuple[str, ...]] = {
    "pretrain": ("data", "data_root", "policy", "seed", "device", "run_dir"),
    "finetune": (
        "encoder", "data", "data_root", "patient_regex", "labels", "model", "image_size", "spacing", "patch_size",
        "seed", "device", "run_dir", "split", "fold", "folds", "validate_every", "select", "compare",
    ),
}  # fmt: skip
"""Settings of pretraining and fine-tuning that the sweep chooses for each trial."""


@dataclass(frozen=True)
class SweepConfig:
    """Search settings of pretraining, agents and fine-tuning, by their score on val.

    Optuna proposes the settings of each trial (the tree-structured Parzen estimator, TPE). A trial pretrains, and is
    scored on the val images, never on the test images, so that these can still judge the result. The same command
    continues after a stop. Every setting of pretraining and fine-tuning can be given, and is then the same in all
    trials: --pretrain.steps or --pretrain-steps, --finetune.steps or --finetune-steps; a bare name is one of
    pretraining. It needs Optuna: pip install "ahm-gym[sweep]".
    """

    data: str | None = None
    """Images as for pretraining, with labels in train and val unless the objective is reward. None: the MNI152
    brain."""
    data_root: Path | None = None
    """Folder in which a relative name of data is looked up, before that of AHM_DATA and the current folder."""
    policy: str = "a3c"
    """The policy or agent that chooses the masks, as for pretraining; options may follow a colon."""
    search: tuple[str, ...] = ()
    """What is searched. NAME=LOW..HIGH is a range, NAME=LOW..HIGH:log one in which factors count, and NAME=A,B,C a
    choice, such as learning_rate=1e-4..1e-2:log mask_ratio=0.5,0.75. NAME is a setting of pretraining; agent.NAME is
    an option of the agent, and finetune.NAME a setting of fine-tuning."""
    objective: str = "probe"
    """The score of a trial, where more is better. probe: the patch Dice on val of a linear map from the frozen
    features. finetune: the Dice on val after fine-tuning. reward: the mean reward over the updates of pretraining in
    which the masks were paid, which needs no labels."""
    labels: int | None = None
    """Number of labelled training images of the probe or of fine-tuning. None uses all of them."""
    trials: int = 20
    """Number of trials, with those that were pruned or failed. A larger one continues a sweep."""
    seeds: int = 1
    """Number of seeds of a trial: 0, 1, ... of weights, images, masks and the choice of labels. Its score is their
    mean."""
    prune: bool = False
    """End a trial after a seed if its mean so far is below the median of the finished trials; it needs several
    seeds."""
    seed: int = 0
    """Seed of the search. With the same seed, a sweep proposes and scores the same trials, stopped or not."""
    pretrain: PretrainConfig = PRETRAINING
    """Pretraining, the same in every trial but for what is searched."""
    finetune: FinetuneConfig = FINETUNING
    """Fine-tuning, the same in every trial but for what is searched."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""
    time_budget: float | None = None
    """Minutes after which no new work is started and running work is saved. None: no limit."""
    out: Path = Path("runs/sweep")
    """Folder of the trials and the report."""


def check(config: SweepConfig) -> None:
    """Checks what can be checked without opening the data.

    Raises:
        InputError: if a setting is out of range, or is one that the sweep chooses itself.
    """
    check_numbers("count", trials=config.trials, seeds=config.seeds)
    check_seed(config.seed)
    if config.seeds > MAX_SEEDS:
        raise InputError(f"`seeds={config.seeds}` is out of range: choose at most {MAX_SEEDS:,}.")
    if config.labels is not None:
        check_numbers("count", labels=config.labels)
    if config.objective not in OBJECTIVES:
        raise unknown_name("objective", config.objective, OBJECTIVES)
    if config.prune and config.seeds == 1:
        raise InputError(
            "`prune` compares trials after each of their `seeds`, and there is 1: choose 2 or more."
        )
    if config.time_budget is not None and not config.time_budget > 0:
        raise InputError(f"`time_budget` is {config.time_budget}: choose a number of minutes above 0.")
    defaults = SweepConfig()
    for program, names in SET_BY_THE_SWEEP.items():
        nested, usual = getattr(config, program), getattr(defaults, program)
        for name in names:
            if getattr(nested, name) != getattr(usual, name):
                raise InputError(
                    f"`{program}.{name}` is set by the sweep for each trial: leave it out; `data`, `policy`, `labels`, "
                    "`seeds`, `device` and `out` of the sweep determine it."
                )
