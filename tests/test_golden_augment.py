"""The reference implementation's substitution candidates, word for word, on a tiny masked LM and tiny GloVe vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_augmentation import load_masked_lm
from transformer.processes import Processes
from transformer.proposals import CandidateProposer
from transformer.tokenization import BertTokenizer
from transformer.vectors import WordVectors, is_special

FOLDER = Path(__file__).parent / "data" / "golden_augment"
CASES = json.loads((FOLDER / "candidates.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def proposer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked_lm")
    weights = np.load(FOLDER / "weights.npz")
    torch.save({name: torch.from_numpy(weights[name]) for name in weights.files}, folder / "pytorch_model.bin")
    for name in ("config.json", "vocab.txt"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    processes = Processes(torch.device("cpu"))
    model, tokenizer = load_masked_lm(folder, processes.device)
    assert isinstance(tokenizer, BertTokenizer)
    return CandidateProposer(model, tokenizer, WordVectors(FOLDER / "glove.txt"), CASES["M"], processes)


def expected_candidates(case):
    """The reference's lists less what this suite never offers: special tokens and the word itself."""
    kept = {}
    for index, candidates in case["candidates"].items():
        word = case["words"][int(index)]
        candidates = [token for token in candidates if not is_special(token) and token != word]
        if candidates:
            kept[int(index)] = candidates
    return kept


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["sentence"][:20])
def test_candidates_are_the_reference_ones_in_its_order(proposer, case):
    words, candidates = proposer.candidates({case["sentence"]})[case["sentence"]]
    assert words == case["words"]
    assert candidates == expected_candidates(case)


def test_candidates_do_not_depend_on_the_other_sentences_of_a_batch(proposer):
    sentences = {case["sentence"] for case in CASES["cases"]}
    together = proposer.candidates(sentences)
    for sentence in sentences:
        assert proposer.candidates({sentence})[sentence] == together[sentence]
