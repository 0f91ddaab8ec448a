"""A benchmark runs, on tiny models: what it calls changes, and nobody runs it often."""

import json
import re

import pytest
from tiny import VOCABULARY, make_corpus, make_sst2, make_teacher, run_script


@pytest.mark.slow
def test_the_distillation_benchmark_prints_a_row_for_each_work_and_way(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    make_sst2(tmp_path / "SST-2", train=500)
    epoch = ["--output_dir", tmp_path / "epoch", "--max_seq_len", 128, "--one_seq", "--epochs_to_generate", 1]
    corpus = make_corpus(tmp_path / "corpus.txt", documents=300)
    folder = make_teacher(tmp_path / "teacher", max_position_embeddings=128)
    run_script("pregenerate_training_data.py", "--train_corpus", corpus, "--bert_model", folder, *epoch)
    inputs = ["--train_tsv", tmp_path / "SST-2" / "train.tsv", "--vocab", tmp_path / "vocab.txt"]
    sizes = ["--layers", 4, "--width", 96, "--steps", 1, "--slow_steps", 1, "--rounds", 1, "--no_cuda"]
    works = "general", "intermediate, 3 epochs of kept states", "prediction, first epoch"
    process = run_script(
        "tests/benchmarks/distillation.py", *inputs, "--epoch", tmp_path / "epoch", *sizes, "--works", *works
    )
    for work in works:
        for way in ("ours", "ours, int8 teacher", "reference"):
            row = re.search(rf"^\| {work} \| {way} \| ([\d.]+) \| [\d.]+ \| \d+% \| ([\d.]+) \|$", process.stdout, re.M)
            assert row and float(row[1]) > 0 and float(row[2]) > 0


def test_the_table_of_results_has_what_is_finished(tmp_path):
    for seed in (1, 2):
        for folder in ("students", "intermediate"):
            made = tmp_path / folder / "TREC_2x192" / f"seed_{seed}"
            made.mkdir(parents=True)
            line = {"step": 4, "losses": {"loss": 1.0}, "learning_rate": 0.1, "steps": 4, "seconds": 90.0}
            (made / "train_log.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        row = {"title": "dev acc", "teacher": 1.0, "student": 0.85, "baseline": 0.5}
        (tmp_path / "students" / "TREC_2x192" / f"seed_{seed}" / "report.json").write_text(json.dumps({"table": [row]}))
    results = "acc = 0.85\nseeds = 1,2\nacc_deviation = 0.0707\n"
    (tmp_path / "students" / "TREC_2x192" / "eval_results.txt").write_text(results)
    process = run_script("tests/benchmarks/results.py", "--table", "--output", tmp_path)
    *_, row = process.stdout.splitlines()
    assert row == "| TREC | acc | 2x192 | 2 | 1.0000 | 0.8500 | 0.0707 | 85.0% | 0.5000 | 3.0 |"
    assert row in (tmp_path / "results.md").read_text(encoding="utf-8")
