import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
from programs import run, start, wait_for, write_discs

from ahm_gym.benchmark import evaluations, jobs, processes
from ahm_gym.benchmark import run as benchmark
from ahm_gym.benchmark.config import BenchmarkConfig
from ahm_gym.benchmark.rows import read_lines as read_rows
from ahm_gym.benchmark.run import check_network, count_labels, kinds_of_score, plan, run_benchmark
from ahm_gym.data import open_data
from ahm_gym.data.labelled import choose_labelled
from ahm_gym.errors import InputError, Interrupted, RunError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.storage import locked
from ahm_gym.segmentation.config import EvaluationConfig, FinetuneConfig, ProbeConfig
from ahm_gym.segmentation.probe_run import run_probe


@pytest.fixture(autouse=True, scope="module")
def few_draws():
    """Reduces the draws of a probe in this process; other processes make all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluations, "NUM_DRAWS", 2)
        yield


def settings_of(discs, out):
    return BenchmarkConfig(
        data=(str(discs),),
        policies=("a3c",),
        labels=("4",),
        seeds=1,
        tasks=("probe",),
        baselines=(),
        pretrain=PretrainConfig(steps=2, batch_size=8, image_size=32),
        finetune=FinetuneConfig(steps=2),
        out=out,
    )


@pytest.fixture
def config(discs, tmp_path):
    return settings_of(discs, tmp_path / "out")


@pytest.fixture(scope="module")
def probed(discs, tmp_path_factory):
    return run_benchmark(settings_of(discs, tmp_path_factory.mktemp("probed") / "out"))


@pytest.fixture
def ended(config, probed):
    """Settings of a finished benchmark, in its own folder."""
    shutil.copytree(probed, config.out)
    return config


@pytest.fixture(scope="module")
def finished(discs, tmp_path_factory):
    """The folder of a benchmark with two seeds and all tasks."""
    config = settings_of(discs, tmp_path_factory.mktemp("finished") / "out")
    return run_benchmark(
        dataclasses.replace(config, seeds=2, tasks=BenchmarkConfig.tasks, baselines=BenchmarkConfig.baselines)
    )


def scores(rows):
    return {row.key: row.psnr if row.kind == "pretrain" else row.dice for row in rows}


def test_there_is_a_row_for_every_policy_seed_task_and_number_of_labels(finished):
    keys = [row.key for row in read_rows(finished)]
    expected = {
        (kind, "discs", policy, seed, labels)
        for policy in ("scratch", "random", "a3c")
        for seed in (0, 1)
        for kind, labels in (("pretrain", None), ("finetune", 4), ("plain", 4), ("frozen", 4), ("probe", 4))
    }
    expected |= {
        (kind, "discs", baseline, seed, 4)
        for seed in (0, 1)
        for baseline, kind in (
            ("unet_scratch", "finetune"),
            ("raw_patches", "frozen"),
            ("raw_patches", "probe"),
        )
    }
    assert len(keys) == len(expected) and set(keys) == expected


def test_a_row_has_scores_seconds_and_its_origin(finished):
    rows = {row.key: row for row in read_rows(finished)}
    learned = rows["pretrain", "discs", "a3c", 0, None]
    assert learned.seconds > 0 and learned.psnr > 0 and learned.peak_memory_mib > 50
    assert 0 < learned.limit_share < 1
    for name in ("loss", "spearman", "excess", "overlap", "entropy", "masked_foreground"):
        assert isinstance(getattr(learned, name), float)
    tuned = rows["finetune", "discs", "a3c", 0, 4]
    assert tuned.split == "test" and len(tuned.cases) == 8 and tuned.hd95_unit == "pixels"
    assert np.mean([case["dice"][0] for case in tuned.cases.values()]) == pytest.approx(tuned.dice, abs=1e-5)
    assert all(row.commit and row.hardware and row.seconds >= 0 for row in rows.values())
    assert rows["pretrain", "discs", "scratch", 0, None].psnr < learned.psnr


def test_every_kind_of_evaluation_gets_another_score(finished):
    found = scores(read_rows(finished))
    kinds = ("finetune", "plain", "frozen", "probe")
    assert len({found[kind, "discs", "a3c", 0, 4] for kind in kinds}) == 4


def test_an_evaluation_fine_tunes_with_its_own_decoder(config, monkeypatch):
    asked = {}
    monkeypatch.setattr(jobs, "finetune", lambda settings, **_: asked.update({job.kind: settings}))
    config = dataclasses.replace(config, tasks=("finetune", "plain", "frozen"))
    group = plan(config, benchmark.open_all(config))[0]
    for job in group.jobs[1:]:
        with contextlib.suppress(TypeError):
            jobs.evaluate(group, job, Interrupt())
    assert {kind: (one.decoder, one.freeze) for kind, one in asked.items()} == {
        "finetune": (None, False), "plain": ("plain", False), "frozen": ("plain", True),
    }  # fmt: skip


def test_a_u_net_has_no_other_decoder_and_is_its_own_baseline(config):
    config = dataclasses.replace(
        config,
        tasks=BenchmarkConfig.tasks,
        baselines=BenchmarkConfig.baselines,
        pretrain=dataclasses.replace(config.pretrain, model="unet"),
    )
    groups = plan(config, benchmark.open_all(config))
    asked = {(group.pretraining.policy, job.kind) for group in groups for job in group.jobs}
    assert not any(kind == "plain" or policy == "unet_scratch" for policy, kind in asked)
    assert ("raw_patches", "frozen") in asked and ("scratch", "finetune") in asked
    assert all(group.has_decoder for group in groups)
    with pytest.raises(InputError, match="`tasks=plain` goes with a vision transformer"):
        plan(dataclasses.replace(config, tasks=("plain",)), benchmark.open_all(config))


def test_an_image_size_that_does_not_fit_the_u_net_of_the_baselines_is_refused_with_the_way_out(config):
    pretraining = dataclasses.replace(config.pretrain, image_size=40)
    config = dataclasses.replace(config, tasks=("finetune",), pretrain=pretraining)
    with_unet = dataclasses.replace(config, baselines=("unet_scratch",))
    with pytest.raises(InputError, match="40x40 does not fit the U-Net.*`baselines=raw_patches`"):
        plan(with_unet, benchmark.open_all(with_unet))
    assert plan(config, benchmark.open_all(config))


def test_a_network_of_planned_sizes_is_refused_because_it_is_also_trained_from_scratch(config):
    pretraining = dataclasses.replace(config.pretrain, model="resenc", plans=Path("plans.json"))
    with pytest.raises(InputError, match="does not know the sizes in `plans`: leave it out"):
        plan(dataclasses.replace(config, pretrain=pretraining), benchmark.open_all(config))


def test_all_policies_of_a_seed_are_evaluated_with_the_same_labels(finished, discs, monkeypatch):
    asked = []
    dataset = open_data(str(discs), image_size=(32, 32))
    assert choose_labelled(dataset, 4, 0) != choose_labelled(dataset, 4, 1)
    monkeypatch.setattr(
        jobs, "finetune", lambda settings, **_: asked.append((settings.seed, settings.labels))
    )
    for policy in ("scratch", "random"):
        group = next(g for g in plan_elsewhere(finished, discs) if g.pretraining.policy == policy)
        with pytest.raises(TypeError):
            jobs.evaluate(group, jobs.Job("finetune", "discs", policy, 0, 4), jobs.Interrupt())
    assert asked == [(0, 4), (0, 4)]


def plan_elsewhere(finished, discs):
    config = dataclasses.replace(settings_of(discs, finished.with_name("other")), seeds=2)
    return benchmark.plan(config, benchmark.open_all(config))


def test_policies_share_everything_in_pretraining_but_their_name(finished, discs):
    shared = {
        tuple(
            (key, value) for key, value in vars(group.pretraining).items() if key not in ("policy", "run_dir")
        )
        for group in plan_elsewhere(finished, discs)
        if group.pretraining.seed == 1
    }
    assert len(shared) == 1


def test_pictures_of_masks_and_segmentations_are_kept_and_run_folders_stay_small(finished):
    folder = finished / "pictures" / "discs" / "a3c"
    assert {"step-0.png", "step-2.png", "segmentations-4.png"} <= set(os.listdir(folder))
    assert sorted(os.listdir(finished / "runs" / "discs")) == ["a3c-0", "a3c-1", "random-0", "random-1"]
    assert not (finished / "runs" / "discs" / "a3c-0" / "checkpoint").exists()


def test_finished_jobs_are_never_run_again(ended, monkeypatch):
    before = (ended.out / "rows.jsonl").read_text()
    monkeypatch.setattr(jobs, "pretrain", None)
    monkeypatch.setattr(jobs, "finetune", None)
    run_benchmark(ended)
    assert (ended.out / "rows.jsonl").read_text() == before


def test_more_policies_and_labels_add_only_what_is_missing(ended, monkeypatch):
    begun = []
    pretrain = jobs.pretrain
    monkeypatch.setattr(
        jobs, "pretrain", lambda c, **options: (begun.append(c.policy), pretrain(c, **options))
    )
    run_benchmark(dataclasses.replace(ended, policies=("grid",), labels=("4", "8")))
    assert begun == ["grid"]
    assert ("probe", "discs", "a3c", 0, 8) not in scores(read_rows(ended.out))
    assert ("probe", "discs", "grid", 0, 8) in scores(read_rows(ended.out))
    assert ("probe", "discs", "random", 0, 8) in scores(read_rows(ended.out))


def test_rows_alone_are_enough_to_continue_and_the_encoder_is_trained_again_for_new_tasks(ended, tmp_path):
    other = tmp_path / "clone"
    other.mkdir()
    for name in ("rows.jsonl", "config.json"):
        (other / name).write_text((ended.out / name).read_text())
    more = dataclasses.replace(ended, labels=("4", "8"))
    run_benchmark(more)
    run_benchmark(dataclasses.replace(more, out=other))
    assert scores(read_rows(other)) == scores(read_rows(ended.out))
    assert len(read_rows(other)) == len(scores(read_rows(other)))


def test_a_failing_job_is_reported_the_rest_continues_and_only_that_job_is_tried_again(config, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RunError) as failure:
        patch.setattr(jobs, "probe_draws", lambda *arguments: 1 / 0)
        run_benchmark(config)
    assert "3 jobs failed" in str(failure.value)
    assert "discs, a3c, seed 0: probe, 4 labels: ZeroDivisionError" in str(failure.value)
    assert {key[0] for key in scores(read_rows(config.out))} == {"pretrain"}
    monkeypatch.setattr(jobs, "pretrain", None)
    run_benchmark(config)
    assert len(read_rows(config.out)) == 6


def test_a_full_disk_fails_jobs_with_a_sentence_and_no_traceback(config, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "row.json")

    monkeypatch.setattr(jobs, "probe_draws", full)
    with pytest.raises(RunError, match="probe, 4 labels: no space left on the device at row.json: free some"):
        run_benchmark(config)
    assert "Traceback" not in capsys.readouterr().err


def test_if_a_pretraining_fails_only_its_own_evaluations_fail_too(config, monkeypatch):
    pretrain = jobs.pretrain

    def falls(settings, **options):
        if settings.policy == "random":
            raise RunError("the loss is nan")
        return pretrain(settings, **options)

    monkeypatch.setattr(jobs, "pretrain", falls)
    with pytest.raises(RunError, match="2 jobs failed"):
        run_benchmark(config)
    assert {row.policy for row in read_rows(config.out)} == {"scratch", "a3c"}


def test_a_benchmark_interrupted_in_a_pretraining_resumes_to_the_same_rows(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, steps=6))
    run_benchmark(config)
    other = dataclasses.replace(config, out=tmp_path / "other")
    pretrain = jobs.pretrain

    def interrupted(settings, *, resume, interrupt):
        if settings.policy == "a3c":
            os.kill(os.getpid(), signal.SIGTERM)
        return pretrain(settings, resume=resume, interrupt=interrupt)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="2 of 6 jobs are left") as stop:
        patch.setattr(jobs, "pretrain", interrupted)
        run_benchmark(other)
    assert stop.value.exit_code == 143
    assert (other.out / "runs" / "discs" / "a3c-0" / "checkpoint" / "step-1").exists()
    run_benchmark(other)
    assert scores(read_rows(other.out)) == scores(read_rows(config.out))


def test_no_job_starts_when_the_time_is_up(config, capsys):
    run_benchmark(dataclasses.replace(config, time_budget=1e-9))
    assert "The time is up: 6 of 6 jobs are left" in capsys.readouterr().err
    assert not (config.out / "rows.jsonl").exists()


@pytest.mark.parametrize("kept", [0, 5])
def test_a_torn_last_row_is_run_again(ended, kept):
    path = ended.out / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:kept]) + lines[kept][:40])
    run_benchmark(ended)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 6


@pytest.mark.slow
def test_processes_yield_the_same_rows_as_one_after_another(config, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluations, "NUM_DRAWS", benchmark.NUM_DRAWS)
    run_benchmark(config)
    side_by_side = dataclasses.replace(config, jobs=2, out=tmp_path / "jobs")
    run_benchmark(side_by_side)
    expected = scores(read_rows(config.out))
    found = scores(read_rows(side_by_side.out))
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], abs=1e-3) for key in expected)
    assert list((side_by_side.out / "logs").glob("*.log"))


@pytest.mark.slow
def test_a_killed_process_is_reported_and_the_rest_continues(config, monkeypatch):
    killed = []
    receive = processes.Processes.receive

    def kill_first(self, connection):
        process, _ = self.running[connection]
        if not killed and "a3c" in process.name:
            killed.append(process.pid)
            process.kill()
            process.join()
            while connection.poll():  # outcomes that it had sent are lost
                try:
                    connection.recv()
                except EOFError:
                    break
        return receive(self, connection)

    monkeypatch.setattr(processes.Processes, "receive", kill_first)
    with pytest.raises(RunError, match="exit code -9"):
        run_benchmark(dataclasses.replace(config, jobs=2))
    assert {row.policy for row in read_rows(config.out)} == {"scratch", "random"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": ("randon",)}, "unknown policy 'randon': did you mean 'random'"),
        ({"labels": ("25",)}, "`labels=25`: discs has 24 labelled training images"),
        ({"labels": ("many",)}, "`labels=many`: discs has 24"),
        ({"labels": ("1.5",)}, "`labels=1.5`: discs has 24"),
        ({"labels": ("0.0",)}, "`labels=0.0`: discs has 24"),
        ({"labels": ()}, "`labels` is empty"),
        ({"tasks": ("probes",)}, "choose from finetune, plain, frozen, probe"),
        ({"finetune": FinetuneConfig(split="val")}, "`finetune.split=val` keeps test images unseen"),
        ({"baselines": ("resnet",)}, "`baselines=resnet`: choose from unet_scratch, raw_patches"),
        ({"seeds": 0}, "`seeds` is 0: choose a whole number"),
        ({"seeds": 10**9}, "`seeds=1000000000` is out of range: choose at most 1,000"),
        ({"jobs": 0}, "`jobs` is 0: choose a whole number"),
        ({"time_budget": 0.0}, "`time_budget` is 0.0"),
        ({"data": ("nowhere.npz",)}, "there is no data at"),
        ({"pretrain": PretrainConfig(patch_size=5)}, "patch size 5"),
        ({"pretrain": PretrainConfig(mask_ratio=1.5)}, "mask ratio 1.5"),
        ({"pretrain": PretrainConfig(epochs=2.0)}, "`pretrain.epochs` would be another number of updates"),
        ({"pretrain": PretrainConfig(seed=3)}, "`pretrain.seed` is set by the benchmark"),
        ({"finetune": FinetuneConfig(learning_rate=0.0)}, "`finetune.learning_rate` is 0.0"),
        ({"device": "tpu"}, "`device=tpu`"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(config, change, message):
    with pytest.raises(InputError) as refusal:
        run_benchmark(dataclasses.replace(config, **change))
    assert message in str(refusal.value)
    assert not config.out.exists()


def test_two_data_sets_of_one_name_are_refused(config, tmp_path):
    (tmp_path / "more").mkdir()
    twin = write_discs(tmp_path / "more" / "discs.npz")
    with pytest.raises(InputError, match="two sets with the name discs"):
        run_benchmark(dataclasses.replace(config, data=(*config.data, str(twin))))


@pytest.mark.parametrize(
    ("split", "needs"), [("val", "the probe needs: choose other"), ("test", "a benchmark")]
)
def test_a_task_without_the_labels_that_it_needs_is_refused(config, discs, tmp_path, split, needs):
    arrays = dict(np.load(discs))
    del arrays[f"{split}_label"]
    np.savez(tmp_path / "part.npz", **arrays)
    part = dataclasses.replace(config, data=(str(tmp_path / "part.npz"),))
    with pytest.raises(InputError, match=f"no labelled {split} images, which {needs}"):
        benchmark.open_all(part)
    if split == "val":
        assert benchmark.open_all(dataclasses.replace(part, tasks=("finetune", "frozen")))


def test_a_folder_that_is_older_than_a_setting_had_its_default(config):
    out_of_time = dataclasses.replace(config, time_budget=1e-9)
    run_benchmark(out_of_time)
    saved = json.loads((config.out / "config.json").read_text())
    del saved["pretrain"]["masking_steps"]
    (config.out / "config.json").write_text(json.dumps(saved))
    other = dataclasses.replace(out_of_time.pretrain, masking_steps=2)
    with pytest.raises(InputError, match="`pretrain.masking_steps=2` differs from the 1"):
        run_benchmark(dataclasses.replace(out_of_time, pretrain=other))
    run_benchmark(out_of_time)


def test_a_folder_with_other_settings_or_other_contents_is_refused(config, tmp_path):
    run_benchmark(dataclasses.replace(config, time_budget=1e-9))
    with pytest.raises(InputError, match="`pretrain.steps=3` differs from the 2 of the benchmark in"):
        run_benchmark(dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, steps=3)))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(InputError, match="is not the folder of a benchmark"):
        run_benchmark(dataclasses.replace(config, out=tmp_path / "photos"))
    (tmp_path / "photos" / "config.json").write_text('{"kind": "pretrain"}')
    with pytest.raises(InputError, match="is not the folder of a benchmark"):
        run_benchmark(dataclasses.replace(config, out=tmp_path / "photos"))


def test_a_damaged_row_is_named(ended):
    path = ended.out / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:40] + "\n" + lines[2])
    with pytest.raises(InputError, match=r"line 2 of .*rows.jsonl is not a row"):
        run_benchmark(ended)


def test_jobs_that_are_requested_twice_run_once(config):
    run_benchmark(dataclasses.replace(config, labels=("1", "0.01", "1"), tasks=("probe", "probe"), seeds=1))
    rows = read_rows(config.out)
    assert len(rows) == len(scores(rows)) == 6
    assert {row.amount for row in rows if row.kind == "probe"} == {"1"}


def test_fractions_of_two_data_sets_are_one_task(config, tmp_path):
    small = write_discs(tmp_path / "small.npz", count=10)
    config = dataclasses.replace(config, data=(*config.data, str(small)), labels=("0.5",))
    run_benchmark(config)
    assert {row.labels for row in read_rows(config.out) if row.kind == "probe"} == {5, 12}
    text = (config.out / "leaderboard.md").read_text()
    assert "Missing seeds" not in text and "probe, 0.5 of the labels" in text


def test_policies_that_would_share_a_folder_are_refused(config, tmp_path):
    with pytest.raises(InputError, match="stored under one name"):
        run_benchmark(dataclasses.replace(config, policies=("agent:a/b", "agent:a-b")))


def test_other_data_of_the_same_name_is_refused(config, tmp_path):
    run_benchmark(dataclasses.replace(config, time_budget=1e-9))
    (tmp_path / "other").mkdir()
    other = write_discs(tmp_path / "other" / "discs.npz", count=20)
    with pytest.raises(InputError, match="`data=discs` is not the discs"):
        run_benchmark(dataclasses.replace(config, data=(str(other),)))


def test_a_second_program_on_the_same_folder_is_refused(config):
    config.out.mkdir()
    with locked(config.out), pytest.raises(InputError, match="another program is at work in"):
        run_benchmark(config)
    run_benchmark(dataclasses.replace(config, time_budget=1e-9))


def test_a_file_in_the_place_of_the_folder_is_refused(config):
    config.out.write_text("")
    with pytest.raises(InputError, match="is not the folder of a benchmark"):
        run_benchmark(config)


def test_run_folders_left_by_a_crash_are_replaced(config):
    folder = config.out / "runs" / "discs"
    run_benchmark(dataclasses.replace(config, time_budget=1e-9))
    (folder / "a3c-0").mkdir(parents=True)
    (folder / "a3c-0" / ".config.json.tmp").touch()
    (folder / "a3c-0-probe-4" / "figures").mkdir(parents=True)
    run_benchmark(config)
    assert len(read_rows(config.out)) == 6
    assert sorted(os.listdir(folder)) == ["a3c-0", "random-0"]


def test_a_pretraining_whose_row_was_lost_is_not_run_again(ended, monkeypatch):
    path = ended.out / "rows.jsonl"
    before = scores(read_rows(ended.out))
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "a3c" not in line))
    (ended.out / "runs" / "discs" / "a3c-0" / "checkpoint").mkdir()
    monkeypatch.setattr(jobs, "pretrain", None)
    run_benchmark(ended)
    assert scores(read_rows(ended.out)) == before
    assert not (ended.out / "runs" / "discs" / "a3c-0" / "checkpoint").exists()


def test_the_settings_name_the_command_of_every_session(config):
    for command in ("python one", "python two", "python one"):
        run_benchmark(dataclasses.replace(config, time_budget=1e-9), command=command)
    assert json.loads((config.out / "config.json").read_text())["command"] == "python one\npython two"


def test_the_settings_record_the_patient_of_every_scan(config, tmp_path):
    rng = np.random.default_rng(0)
    scans = [f"{patient}_{phase}" for patient in ("a", "b", "c") for phase in ("ed", "es")]
    for scan, folder in itertools.product(scans, ("images", "labels")):
        (tmp_path / "heart" / folder).mkdir(parents=True, exist_ok=True)
        volume = rng.integers(0, 2, (32, 32, 2), dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "heart" / folder / f"{scan}.nii.gz")
    heart = dataclasses.replace(config, data=(str(tmp_path / "heart"),), labels=("1",), time_budget=1e-9)
    run_benchmark(heart)
    kept = json.loads((config.out / "config.json").read_text())["patients"]
    assert kept == {"heart": {scan: f"images/{scan[0]}" for scan in scans}}


def test_labels_are_counts_or_fractions(discs):
    dataset = open_data(str(discs), image_size=(32, 32))
    assert [count_labels(label, dataset) for label in ("1", "24", "0.5", "1.0", "0.001")] == [
        1,
        24,
        12,
        24,
        1,
    ]


def test_the_program_ends_with_two_on_bad_input(tmp_path):
    result = run("benchmark.py", "--data", "nowhere.npz", cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("error: there is no data at")


def test_after_a_kill_at_any_moment_the_same_command_continues(discs, tmp_path):
    arguments = [
        "--data", discs, "--policies", "block", "--labels", "4", "--seeds", 1, "--pretrain-steps", 4,
        "--finetune-steps", 2, "--batch-size", 8, "--image-size", 32, "--tasks", "probe", "--out", "out",
    ]  # fmt: skip
    process = start("benchmark.py", *arguments, cwd=tmp_path)
    wait_for(lambda: (tmp_path / "out" / "rows.jsonl").exists(), process)
    process.kill()
    process.communicate()
    result = run("benchmark.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "7 of 7 | " in result.stderr and "report.html" in result.stdout
    assert len(read_rows(tmp_path / "out")) == 7


def test_the_first_draw_of_a_probe_is_that_of_fine_tuning_and_the_others_are_not(
    discs, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluations, "NUM_DRAWS", 4)
    settings = FinetuneConfig(
        data=str(discs), image_size=(32,), patch_size=4, seed=2, labels=4, run_dir=tmp_path / "probe"
    )
    shared = {field.name: getattr(settings, field.name) for field in dataclasses.fields(EvaluationConfig)}
    alone = run_probe(ProbeConfig(**shared))
    draws = evaluations.probe_draws(settings, Interrupt())
    assert draws[0]["cases"] == alone["cases"]
    assert len(draws) == 4 and len({draw["val_r2"] for draw in draws}) == 4
    dataset = open_data(str(discs), image_size=(32, 32))
    every = dataclasses.replace(settings, labels=len(dataset.indices("train", labelled=True)))
    assert len(evaluations.probe_draws(every, Interrupt())) == 1
    with pytest.raises(Interrupted, match="stopped in a probe"):
        evaluations.probe_draws(settings, Interrupt(deadline=0.0))


def test_a_pixel_probe_of_many_labels_has_fewer_draws(monkeypatch):
    monkeypatch.setattr(evaluations, "NUM_DRAWS", 25)
    assert [evaluations.num_draws(labels, 24, "pixel") for labels in (20, 21, 24, None)] == [25, 5, 1, 1]
    assert evaluations.num_draws(21, 24, "patch") == 25


def test_the_pixel_probe_is_a_task_that_is_ranked_by_average_precision(config):
    config = dataclasses.replace(config, tasks=("pixel_probe",), baselines=("raw_patches",))
    run_benchmark(config)
    found = {row.policy: row for row in read_rows(config.out) if row.kind == "pixel_probe"}
    assert found.keys() == {"scratch", "random", "a3c", "raw_patches"}
    for row in found.values():
        assert row.draws == 2 and 0 < row.ap <= 1 and 0 <= row.dice <= 1 and row.log_loss > 0
        cases = [scores["ap"][0] for scores in row.cases.values()]
        assert row.ap == pytest.approx(np.mean(cases), abs=1e-4) and len(cases) == 8
    ranked = sorted(found, key=lambda policy: -found[policy].ap)
    text = (config.out / "leaderboard.md").read_text()
    table = text[text.index("**discs, pixel probe, 4 labels") :]
    assert "| policy | average precision |" in table and "| Dice | Dice difference | log-loss |" in table
    listed = [line.split("|")[1].strip() for line in table.splitlines()[4:8]]
    assert listed == ranked
    page = (config.out / "report.html").read_text()
    assert "difference in average precision" in page and "difference in Dice" not in page
    header = (config.out / "leaderboard.csv").read_text().splitlines()[0]
    assert "ap_difference" in header and "log_loss_difference" in header
    run_benchmark(dataclasses.replace(config, tasks=("pixel_probe", "probe")))
    assert len([row for row in read_rows(config.out) if row.kind == "pixel_probe"]) == 4


def test_a_probe_is_the_mean_over_its_draws():
    rows = [
        {"per_class": {"1": 0.5, "2": None}, "cases": {"a": [0.25, None], "b": [0.5, 1.0]}},
        {"per_class": {"1": 0.7, "2": None}, "cases": {"a": [0.75, None], "b": [0.0, 0.5]}},
    ]
    found = evaluations.scores_of_probe(rows)
    assert found["cases"] == {"a": {"dice": [0.5, None]}, "b": {"dice": [0.25, 0.75]}}
    assert found["dice"] == pytest.approx((0.375 + 0.75) / 2) and found["num_classes"] == 3


def test_two_settings_of_an_agent_are_two_policies(config):
    config = dataclasses.replace(
        config,
        policies=("a3c", "a3c:width=8,entropy_coef=0.5", "a3c:entropy_coef=5e-1,width=8"),
        pretrain=dataclasses.replace(config.pretrain, agent_options=("gamma=0.5", "width=16")),
    )
    out = run_benchmark(config)
    name = "a3c:entropy_coef=0.5,width=8"
    rows = read_rows(out)
    assert {row.policy for row in rows} == {"scratch", "random", "a3c", name}
    runs = {path.name: json.loads((path / "config.json").read_text()) for path in (out / "runs/discs").iterdir()
            if (path / "config.json").exists()}  # fmt: skip
    assert runs["a3c-entropy_coef-0.5-width-8-0"]["agent_options"] == [
        "gamma=0.5", "entropy_coef=0.5", "width=8",
    ]  # fmt: skip
    assert (
        runs["a3c-0"]["agent_options"] == ["gamma=0.5", "width=16"]
        and runs["random-0"]["agent_options"] == []
    )
    page = (out / "report.html").read_text()
    assert name in page and (out / "pictures/discs/a3c-entropy_coef-0.5-width-8").is_dir()
    assert name in (out / "leaderboard.csv").read_text()
    before = (out / "rows.jsonl").read_bytes()
    run_benchmark(config)
    assert (out / "rows.jsonl").read_bytes() == before


def test_an_option_that_no_agent_has_is_found_before_anything_is_written(config):
    with pytest.raises(InputError, match="unknown option of agent a3c 'widht': did you mean 'width'"):
        run_benchmark(dataclasses.replace(config, policies=("a3c:widht=8",)))
    assert not config.out.exists()


def test_volumes_are_fine_tuned_once_because_their_decoder_is_plain_anyway(config):
    volumes = dataclasses.replace(config.pretrain, volumes=True, image_size=32)
    config = dataclasses.replace(config, pretrain=volumes, tasks=("finetune", "plain", "frozen"))
    assert kinds_of_score(config, "random", has_decoder=False) == ["finetune", "frozen"]
    with pytest.raises(InputError, match="`tasks=plain` .* that of volumes is plain anyway"):
        check_network(dataclasses.replace(config, tasks=("plain",)))
