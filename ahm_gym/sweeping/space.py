"""What a sweep searches: settings with a range or with choices, and the settings of one trial."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ahm_gym.errors import InputError, unknown_name
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.mask_source import canonical, check_options, fits, is_agent, read_options, taken_by
from ahm_gym.pretraining.policy_options import COMMA, split_options
from ahm_gym.runs.settings import from_json
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.sweeping.config import SET_BY_THE_SWEEP, SweepConfig

if TYPE_CHECKING:
    from optuna.trial import Trial

Number: TypeAlias = float | int
KINDS: dict[str, type[Any]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
FORMS = "write NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"
EXAMPLE = "such as learning_rate=1e-4..1e-2:log or mask_ratio=0.5,0.75"
PAYS: tuple[str, ...] = ("reward", "target")
"""Settings of pretraining that change what a reward means, so that rewards of two trials cannot be compared."""


@dataclass(frozen=True)
class Dimension:
    """One searched setting."""

    name: str
    """As given: learning_rate, agent.width or finetune.learning_rate."""
    program: str
    """pretrain, agent or finetune."""
    setting: str
    """Name of the setting in that program, or of the option of the agent."""
    low: Number = 0
    high: Number = 0
    log: bool = False
    """Whether factors count in the range, rather than differences."""
    choices: tuple[str, ...] = ()
    """As given; empty for a range."""

    def suggest(self, trial: Trial) -> Any:
        """The value that Optuna proposes: a number of the range, or a choice as text."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def parse_space(config: SweepConfig) -> tuple[Dimension, ...]:
    """The searched settings.

    Raises:
        InputError: if there is none, or one is unknown, given twice, out of range, or without effect on the score.
    """
    if not config.search:
        raise InputError(f"`search` is empty: name what is searched, {EXAMPLE}.")
    space = tuple(parse(given, config) for given in config.search)
    names = [(one.program, one.setting) for one in space]
    for one in space:
        if names.count((one.program, one.setting)) > 1:
            raise InputError(f"`search` has {one.name} twice: give it once.")
        check_use(one, config)
    chosen = [one for one in space if one.setting == "policy" and one.program == "pretrain"]
    if chosen and any(one.program == "agent" for one in space):
        raise InputError(
            "`search` has options of an agent and several policies: give one `policy`, or write the options as "
            "choices, such as policy=a3c:width=32,a3c:width=64."
        )
    return space


def parse(given: str, config: SweepConfig) -> Dimension:
    """One searched setting from NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C.

    Raises:
        InputError: with the form that was expected.
    """
    name, equals, text = given.partition("=")
    if not (name and equals and text):
        raise InputError(f"`search={given}`: {FORMS}, {EXAMPLE}.")
    program, setting = place(name, config)
    if program == "pretrain" and setting == "policy":
        return Dimension(name, program, setting, choices=policy_choices(given, text))
    ends = re.fullmatch(r"(.*?)\.\.(.*?)(?::(.*))?", text)
    if ends is None:
        return Dimension(name, program, setting, choices=choices_of(given, text, program, setting, config))
    if ends[3] not in (None, "log"):
        raise InputError(f"`search={given}` ends in :{ends[3]}: {FORMS}.")
    log = ends[3] == "log"
    low, high = (number(given, end) for end in (ends[1], ends[2]))
    if not low < high:
        raise InputError(f"`search={given}` goes from {low} to {high}: write the smaller number first.")
    if log and low <= 0:
        raise InputError(f"`search={given}` starts at {low}: a range with :log starts above 0.")
    if accepts(program, setting, 0.5, config):
        return Dimension(name, program, setting, float(low), float(high), log)
    if not accepts(program, setting, 2, config):
        raise InputError(f"`search={given}`: {name} is no number; write choices, NAME=A,B,C.")
    if not (low == int(low) and high == int(high)):
        raise InputError(f"`search={given}`: {name} takes whole numbers; write them without a fraction.")
    return Dimension(name, program, setting, int(low), int(high), log)


def place(name: str, config: SweepConfig) -> tuple[str, str]:
    """The program that a searched name belongs to, and the name there.

    Raises:
        InputError: if there is no such setting, or the sweep sets it.
    """
    program, dot, setting = name.partition(".")
    program, setting = (program, setting) if dot else ("pretrain", name)
    if program == "agent":
        agent = split_options(config.policy)[0]
        if not is_agent(agent):
            raise InputError(f"`search={name}=...` is an option of an agent, and `policy={agent}` is none.")
        known = {option for option, one in taken_by(agent).items() if one.kind is not one.VAR_KEYWORD}
        if setting not in known and not any(one.kind is one.VAR_KEYWORD for one in taken_by(agent).values()):
            raise unknown_name(f"option of agent {agent}", setting, known)
        return program, setting
    if program not in KINDS:
        raise unknown_name("kind of setting", program, [*KINDS, "agent"])
    every = {item.name for item in fields(KINDS[program])}
    left_out = {*SET_BY_THE_SWEEP[program], "agent_options"} - {"policy"}
    if setting in every & left_out:
        way_out = "search agent.NAME instead" if setting == "agent_options" else "the sweep sets it itself"
        raise InputError(f"`search={name}=...` cannot be searched: {way_out}.")
    if setting not in every - left_out:
        raise unknown_name(f"setting of {program}", setting, every - left_out)
    return program, setting


