"""The reference's way to substitutes for words, re-stated plainly: one masked sentence at a time through the whole
model, scores at all positions, the whole vocabulary sorted; word vectors line by line, neighbours word by word.

Called by augmentation.py.
"""

import numpy as np
import torch

from transformer.proposals import replaceable
from transformer.vectors import is_special


def slow_candidates(model, tokenizer, texts, count):
    """{text: {word index: what the masked LM proposes}} for words of one piece."""
    return {text: dict(slow_proposals(model, tokenizer, text, count)) for text in texts}


def slow_proposals(model, tokenizer, text, count):
    """Yield (word index, candidates) of one text."""
    words, device = tokenizer.words_and_ids(text), model.bert.embeddings.word_embeddings.weight.device
    pieces = [piece for _, ids in words for piece in ids]
    position = 0
    for index, (word, ids) in enumerate(words):
        if len(ids) == 1 and replaceable(word):
            masked = list(pieces)
            masked[position] = tokenizer.mask_token_id
            input_ids, token_type_ids = tokenizer.encode_pair(masked, pieces, model.config.max_position_embeddings)
            with torch.no_grad():
                inputs = torch.tensor([[input_ids], [token_type_ids], [[1] * len(input_ids)]], device=device)
                hidden = model.bert(*inputs).hidden_states[-1]  # with the scores of every layer's attention
                scores = model.cls.predictions(hidden)[0, position + 1]
            best = torch.argsort(scores, descending=True)[:count].tolist()
            found = tokenizer.convert_ids_to_tokens(best)
            found = [token for token in found if token != word and not token.startswith("##") and not is_special(token)]
            if found:
                yield index, found
        position += len(ids)


def slow_vectors(path):
    """(words, normalised vectors) of a text of word vectors."""
    words, vectors = [], []
    with open(path, encoding="utf-8") as file:
        for line in file:
            word, *numbers = line.split()
            words.append(word)
            vectors.append(np.array([float(number) for number in numbers], dtype=np.float32))
    vectors = np.stack(vectors)
    return words, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def slow_neighbours(words, vectors, row, count):
    """The `count` words nearest to that of a row, nearest first."""
    order = np.argsort(-(vectors @ vectors[row]))
    return [words[other] for other in order[: count + 1] if other != row][:count]
