"""The reference's way of stage 2, re-stated plainly: token strings in lists, one process, everything in memory.

python tests/benchmarks/slow_pregeneration.py corpus.txt vocab.txt epoch_0.json [max_seq_len]
"""

import json
import random
import sys
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from slow_ways import SlowBertTokenizer  # noqa: E402  (the path above comes first)

from transformer.tokenization import load_vocab  # noqa: E402

SHORT_SEQ_PROB = 0.1


def read_documents(path, tokenizer):
    """All documents, each a list of sentences, each a list of token strings."""
    documents, document = [], []
    with open(path, encoding="utf-8") as file:
        for line in file:
            line = line.strip()
            if line:
                document.append(tokenizer.tokenize(line))
            elif document:
                documents.append(document)
                document = []
    return [*documents, document] if document else documents


def random_other_document(documents, ends, index):
    """Another document, drawn in proportion to its number of sentences."""
    while True:
        other = bisect_right(ends, random.randrange(ends[-1]))
        if other != index:
            return documents[other]


def instances_of(documents, ends, index, max_seq_len):
    """The sequences of one document."""
    document, room = documents[index], max_seq_len - 3
    instances, chunk, length, position = [], [], 0, 0
    target = random.randint(2, room) if random.random() < SHORT_SEQ_PROB else room
    while position < len(document):
        chunk.append(document[position])
        length += len(document[position])
        if position == len(document) - 1 or length >= target:
            instances.append(make_instance(documents, ends, index, chunk, target, room))
            if instances[-1]["is_random_next"]:
                position -= instances[-1].pop("unused")
            chunk, length = [], 0
        position += 1
    return instances


def make_instance(documents, ends, index, chunk, target, room):
    a_end = random.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
    tokens_a, tokens_b = [], []
    for sentence in chunk[:a_end]:
        tokens_a.extend(sentence)
    is_random = len(chunk) == 1 or random.random() < 0.5
    if is_random:
        other = random_other_document(documents, ends, index)
        for sentence in other[random.randrange(len(other)) :]:
            tokens_b.extend(sentence)
            if len(tokens_b) >= target - len(tokens_a):
                break
    else:
        for sentence in chunk[a_end:]:
            tokens_b.extend(sentence)
    while len(tokens_a) + len(tokens_b) > room:  # one token at a time, from either end
        longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
        if random.random() < 0.5:
            del longer[0]
        else:
            longer.pop()
    instance = {
        "tokens": ["[CLS]", *tokens_a, "[SEP]", *tokens_b, "[SEP]"],
        "segment_ids": [0 for _ in range(len(tokens_a) + 2)] + [1 for _ in range(len(tokens_b) + 1)],
        "is_random_next": is_random,
        "masked_lm_positions": [],
        "masked_lm_labels": [],
    }
    return {**instance, "unused": len(chunk) - a_end} if is_random else instance


def main():
    corpus, vocab, output, max_seq_len = [*sys.argv[1:], "128"][:4]
    random.seed(42)
    documents = read_documents(corpus, SlowBertTokenizer(load_vocab(vocab)))
    ends = list(accumulate(map(len, documents)))
    with open(output, "w", encoding="utf-8") as file:
        for index in range(len(documents)):
            for instance in instances_of(documents, ends, index, int(max_seq_len)):
                file.write(json.dumps(instance) + "\n")


if __name__ == "__main__":
    main()
