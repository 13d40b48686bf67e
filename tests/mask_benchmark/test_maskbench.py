"""MaskBench: scores by value, resume, plug-ins, failures and the report."""

import csv
import json
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from medical_files import volumes_in

import ahm_gym
from ahm_gym.cli import main
from ahm_gym.errors import InputError, Interrupted, RunError
from ahm_gym.mask_benchmark import autoencoders
from ahm_gym.mask_benchmark.autoencoders import digest_of, folder_of, load_frozen, make_autoencoders
from ahm_gym.mask_benchmark.config import MaskBenchConfig, check
from ahm_gym.mask_benchmark.curves import learning_curves
from ahm_gym.mask_benchmark.jobs import comparable, judge_of, opened, stage_of
from ahm_gym.mask_benchmark.judge import Judge
from ahm_gym.mask_benchmark.participants import everyone
from ahm_gym.mask_benchmark.report import read_scores
from ahm_gym.mask_benchmark.rows import MaskRow, read_mask_rows
from ahm_gym.mask_benchmark.run import run_maskbench
from ahm_gym.mask_benchmark.statistics import improvement, mean_score
from ahm_gym.runs.interrupt import Interrupt

SMALL = {
    "image_size": 32, "pretrain_steps": 40, "pretrain_batch_size": 8, "checkpoints": (50, 100), "batch_size": 8,
    "num_points": 3, "device": "cpu",
}  # fmt: skip
FIXED = ("random", "oracle_hard", "low_loss", "textured")


def config_of(discs, out, **settings):
    return MaskBenchConfig(data=(str(discs),), out=out, **{**SMALL, "seeds": 1, "steps": 6, **settings})


def scores_of(out):
    return {row.key: (row.score, row.curve) for row in read_mask_rows(out)}


@pytest.fixture(scope="module", autouse=True)
def no_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AHM_CACHE", raising=False)
        yield