def check_use(one: Dimension, config: SweepConfig) -> None:
    """Raises InputError if a searched setting has no effect on the score, spoils it, or is also given."""
    if one.program == "finetune" and config.objective != "finetune":
        raise InputError(
            f"`search={one.name}=...` has no effect on `objective={config.objective}`: choose `objective=finetune`."
        )
    if one.program == "agent":
        own = {*read_options(config.pretrain.agent_options), *read_options(split_options(config.policy)[1])}
        is_given = one.setting in own
    elif one.setting == "policy":
        is_given = config.policy != SweepConfig.policy
    else:
        usual = getattr(SweepConfig(), one.program)
        is_given = getattr(getattr(config, one.program), one.setting) != getattr(usual, one.setting)
    if is_given:
        raise InputError(
            f"`search` has {one.name}, which is also given as one value: leave one of the two out."
        )
    if config.objective != "reward" or one.program != "pretrain":
        return
    if one.setting in PAYS or (one.setting == "policy" and config.pretrain.reward is None):
        way_out = ", or give one `pretrain.reward` for all" if one.setting == "policy" else ""
        raise InputError(
            f"`search={one.name}=...` changes what a reward means, so `objective=reward` cannot compare trials: choose "
            f"another objective{way_out}."
        )


def number(given: str, text: str) -> Number:
    """The number in a text.

    Raises:
        InputError: if it is none.
    """
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else finite(float(text))
    except ValueError as error:
        raise InputError(f"`search={given}`: {text!r} is not a number; {FORMS}.") from error


def finite(value: float) -> float:
    """The value.

    Raises:
        ValueError: if it is infinite or NaN.
    """
    if value - value != 0.0:
        raise ValueError(value)
    return value


def choices_of(given: str, text: str, program: str, setting: str, config: SweepConfig) -> tuple[str, ...]:
    """The choices of a setting, as texts.

    Raises:
        InputError: if there are fewer than two, or one does not fit the setting.
    """
    choices = tuple(part.strip() for part in COMMA.split(text))
    for choice in choices:
        if program == "agent":
            check_options(split_options(config.policy)[0], {setting: value_of(choice)})
        else:
            value = setting_value(program, setting, choice)
            if value is not None and isinstance(value, float) and value - value != 0.0:
                raise InputError(f"`search={given}`: {choice} is not a finite number.")
    return checked_choices(given, choices)


def policy_choices(given: str, text: str) -> tuple[str, ...]:
    """The policies of policy=A,B,C; a part with an equals sign is an option of the policy before it."""
    from ahm_gym.pretraining.policy_options import split_policies

    return checked_choices(given, tuple(map(canonical, split_policies([text]))))


def checked_choices(given: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices.

    Raises:
        InputError: if there are fewer than two, or two are the same.
    """
    if len(choices) < 2:
        raise InputError(
            f"`search={given}` has one choice: write several, or give it as a setting of its own."
        )
    if len(set(choices)) < len(choices):
        raise InputError(f"`search={given}` has a choice twice: give each once.")
    return choices


def value_of(text: str) -> Any:
    """The value of a choice: JSON, such as a number or true, or else the text; None and null are None."""
    try:
        return json.loads("null" if text == "None" else text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text


def setting_value(program: str, setting: str, value: Any) -> Any:
    """The value of a setting, of the type that it has there; a text is read as a choice.

    Raises:
        InputError: if it has the wrong type.
    """
    value = value_of(value) if isinstance(value, str) else value
    restored = from_json(KINDS[program], {setting: value}, "`search`")
    return getattr(restored, setting)


def accepts(program: str, setting: str, value: Number, config: SweepConfig) -> bool:
    """Whether a setting, or an option of the agent, takes a number."""
    if program == "agent":
        found = taken_by(split_options(config.policy)[0]).get(setting)
        return found is None or found.default is None or fits(value, found.default)
    try:
        setting_value(program, setting, value)
    except InputError:
        return False
    return True


def settings_of_trial(
    config: SweepConfig, space: tuple[Dimension, ...], values: dict[str, Any]
) -> tuple[PretrainConfig, FinetuneConfig]:
    """The settings of pretraining and of fine-tuning with the values of a trial.

    Args:
        config: settings of the sweep.
        space: what is searched.
        values: the value of every dimension by its name, a choice as text.
    """
    programs: dict[str, Any] = {
        "pretrain": replace(config.pretrain, policy=config.policy),
        "finetune": config.finetune,
    }
    for one in space:
        value = values[one.name]
        if one.program == "agent":
            text = value if isinstance(value, str) else json.dumps(value)
            pairs = (*programs["pretrain"].agent_options, f"{one.setting}={text}")
            programs["pretrain"] = replace(programs["pretrain"], agent_options=pairs)
        else:
            changed = value if one.setting == "policy" else setting_value(one.program, one.setting, value)
            programs[one.program] = replace(programs[one.program], **{one.setting: changed})
    return programs["pretrain"], programs["finetune"]
