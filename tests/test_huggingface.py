"""Hugging Face's library reads what the stages leave, and computes the same."""

import pytest
import torch

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
