"""A benchmark runs, on tiny models: what it calls changes, and nobody runs it often."""

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
    works = "general", "prediction, first epoch"
    process = run_script(
        "tests/benchmarks/distillation.py", *inputs, "--epoch", tmp_path / "epoch", *sizes, "--works", *works
    )
    for work in works:
        for way in ("ours", "ours, int8 teacher", "reference"):
            row = re.search(rf"^\| {work} \| {way} \| ([\d.]+) \| [\d.]+ \| \d+% \| ([\d.]+) \|$", process.stdout, re.M)
            assert row and float(row[1]) > 0 and float(row[2]) > 0
