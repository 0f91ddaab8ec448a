"""Hugging Face's library reads what the stages leave, and computes the same."""

import logging

import pytest
import torch
from tiny import TEACHER, call_script, scripts

from transformer.checkpoint import load_state_dict
from transformer.json_file import read_json
from transformer.modeling import TinyBertForSequenceClassification
from transformer.tokenization import BertTokenizer


@pytest.mark.parametrize("output", ["4", "5", "teacher/SST-2"])
def test_hugging_face_reads_a_stage_s_output_and_agrees(pipeline, output):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = pipeline.folder / output
    texts = ["The film is GOOD and warmth .", 'unfortunate plots "dull" , not very']
    theirs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    tokenizer = BertTokenizer.from_pretrained(folder)
    ours = [tokenizer.encode_pair(tokenizer.ids(text))[0] for text in texts]
    real = theirs["attention_mask"].sum(1).tolist()
    assert [row[:count] for row, count in zip(theirs["input_ids"].tolist(), real, strict=True)] == ours
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**theirs).logits
        model = TinyBertForSequenceClassification.from_pretrained(folder).eval()
        logits, _ = model(theirs["input_ids"], theirs["token_type_ids"], theirs["attention_mask"])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_hugging_face_reads_the_general_student(pipeline):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(pipeline.folder / "3").eval()
    state = torch.load(pipeline.folder / "3" / "pytorch_model.bin", weights_only=True)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[f"bert.{key}"])


@pytest.mark.parametrize("output", ["3", "4", "5", "teacher/SST-2"])
def test_the_longest_text_of_a_folder_s_tokenizer_is_what_its_model_has_positions_for(pipeline, output):
    folder = pipeline.folder / output
    assert read_json(folder / "tokenizer_config.json")["model_max_length"] == TEACHER["max_position_embeddings"]


@pytest.mark.parametrize("output", ["5", "teacher/SST-2"])
def test_a_finished_classifier_runs_in_hugging_face_on_long_text_without_a_warning(pipeline, output, caplog):
    import transformers

    folder, theirs = pipeline.folder / output, logging.getLogger("transformers")
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    theirs.addHandler(caplog.handler)
    try:
        classify = transformers.pipeline("text-classification", str(folder), truncation=True)
        [found] = classify("the film is good and " * 100)
    finally:
        theirs.removeHandler(caplog.handler)
        transformers.logging.set_verbosity(level)
    assert found["label"] in {"negative", "positive"}
    assert not caplog.messages
    assert not [key for key in load_state_dict(folder) if key.startswith("fit_dense")]
    assert read_json(folder / "config.json").get("fit_size") is None


def test_a_finished_student_is_taught_on_with_a_new_projection(copy):
    script, flags = scripts(copy)["intermediate"]
    flags += ["--student_model", copy / "5", "--output_dir", copy / "again", "--max_steps", 1]
    found = call_script(script, *flags)
    assert found.returncode == 0 and "has had its prediction step" in found.stdout + found.stderr
    finished, again = load_state_dict(copy / "5"), load_state_dict(copy / "again")
    assert set(again) - set(finished) == {"fit_dense.weight", "fit_dense.bias"}
    assert set(again) == set(load_state_dict(copy / "4"))