@pytest.fixture(scope="module")
def config(discs, tmp_path_factory):
    """Settings of a finished benchmark of fixed rules, a3c and a policy that learns."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return config_of(discs, out, policies=(*FIXED, "hard_patches", "a3c"), seeds=3, steps=12)


@pytest.fixture(scope="module")
def out(config):
    return run_maskbench(config)


@pytest.fixture(scope="module")
def judge(config, out):
    dataset = opened(config, config.data[0])
    folder = folder_of(config, "discs", dataset)
    return judge_of(comparable(config), config.data[0], folder, 100, "relative")


@pytest.fixture(scope="module")
def patch_reward(judge):
    return judge.mean_rewards(torch.Generator().manual_seed(0))[0]


def test_the_oracle_is_never_worse_than_its_first_guess(judge, patch_reward):
    first = judge.paid(patch_reward)
    alike = patch_reward.mean(dim=0, keepdim=True).expand_as(patch_reward)
    assert judge.scale.random < judge.paid(alike) < judge.scale.oracle
    assert 0 < judge.score(patch_reward) <= 1 and first <= judge.scale.oracle


def test_the_scale_is_measured_once_for_all_processes(judge, config, monkeypatch):
    folder = folder_of(config, "discs", opened(config, config.data[0]))
    given = comparable(config), config.data[0], folder, 100, "relative"
    monkeypatch.setattr(Judge, "_measure_scale", lambda *_: pytest.fail("measured again"))
    again = judge_of.__wrapped__(*given)
    assert again.scale == judge.scale
    scores = torch.rand(judge.env.num_envs, judge.env.num_patches, generator=torch.Generator().manual_seed(1))
    assert again.score(scores) == judge.score(scores)


def test_masks_of_random_scores_score_zero_on_average(judge, patch_reward):
    generator = torch.Generator().manual_seed(5)
    drawn = [judge.score(torch.rand(patch_reward.shape, generator=generator)) for _ in range(40)]
    error = np.std(drawn, ddof=1) / len(drawn) ** 0.5
    assert abs(np.mean(drawn)) < 4 * error and error < 0.1


def test_masks_of_the_easiest_patches_score_below_random_ones(judge, patch_reward):
    assert judge.score(-patch_reward) < -0.5


def test_rules_are_scored_as_what_they_do(out):
    scores = read_scores(out)["relative"]
    assert 0.6 < scores["oracle_hard"] < 1.05
    assert abs(scores["random"]) < 0.35
    assert scores["low_loss"] < -0.4
    assert list(scores) == sorted(scores, key=scores.get, reverse=True)


def test_an_agent_starts_at_random_masks_and_learns_by_its_seed(out):
    rows = [row for row in read_mask_rows(out) if row.policy == "a3c"]
    assert all(row.learns and row.updates == [0, 4, 8, 12] and row.score == row.curve[-1] for row in rows)
    assert len({tuple(row.curve) for row in rows}) == len(rows) == 6
    assert all(abs(row.curve[0]) < 0.2 for row in rows)  # A3C gives all patches the same score at first
    assert np.mean([row.score for row in rows]) > 0.3


def test_two_settings_of_an_agent_are_two_policies(discs, tmp_path):
    policies = ("a3c", "a3c:width=8,learning_rate=0.1")
    out = run_maskbench(config_of(discs, tmp_path / "out", policies=policies, checkpoints=(100,)))
    first, second = (row for row in read_mask_rows(out) if row.policy != "random")
    assert {first.policy, second.policy} == set(policies) and first.curve[1:] != second.curve[1:]


def test_a_row_has_what_the_score_came_from(out, config):
    for row in read_mask_rows(out):
        share = (row.paid - row.paid_random) / (row.paid_oracle - row.paid_random)
        assert share == pytest.approx(row.score, abs=1e-3)
        assert row.settings["steps"] == 12 and row.commit and row.hardware and row.seconds > 0
        assert row.learns == (row.policy not in FIXED)


@pytest.mark.slow
def test_relative_is_the_loss_on_another_scale(discs, out, config):
    run_maskbench(replace(config, policies=("textured",), rewards=("loss", "advantage"), seeds=1))
    found = {row.key: row.score for row in read_mask_rows(out) if row.policy == "textured"}
    for percent in (50, 100):
        assert found["loss", "discs", "textured", 0, percent] == pytest.approx(
            found["relative", "discs", "textured", 0, percent], abs=1e-3
        )
        # It subtracts the mean of other random masks of the image, which are drawn anew: noise of 12 x 16 patches.
        assert found["advantage", "discs", "textured", 0, percent] == pytest.approx(
            found["loss", "discs", "textured", 0, percent], abs=0.3
        )


def test_finished_work_is_not_run_again_and_more_seeds_add_to_it(discs, tmp_path, monkeypatch):
    first = config_of(discs, tmp_path / "a", policies=("textured", "a3c"), checkpoints=(100,))
    run_maskbench(first)
    before = (first.out / "rows.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("ahm_gym.mask_benchmark.jobs.run_job", None)
        patch.setattr(autoencoders, "Training", None)
        run_maskbench(first)
    assert (first.out / "rows.jsonl").read_text() == before
    run_maskbench(replace(first, seeds=2))
    assert (first.out / "rows.jsonl").read_text().startswith(before)
    at_once = replace(first, seeds=2, out=tmp_path / "b")
    run_maskbench(at_once)
    assert scores_of(at_once.out) == scores_of(first.out) and len(scores_of(first.out)) == 4


def test_a_stop_in_an_agent_loses_only_that_job(discs, tmp_path, monkeypatch):
    config = config_of(discs, tmp_path / "out", policies=("textured", "a3c"), checkpoints=(100,))
    run_maskbench(replace(config, policies=("textured",)))
    requested = Interrupt.requested
    with monkeypatch.context() as patch:
        later = time.time() + 3600
        patch.setattr(
            "ahm_gym.mask_benchmark.jobs.EnvFactory.__call__",
            lambda self: pytest.fail("an environment was made after the time was up"),
        )
        patch.setattr(Interrupt, "requested", property(lambda self: self.deadline <= later))
        assert run_maskbench(replace(config, time_budget=1)) == config.out
    assert Interrupt.requested is requested and len(scores_of(config.out)) == 1
    assert (config.out / "report.html").is_file()
    run_maskbench(config)
    assert len(scores_of(config.out)) == 2


class StopAt(Interrupt):
    """Requests a stop when it has been asked so many times."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    @property
    def requested(self):
        self.times -= 1
        return self.times <= 0


