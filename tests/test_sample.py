"""The bundled sample is what its README says, and build.py makes its reviews again, byte for byte."""

import importlib.util
import random
import re

import pytest
from tiny import ROOT, call_script

from transformer.glue import TaskFile
from transformer.modeling import BertConfig, BertForMaskedLM, check_vocabulary, load_state_dict
from transformer.own_tasks import find_task
from transformer.tokenization import BertTokenizer

SAMPLE = ROOT / "1_pre_data" / "sample"


@pytest.fixture(scope="module")
def build():
    specification = importlib.util.spec_from_file_location("build", SAMPLE / "build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def splits(build):
    return build.compose_splits(build.read_clauses(SAMPLE / "clauses.tsv"), random.Random(build.SEED))


def test_build_makes_the_committed_reviews_again(build, splits, tmp_path):
    build.write_splits({name: splits[name] for name in ("train", "dev", "test")}, tmp_path)
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        assert (tmp_path / name).read_bytes() == (SAMPLE / "SST-2" / name).read_bytes()


def test_no_sentence_occurs_twice_and_no_combination_of_dev_or_test_occurs_elsewhere(build, splits):
    texts = [review.text for reviews in splits.values() for review in reviews]
    assert len(texts) == len(set(texts))
    combinations = {name: {build.combination(review) for review in reviews} for name, reviews in splits.items()}
    for held_out in ("dev", "test"):
        others = set().union(*(found for name, found in combinations.items() if name != held_out))
        assert not combinations[held_out] & others


def test_the_reviews_are_as_many_as_promised_balanced_and_of_many_clauses(build, splits):
    assert len(build.read_clauses(SAMPLE / "clauses.tsv")) >= 250
    for name, least in (("train", 2000), ("dev", 300)):
        labels = [row.label for row in TaskFile(SAMPLE / "SST-2" / f"{name}.tsv", find_task("SST-2"))]
        assert len(labels) >= least and 0.45 < labels.count("1") / len(labels) < 0.55
    assert sum(1 for _ in TaskFile(SAMPLE / "SST-2" / "test.tsv", find_task("SST-2"), labelled=False)) >= 100


def test_words_alone_do_not_solve_the_task_and_the_readme_gives_their_score(build, splits):
    accuracy = build.bag_of_words_score(splits["train"], splits["dev"])
    assert accuracy < 0.82
    told = re.search(r"bag of words \| ([\d.]+)", (SAMPLE / "README.md").read_text(encoding="utf-8"))
    assert float(told[1]) == pytest.approx(accuracy, abs=0.02)  # versions of scikit-learn differ in the third digit


def test_the_teacher_is_small_has_twelve_heads_a_masked_lm_head_and_no_classifier():
    config = BertConfig.from_pretrained(SAMPLE / "teacher")
    assert config.num_attention_heads == BertConfig.from_pretrained(SAMPLE / "student").num_attention_heads == 12
    assert sum(path.stat().st_size for path in (SAMPLE / "teacher").glob("*") if path.is_file()) <= 8_000_000
    state = load_state_dict(SAMPLE / "teacher")
    assert "cls.predictions.bias" in state and "classifier.weight" not in state
    check_vocabulary(config, BertTokenizer.from_pretrained(SAMPLE / "teacher"), SAMPLE / "teacher")
    assert BertForMaskedLM.from_pretrained(SAMPLE / "teacher").num_parameters() < 4_000_000


def test_the_bundled_corpus_is_forty_kilobytes_in_thirty_documents_at_least():
    text = (ROOT / "1_pre_data" / "documents.txt").read_text(encoding="utf-8")
    documents = [document for document in re.split(r"\n\s*\n", text) if document.strip()]
    assert len(text.encode()) >= 40_000 and len(documents) >= 30


def test_a_short_sample_run_needs_no_flag_but_sample(tmp_path):
    process = call_script("pregenerate_training_data.py", "--sample", "--limit", 5, "--output_dir", tmp_path / "2")
    assert process.returncode == 0, process.stderr
    assert {"epoch_0.json", "epoch_0_metrics.json"} <= {path.name for path in (tmp_path / "2").iterdir()}
