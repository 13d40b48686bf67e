"""Agents and policies of other packages, found by metadata; test_docs.py installs a real package."""

import pytest
import torch
from plugin_package.ahm_bright import PositionBandit

from ahm_gym.agents import AGENTS, agents, make_agent
from ahm_gym.errors import InputError
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import POLICIES, make_policy, policies
from ahm_gym.pretraining.mask_source import make_mask_source
from ahm_gym.pretraining.policy_agent import PolicyAgent


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Writes the metadata of an installed package; its modules already exist."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(package, **groups):
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        sections = (f"[ahm_gym.{group}]\n" + "\n".join(lines) for group, lines in groups.items())
        (folder / "entry_points.txt").write_text("\n\n".join(sections) + "\n")

    return write


@pytest.fixture(scope="module")
def autoencoder():
    return build_autoencoder("tiny", image_size=(16, 24), patch_size=8)


def make(name, autoencoder, num_workers=1):
    return make_mask_source(name, autoencoder, num_workers=num_workers, seed=0, device=torch.device("cpu"))


class Loose:
    """Neither an agent nor a policy."""

    def __init__(self, *args, **options):
        pass


def make_loose(*args, **options):
    return Loose()


BANDIT = "bandit = plugin_package.ahm_bright:PositionBandit"
BRIGHT = "bright = plugin_package.ahm_bright:Bright"


def test_parts_of_a_package_are_listed_with_the_built_in_ones_and_can_be_made(install, autoencoder):
    install("other", agents=[BANDIT], policies=[BRIGHT])
    assert set(agents()) >= {*AGENTS, "bandit"} and set(policies()) >= {*POLICIES, "bright"}
    assert isinstance(make("bandit", autoencoder), PositionBandit)
    assert isinstance(make("bright", autoencoder), PolicyAgent)


def test_built_in_names_win(install, autoencoder):
    install("other", agents=[BANDIT.replace("bandit", "a3c"), BANDIT.replace("bandit", "random")],
            policies=[BRIGHT.replace("bright", "block")])  # fmt: skip
    assert agents()["a3c"].value == AGENTS["a3c"] and policies()["block"].value == POLICIES["block"]
    assert isinstance(make("random", autoencoder), PolicyAgent)


def test_a_name_that_two_packages_define_is_refused_and_other_names_are_not(install, autoencoder):
    install("one", policies=[BRIGHT])
    install("two", policies=[BRIGHT])
    with pytest.raises(InputError, match="several packages, one and two"):
        make_policy("bright", autoencoder)
    make_policy("random", autoencoder)


@pytest.mark.parametrize("place", ["no_such_module:Policy", "plugin_package.ahm_bright:Policy"])
def test_a_package_that_cannot_be_imported_is_named(install, autoencoder, place):
    install("broken", policies=[f"bright = {place}"])
    with pytest.raises(InputError, match="'bright' of the package broken 1.0 cannot be imported"):
        make_policy("bright", autoencoder)
    assert "bright" in policies()


def test_the_error_for_an_unknown_name_suggests_names_of_packages(install, autoencoder):
    install("other", agents=[BANDIT], policies=[BRIGHT])
    with pytest.raises(InputError, match="did you mean 'bright'.*bandit"):
        make("brigth", autoencoder)
    with pytest.raises(InputError, match="did you mean 'bandit'"):
        make_agent("bandi", (6, 8))


@pytest.mark.parametrize("place", ["Loose", "make_loose"])
def test_a_class_without_the_base_class_is_refused_with_the_class_to_inherit_from(
    install, autoencoder, place
):
    install("loose", agents=[f"act = test_plugins:{place}"], policies=[f"rule = test_plugins:{place}"])
    with pytest.raises(InputError, match=r"agent act is a Loose.*inherit from ahm_gym\.agents\.Agent"):
        make("act", autoencoder)
    with pytest.raises(
        InputError, match=r"policy rule is a Loose.*inherit from ahm_gym\.policies\.MaskPolicy"
    ):
        make("rule", autoencoder)


def test_an_agent_that_does_not_name_num_workers_has_one(install, autoencoder):
    install("other", agents=[BANDIT])
    with pytest.raises(InputError, match="agent bandit learns in one process: it needs 1 worker, not 2"):
        make("bandit", autoencoder, num_workers=2)
    assert make("a3c", autoencoder, num_workers=2).num_workers == 2