def test_pretraining_continues_after_a_stop_with_the_same_weights(discs, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoders, "SAVE_EVERY", 15)
    config = config_of(discs, tmp_path, pretrain_steps=40)
    dataset = opened(config, config.data[0])
    with pytest.raises(Interrupted, match="at 25 of 40 updates"):
        make_autoencoders(config, config.data[0], tmp_path / "stopped", StopAt(25))
    make_autoencoders(replace(config, checkpoints=(100,)), config.data[0], tmp_path / "whole", Interrupt())
    for name in ("stopped", "whole"):
        make_autoencoders(config, config.data[0], tmp_path / name, Interrupt())
    digests = {
        (name, percent): digest_of(
            load_frozen(config, config.data[0], dataset.channels, tmp_path / name, percent)
        )
        for name in ("stopped", "whole")
        for percent in (50, 100)
    }
    assert digests["stopped", 50] == digests["whole", 50] != digests["whole", 100] == digests["stopped", 100]
    assert {place.name for place in (tmp_path / "whole").glob("step-*")} == {"step-20", "step-40"}


@pytest.mark.slow
def test_autoencoders_are_shared_by_folders_if_there_is_a_cache(discs, tmp_path, monkeypatch):
    monkeypatch.setenv("AHM_CACHE", str(tmp_path / "cache"))
    config = config_of(discs, tmp_path / "a", policies=("textured",), checkpoints=(100,))
    run_maskbench(config)
    monkeypatch.setattr(autoencoders, "Training", None)
    run_maskbench(replace(config, out=tmp_path / "b"))
    assert list((tmp_path / "cache" / "maskbench").glob("discs-*"))
    assert not (tmp_path / "a" / "autoencoders").exists()
    assert scores_of(tmp_path / "a") == scores_of(tmp_path / "b")


def test_the_autoencoder_is_never_updated(config, out):
    dataset = opened(config, config.data[0])
    folder = folder_of(config, "discs", dataset)
    for percent in (50, 100):
        stage = stage_of(comparable(config), config.data[0], folder, percent)
        on_disk = load_frozen(config, config.data[0], dataset.channels, folder, percent)
        assert digest_of(stage.autoencoder) == stage.digest == digest_of(on_disk)
    assert {row.weights for row in read_mask_rows(out) if row.percent == 100} == {stage.digest}


def test_classes_of_other_packages_take_part_by_place_and_by_entry_point(discs, tmp_path, monkeypatch):
    folder = tmp_path / "other-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[ahm_gym.agents]\nbandit = plugin_package.ahm_bright:PositionBandit\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    places = ("plugin_package.ahm_bright:Bright", "plugin_package.ahm_bright:PositionBandit")
    config = config_of(discs, tmp_path / "out", policies=(*places, "bandit"), checkpoints=(100,))
    found = {row.policy: row for row in read_mask_rows(run_maskbench(config))}
    assert set(found) == {*places, "bandit"}
    assert not found[places[0]].learns and found["bandit"].learns
    assert found["bandit"].curve == found[places[1]].curve


def test_without_names_everyone_who_fits_takes_part(judge, capsys):
    names = everyone(judge.env.pretrainer.autoencoder, "tiny")
    assert {"random", "hard_patches", "a3c", "ppo", "dqn"} <= set(names)
    assert not {"agent", "ahm2025"} & set(names)
    assert "note: ahm2025 sees raw pixels, which `model=tiny` does not show" in capsys.readouterr().err


def test_a_policy_that_fails_is_named_and_the_others_are_scored(discs, tmp_path):
    config = config_of(discs, tmp_path / "out", policies=("ahm2025", "textured"), checkpoints=(100,))
    with pytest.raises(RunError, match=r"1 jobs failed.*ahm2025, seed 0: agent ahm2025 sees the raw image"):
        run_maskbench(config)
    assert [row.policy for row in read_mask_rows(config.out)] == ["textured"]
    assert "ahm2025" in (config.out / "report.html").read_text()
    assert "## Failed" in (config.out / "maskbench.md").read_text()


class Lazy:
    """Stands for `Agent.learn` that ends after one update."""

    def learn(self, make_env, num_steps, *, seed, callback):
        callback({})


