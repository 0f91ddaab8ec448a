"""The sample's LESSON.md: what needs no training is what the code makes now, and --check sees what differs."""

import importlib.util
import pkgutil
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import ROOT, call_script

import data_augmentation
from transformer.files import UserError
from transformer.processes import Processes
from transformer.proposals import CandidateProposer
from transformer.tasks.task import TaskFile
from transformer.vectors import WordVectors

SAMPLE = ROOT / "1_pre_data" / "sample"
TEXT = (SAMPLE / "LESSON.md").read_text(encoding="utf-8")
HERE = Processes(torch.device("cpu"))


@pytest.fixture(scope="module")
def lesson():
    specification = importlib.util.spec_from_file_location("lesson", SAMPLE / "lesson.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def part(text, number):
    """The lines up to section 1's end, or those of section 2."""
    sections = text.split("\n## ")
    return "".join(sections[:2] if number == 1 else sections[2:3])


def test_the_candidates_and_variants_shown_are_those_that_the_code_makes(lesson):
    settings, task = data_augmentation.read_settings(["--sample"])
    file = TaskFile(SAMPLE / "SST-2" / task.train_file, task)
    row, _ = lesson.find_sentence(file)
    model, tokenizer = data_augmentation.load_masked_lm(settings.pretrained_bert_model, HERE.device)
    proposer = CandidateProposer(model, tokenizer, WordVectors(settings.glove_embs), settings.M, HERE)
    options = settings.N, settings.p, settings.seed
    lines = data_augmentation.augment_rows(file, proposer, *options, [row], row.line - 2)  # rows count from 0
    variants = [SimpleNamespace(texts=(text,), label=label) for text, label in (line.split("\t") for line in lines[1:])]
    facts = lesson.augmentation_facts(settings, row, variants, HERE)
    assert part(TEXT, 1) == part(lesson.TEMPLATE.read_text(encoding="utf-8"), 1).format(**facts)


def test_the_sequence_tokens_ids_and_mask_shown_are_those_that_the_code_makes(lesson, tmp_path):
    assert call_script("pregenerate_training_data.py", "--sample", "--output_dir", tmp_path).returncode == 0
    settings = lesson.pregenerate_training_data.read_settings(["--sample", "--output_dir", str(tmp_path)])
    facts = lesson.pregeneration_facts(settings)
    assert part(TEXT, 2) == part(lesson.TEMPLATE.read_text(encoding="utf-8"), 2).format(**facts)


def test_every_function_that_the_lesson_names_exists():
    names = set(re.findall(r"`([a-z_]+\.[\w.]+)`", TEXT)) - {
        "documents.txt",
        "train_aug.tsv",
        "vectors.txt",
        "epoch_0.json",
    }
    for name in names:
        script = (ROOT / f"{name.split('.')[0]}.py").is_file()
        assert callable(pkgutil.resolve_name(name if script else f"transformer.{name}"))
    assert len(names) >= 12


def test_the_comparison_passes_the_noise_of_training_and_nothing_else(lesson):
    assert lesson.difference(TEXT, TEXT) is None
    row = "| 1 ← 2 | 2.477 | 0.441 |"
    for noisy in (
        "| 1 ← 2 | 2.6 | 0.441 |",
        "| 1 ← 2 | 2.477 | 0.95 |",
        "| 1 ← 3 | 2.477 | 0.441 |",
        f"{row} 0.10 |",
        "",
    ):
        assert lesson.difference(f"one\n{row}\nend", f"one\n{noisy}\nend") == (2, row, noisy)
    assert lesson.difference(f"one\n{row}", "one\n| 1 ← 2 | 2.201 | 0.502 |") is None
    assert lesson.difference("z = (-0.03, 0.02)", "z = (0.04, -0.05)") is None
    assert lesson.difference("p = 0.4", "p = 0.5") == (1, "p = 0.4", "p = 0.5")  # a setting, no trained number
    changed = TEXT.replace("| gentle | ", "| gentle | kind, ", 1)
    assert "kind, " in lesson.difference(TEXT, changed)[2] and lesson.difference(TEXT, TEXT + "more") is not None


def test_check_tells_the_first_line_that_differs_and_writes_nothing(lesson, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lesson, "facts", lambda: {"name": "now"})
    for name, text in (("TEMPLATE", "# {name}\n"), ("LESSON", "# then\n")):
        monkeypatch.setattr(lesson, name, tmp_path / name)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["lesson.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        lesson.main()
    assert ended.value.code == 1 and (tmp_path / "LESSON").read_text() == "# then\n"
    assert re.search(r"line 1:\n +there: # then\n +now: +# now\n", capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", ["lesson.py"])
    lesson.main()
    assert (tmp_path / "LESSON").read_text() == "# now\n"


def test_a_sentence_that_the_task_does_not_have_is_told(lesson, tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nan odd film .\t0\n")
    with pytest.raises(UserError, match="no row 'the comedy is gentle and wise .'"):
        lesson.find_sentence(TaskFile(tmp_path / "train.tsv", data_augmentation.read_settings(["--sample"])[1]))
