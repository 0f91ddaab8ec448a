"""Several processes under torchrun train as one does (test_training.py: their mean gradient is the whole batch's)."""

import json
import subprocess
import sys

import pytest
import torch
from pipeline import command
from tiny import ROOT, call_script, names

from transformer import processes
from transformer.files import UserError


@pytest.mark.parametrize(
    "given",
    [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "2"}]
    + [{"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": ""}, {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}],
    ids=str,
)
def test_ranks_that_torchrun_would_not_set_are_refused(monkeypatch, given):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert processes.places(-1) == (0, 1, -1)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{[*given][0]}=.* in the environment: expected all that torchrun"):
        processes.places(-1)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [[], ["--student_vocab", 17]], ids=["whole vocabulary", "smaller"])
def test_two_processes_distil_a_task_as_one(copy, pieces):
    for student in ("3", "4"):  # dropout draws for the batch of a process
        config = json.loads((copy / student / "config.json").read_text())
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (copy / student / "config.json").write_text(json.dumps(config))
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name in ("intermediate", "prediction"):
        script, flags = command(copy, name)
        flags = [*flags, *pieces, "--train_batch_size", 13, "--max_steps", 11, "--eval_step", 4, "--no_cuda"]
        one, two = copy / f"one_{name}", copy / f"two_{name}"
        assert call_script(script, *flags, "--output_dir", one).returncode == 0
        process = subprocess.run(
            [*several, str(ROOT / script), *map(str, flags), "--output_dir", str(two)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        assert names(one) == names(two)
        logged = [
            [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
            for folder in (one, two)
        ]
        for entry, same in zip(*logged, strict=True):
            for kind in {"losses", "evaluation"} & {*entry}:
                assert same[kind] == pytest.approx(entry[kind], rel=1e-5, abs=1e-6), name
        states = [torch.load(folder / "pytorch_model.bin", weights_only=True) for folder in (one, two)]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)