def test_an_agent_that_stops_early_fails(discs, tmp_path, monkeypatch):
    monkeypatch.setattr("ahm_gym.agents.a3c.A3C.learn", Lazy.learn)
    with pytest.raises(RunError, match="a3c ended after 1 of 6 updates"):
        run_maskbench(config_of(discs, tmp_path / "out", policies=("a3c",), checkpoints=(100,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": ("progress",)}, "`rewards=progress` measures what the autoencoder learns"),
        ({"rewards": ("los",)}, "unknown reward 'los': did you mean 'loss'"),
        ({"rewards": ()}, "`rewards` is empty"),
        ({"guided_fraction": 1.0}, "with `guided_fraction=1` there are none"),
        ({"guided_fraction": 0.0}, "`guided_fraction` is 0, so no policy chooses"),
        ({"guided_fraction": 1.5}, "`guided_fraction` is 1.5"),
        ({"mask_ratio": 1.0}, "`mask_ratio` is 1.0"),
        ({"checkpoints": (0, 50)}, "`checkpoints=0,50`"),
        ({"steps": 0}, "`steps` is 0"),
        ({"time_budget": 0.0}, "`time_budget` is 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check(MaskBenchConfig(**settings))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("randm", "did you mean 'random'"),
        ("a3c:entropy=0.1", "unknown option of agent a3c 'entropy'"),
        ("no_such_module:Policy", "`policies=no_such_module:Policy` cannot be imported"),
        ("ahm_gym.errors:InputError", "is neither an Agent nor a MaskPolicy"),
    ],
)
def test_unknown_policies_are_refused_before_any_work(discs, tmp_path, policy, message):
    with pytest.raises(InputError, match=message):
        run_maskbench(config_of(discs, tmp_path / "out", policies=(policy,)))
    assert not (tmp_path / "out").exists()


def test_rows_of_other_settings_or_other_autoencoders_are_not_mixed(out, config, tmp_path):
    with pytest.raises(InputError, match="`steps=7` differs from the 12"):
        run_maskbench(replace(config, steps=7))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not the folder of a MaskBench"):
        run_maskbench(replace(config, out=tmp_path))
    other = tmp_path / "copy"
    other.mkdir()
    (other / "config.json").write_text((out / "config.json").read_text())
    lines = (out / "rows.jsonl").read_text().replace('"weights": "', '"weights": "x')
    (other / "rows.jsonl").write_text(lines)
    with pytest.raises(InputError, match="from an autoencoder with the digest x"):
        run_maskbench(replace(config, out=other))


def test_a_reward_that_pays_all_alike_has_no_scale(judge):
    env, kept = judge.env, judge.env.pretrainer.autoencoder
    with pytest.raises(InputError, match="so there is nothing to learn"):
        type(judge)(
            kept, env.patches.images, reward="rank", mask_ratio=0.75, guided_fraction=1.0, num_masks=2
        )


def row(policy, seed, score, percent=100):
    return MaskRow(
        kind="maskbench", data="a", policy=policy, seed=seed, seconds=1.0, reward="loss", percent=percent, weights="w",
        learns=True, updates=[0, 1], curve=[0.0, score], score=score, paid=1.0, paid_random=0.0, paid_oracle=1.0,
        settings={}, commit="c", hardware="h",
    )  # fmt: skip


def tasks(scores, percent=100):
    return {("a", percent): {seed: row("p", seed, score, percent) for seed, score in enumerate(scores)}}


def test_the_probability_of_improvement_is_the_share_of_pairs_averaged_over_tasks():
    one = improvement(tasks([1.0, 3.0]), tasks([2.0, 0.0]))
    assert (one.probability == 0.75 and one.interval == (0.5, 1.0)) or one.interval == (0.0, 1.0)
    assert improvement(tasks([1.0, 2.0]), tasks([1.0, 2.0])).probability == 0.5
    assert improvement(tasks([5.0, 6.0]), tasks([1.0, 2.0])) == type(one)(1.0, (1.0, 1.0))
    both = improvement(
        tasks([1.0], 50) | tasks([0.0], 100), tasks([0.0], 50) | tasks([1.0], 100) | tasks([9.0], 25)
    )
    assert both == type(one)(0.5, None)
    assert improvement(tasks([1.0], 50), tasks([1.0], 100)) is None


def test_the_interval_of_a_mean_is_over_seeds_that_have_every_task():
    both = tasks([1.0, 2.0, 3.0], 50) | tasks([1.0, 2.0], 100)
    found = mean_score(both)
    half = 12.706204736 * np.std([1.0, 2.0], ddof=1) / 2**0.5
    assert found.mean == 1.5 and found.num_seeds == 2
    assert found.interval == pytest.approx((1.5 - half, 1.5 + half))
    assert mean_score(tasks([1.0])).interval is None and mean_score({}) is None


class Addresses(HTMLParser):
    """Collects what a page asks for."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]


def test_the_report_has_tables_and_curves_and_asks_for_nothing_from_outside(out, config, capsys):
    page = (out / "report.html").read_text()
    addresses = Addresses(page).found
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert "discs, autoencoder at 50 % of its pretraining" in page and 'class="between c' in page
    lines = list(csv.DictReader((out / "maskbench.csv").read_text().splitlines()))
    mean = np.mean(
        [
            row.score
            for row in read_mask_rows(out)
            if (row.reward, row.policy, row.percent) == ("relative", "a3c", 50)
        ]
    )
    (line,) = (
        line
        for line in lines
        if (line["reward"], line["policy"], line["percent"]) == ("relative", "a3c", "50")
    )
    assert float(line["score"]) == pytest.approx(mean, rel=1e-4) and line["seeds"] == "3"
    pairs = list(csv.DictReader((out / "improvement.csv").read_text().splitlines()))
    chances = {(line["policy"], line["than"]): float(line["probability"]) for line in pairs}
    assert chances["oracle_hard", "low_loss"] == 1.0
    assert chances["a3c", "random"] + chances["random", "a3c"] == pytest.approx(1.0)
    (out / "report.html").unlink()
    main(["report", str(out)])
    assert (out / "report.html").read_text() == page and "maskbench.csv" in capsys.readouterr().out


def test_the_command_and_python_give_the_same(discs, tmp_path, capsys):
    flags = "--policies textured,random --rewards loss,rank --seeds 1 --steps 6 --image-size 32 --pretrain-steps 40"
    flags += " --pretrain-batch-size 8 --checkpoints 100 --batch-size 8 --num-points 3 --device cpu"
    main(["maskbench", "--data", str(discs), *flags.split(" "), "--out", str(tmp_path / "command")])
    assert "maskbench.md" in capsys.readouterr().out
    settings = {**SMALL, "checkpoints": (100,)}
    result = ahm_gym.maskbench(
        data=[discs], policies=["textured", "random"], rewards=["loss", "rank"], seeds=1, steps=6,
        out=tmp_path / "python", **settings,
    )  # fmt: skip
    assert result.run_dir == tmp_path / "python" and result.report.is_file()
    assert result.scores == read_scores(tmp_path / "command") and set(result.scores) == {"loss", "rank"}
    config = json.loads((tmp_path / "command" / "config.json").read_text())
    assert config["held_out"] == {"discs": 6} and config["command"].startswith("ahm-gym maskbench --data")


@pytest.mark.slow
def test_several_processes_give_the_same_rows(discs, tmp_path):
    config = config_of(discs, tmp_path / "one", policies=("textured", "a3c"), checkpoints=(100,))
    run_maskbench(config)
    run_maskbench(replace(config, out=tmp_path / "two", jobs=2))
    assert scores_of(tmp_path / "one") == scores_of(tmp_path / "two")


def test_volumes_are_scored_in_three_dimensions(tmp_path):
    data = volumes_in(tmp_path / "scans", [(12, 12, 12)] * 6, [(1.0, 1.0, 1.0)] * 6)
    settings = {"volumes": True, "image_size": 12, "patch_size": 4, "checkpoints": (100,), "seeds": 1}
    out = run_maskbench(config_of(data, tmp_path / "out", policies=("random", "a3c"), steps=2, **settings))
    rows = read_mask_rows(out)
    assert {row.policy for row in rows} == {"random", "a3c"} and all(np.isfinite(row.score) for row in rows)
    assert json.loads((out / "config.json").read_text())["image_size"] == [12, 12, 12]


def test_only_the_six_highest_curves_have_bands():
    names = [f"policy{number}" for number in range(8)]
    rows = [row(name, seed, number + 0.1 * seed) for number, name in enumerate(names) for seed in (0, 1)]
    (chart,) = learning_curves(rows, "loss", names).values()
    assert chart.count("between ") == 6 and chart.count('class="curve ') == 8
    assert all(f"{name}: " in chart for name in names)
