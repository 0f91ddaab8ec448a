"""--do_export: a finished student in int8, for onnxruntime and as safetensors, each read by its own users' tool."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import STUDENT, VOCABULARY, call_script, make_sst2, make_tokenizer, names

from transformer import export
from transformer.json_file import read_json
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.outputs import fingerprint

TEXTS = ["the film is good", "dull plots and a bad , poor song ."]


def make_model(folder, seed=5):
    torch.manual_seed(seed)
    names = {"id2label": {0: "negative", 1: "positive"}}
    model = TinyBertForSequenceClassification(
        BertConfig(vocab_size=len(VOCABULARY), initializer_range=0.3, **STUDENT, **names)
    )
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder, STUDENT["max_position_embeddings"])


@pytest.fixture
def student(tmp_path, no_pictures):
    """A folder with SST-2/ and 5/, a student with a classifier that was never trained."""
    make_sst2(tmp_path / "SST-2")
    make_model(tmp_path / "5")
    return tmp_path


def run(folder, *flags, student="5"):
    task = ["--data_dir", folder / "SST-2", "--max_seq_length", 31, "--student_model", folder / student]
    return call_script("task_distill.py", *task, *flags)


def logits_of(folder):
    """The logits (2, C) of the float32 student for TEXTS, and the arrays that give them: {name: (2, L)}."""
    tokenizer = make_tokenizer()
    rows = [tokenizer.encode_pair(tokenizer.ids(text))[0] for text in TEXTS]
    ids = torch.zeros(2, max(map(len, rows)), dtype=torch.long)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    inputs = dict(zip(export.INPUTS, (ids, (ids > 0).long(), torch.zeros_like(ids)), strict=True))
    model = TinyBertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return export.LogitsOf(model)(**inputs), inputs


def test_int8_is_a_model_folder_that_the_scripts_evaluate_and_predict_with(student):
    process = run(student, "--do_export", "int8")
    assert process.returncode == 0, process.stderr
    files = {"config.json", "vocab.txt", "tokenizer_config.json", "pytorch_model.bin", "model.pt", "run.json"}
    assert names(student / "5" / "int8") == files
    assert read_json(student / "5" / "int8" / "config.json")["quantized"] == "int8"
    again = run(student, "--do_export", "int8")
    assert again.returncode == 0 and "finished before" in again.stdout
    found = run(student, "--do_eval", "--do_predict", "--output_dir", student / "out", student="5/int8")
    assert found.returncode == 0, found.stderr
    assert {"eval_results.txt", "SST-2.tsv", "report.md", "report.json"} <= names(student / "out")
    for flags in (["--pred_distill", "--teacher_model", student / "5"], ["--do_export", "int8"]):
        process = run(student, *flags, "--output_dir", student / "no", student="5/int8")
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert "int8: is int8, for evaluation and predictions only; give the model that" in process.stderr
        assert not list((student / "no").glob("*/*"))


@pytest.mark.slow
def test_pytorch_alone_runs_model_pt(student, tmp_path):
    assert run(student, "--do_export", "int8").returncode == 0
    _, inputs = logits_of(student / "5")
    torch.save(inputs, tmp_path / "inputs.pt")
    program = (
        "import sys, torch; inputs = torch.load(sys.argv[2]); logits = torch.jit.load(sys.argv[1])(**inputs);"
        "assert 'transformer' not in sys.modules; torch.save(logits, sys.argv[3])"
    )
    files = [student / "5" / "int8" / "model.pt", tmp_path / "inputs.pt", tmp_path / "logits.pt"]
    command = [sys.executable, "-I", "-c", program, *map(str, files)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=100)
    expected, _ = logits_of(student / "5" / "int8")
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_safetensors_run_in_hugging_face_s_pipeline(student):
    import transformers

    assert run(student, "--do_export", "safetensors").returncode == 0
    folder = student / "5" / "safetensors"
    assert not list(folder.glob("*.bin"))
    classify = transformers.pipeline("text-classification", str(folder))
    found, (expected, _) = classify(TEXTS, top_k=None), logits_of(student / "5")
    for row, logits in zip(found, expected.softmax(1), strict=True):
        scores = {each["label"]: each["score"] for each in row}
        assert [scores["negative"], scores["positive"]] == pytest.approx(logits.tolist(), abs=1e-5)


@pytest.mark.slow
def test_onnxruntime_gives_the_logits_for_ragged_batches(student):
    onnxruntime = pytest.importorskip("onnxruntime")
    from transformers import AutoTokenizer

    process = run(student, "--do_export", "onnx", "int8")
    assert process.returncode == 0, process.stderr
    folder = student / "5" / "onnx"
    files = {"model.onnx", "model_int8.onnx", "config.json", "vocab.txt", "tokenizer_config.json", "run.json"}
    assert names(folder) == files
    expected, _ = logits_of(student / "5")
    for name, tolerance in (("model.onnx", 1e-4), ("model_int8.onnx", 0.1)):
        data = (folder / name).read_bytes()
        assert str(Path(export.__file__).parent).encode() not in data  # whose machine it was is nobody's business
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_inputs()] == list(export.INPUTS)
        theirs = AutoTokenizer.from_pretrained(folder)
        for texts in (TEXTS, TEXTS[:1], TEXTS[1:] * 5):
            batch = dict(theirs(texts, padding=True, return_tensors="np"))
            [logits] = session.run(["logits"], {key: array.astype(np.int64) for key, array in batch.items()})
            whole = [expected[TEXTS.index(text)].tolist() for text in texts]
            np.testing.assert_allclose(logits, whole, rtol=0, atol=tolerance)

    process = run(student, "--do_eval", "--output_dir", student / "out", "--baseline")
    assert process.returncode == 0, process.stderr
    text = (student / "out" / "report.md").read_text()
    assert "| | student | baseline | TF-IDF | int8 | int8 model.pt | onnx | onnx int8 |" in text
    assert "its smallest export is " in text.split("\n\n")[1]
    table = {row.pop("title"): row for row in json.loads((student / "out" / "report.json").read_text())["table"]}
    assert table["size on disk, MB"]["onnx"] == (folder / "model.onnx").stat().st_size / 1e6
    assert table["same answer as the student"]["onnx"] == 1.0
    assert "TF-IDF" in table["latency p50, batch of 1, own lengths, ms"]
    assert "TF-IDF" not in table["latency p50, batch of 1, ms"] and "onnx" in table["latency p50, batch of 1, ms"]


def test_an_export_of_other_weights_is_refused_and_left_out_of_the_report(student):
    assert run(student, "--do_export", "int8").returncode == 0
    make_model(student / "5", seed=6)
    process = run(student, "--do_export", "int8")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert "int8: made with other inputs or flags: student_model has changed; --overwrite_output" in process.stderr
    process = run(student, "--do_eval", "--output_dir", student / "out")
    assert process.returncode == 0, process.stderr
    told = process.stdout + process.stderr
    assert "int8: made from other weights than the student has now, so it is not in the report; made again by: " in told
    assert "--do_export int8 --overwrite_output" in told
    assert "int8" not in (student / "out" / "report.md").read_text()
    assert run(student, "--do_export", "int8", "--overwrite_output").returncode == 0
    assert read_json(student / "5" / "int8" / "run.json")["inputs"]["student_model"] == fingerprint(student / "5")


@pytest.mark.slow
@pytest.mark.parametrize("form, name", [("int8", "model.pt"), ("onnx", "model.onnx")])
def test_a_damaged_export_is_told_with_the_command_that_makes_it_again(student, form, name):
    assert run(student, "--do_export", form).returncode == 0
    path = student / "5" / form / name
    whole = path.read_bytes()
    for data in (b"", b"PK", whole[:300], whole[:-99], bytes(len(whole)), None):
        path.unlink() if data is None else path.write_bytes(data)
        process = run(student, "--do_eval", "--output_dir", student / "out")
        assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
        assert f"{name}: missing, damaged or another model (" in process.stderr
        assert "made again by: python " in process.stderr and f"--do_export {form} --overwrite_output" in process.stderr


def test_a_folder_without_a_classifier_is_refused_in_one_line(student):
    from transformer.modeling import TinyBertForPreTraining

    TinyBertForPreTraining(BertConfig(vocab_size=len(VOCABULARY), **STUDENT)).save_pretrained(student / "5")
    process = run(student, "--do_export", "int8")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert "5: has no classifier; give a model that was trained on the task" in process.stderr
    assert not (student / "5" / "int8").exists()


def test_a_missing_package_is_named_with_the_command_that_brings_it(student, monkeypatch):
    monkeypatch.setitem(export.FORMS, "onnx", ("model_int8.onnx", ("onnx_that_is_not_there",)))
    process = run(student, "--do_export", "int8", "onnx")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    told = "--do_export onnx: needs onnx_that_is_not_there: pip install onnx_that_is_not_there"
    assert told in process.stderr and not (student / "5" / "int8").exists()


def test_a_form_that_there_is_not_is_refused(student):
    process = run(student, "--do_export", "int4")
    assert process.returncode == 2 and "choose from" in process.stderr
