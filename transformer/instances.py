"""Training sequences from documents: how they are cut and paired, masked, and written.

What comes out of a document depends on seed, epoch and document alone, whichever process makes it.
"""

import json
import random
from array import array
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from transformer.data import id_typecode
from transformer.epochs import packed_dtypes


@dataclass(frozen=True)
class InstanceSettings:
    """What a sequence is like: the flags of `pregenerate_training_data.py`, by their names.

    max_seq_len: tokens, special ones included; one_seq: [CLS] A [SEP] only; masked_lm_prob: 0 masks nothing, all else
    at least one token of a sequence; packed: arrays, not JSON.
    """

    max_seq_len: int
    short_seq_prob: float
    one_seq: bool
    masked_lm_prob: float
    max_predictions_per_seq: int
    do_whole_word_mask: bool
    seed: int
    packed: bool


class InstanceMaker:
    """Cuts the documents of a `Corpus` into training sequences; `dtypes` is what `EpochFiles` takes.

    `reduce_memory`: give the corpus's pages back after each chunk.
    """

    def __init__(self, corpus, tokenizer, settings, reduce_memory=False):
        self.corpus, self.tokenizer, self.settings, self.reduce_memory = corpus, tokenizer, settings, reduce_memory
        self.room = settings.max_seq_len - (2 if settings.one_seq else 3)
        self.continues = [token.startswith("##") for token in tokenizer.ids_to_tokens]
        self.json_tokens = [json.dumps(token, ensure_ascii=False) for token in tokenizer.ids_to_tokens]
        special = {getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")}
        self.ordinary_ids = [index for index in range(len(tokenizer.vocab)) if index not in special]
        self.typecode = id_typecode(len(tokenizer.vocab))
        masked = settings.masked_lm_prob > 0
        self.dtypes = packed_dtypes(self.typecode, masked) if settings.packed else {".json": None}

    def make_chunk(self, chunk):
        """The sequences of documents start..stop of an epoch: (how many, the bytes that each file gets)."""
        epoch, start, stop = chunk
        instances = []
        for index in range(start, stop):
            rng = random.Random(f"{self.settings.seed} {epoch} {index}")
            for segment_a, segment_b, is_random in self.instances(index, rng):
                ids, first_length = self.join(segment_a, segment_b)
                instances.append((ids, first_length, is_random, *self.mask(ids, rng)))
        if self.reduce_memory:
            self.corpus.release()
        return len(instances), self.packed(instances) if self.settings.packed else [self.json_lines(instances)]

    def instances(self, index, rng):
        """Yield (ids of A, ids of B or None, B is random) for one document, lists."""
        document, bounds = self.corpus.document(index)

        def ids(first, last):  # of some sentences
            return document[bounds[first] : bounds[last]].tolist()

        start, end = 0, len(bounds) - 1  # in sentences
        while start < end:
            target = rng.randint(2, self.room) if rng.random() < self.settings.short_seq_prob else self.room
            # Take sentences until the target length is reached or the document ends.
            stop = min(bisect_left(bounds, bounds[start] + target, start + 1), end)
            if self.settings.one_seq:
                yield truncate_pair(ids(start, stop), [], self.room, rng)[0], None, False
                start = stop
                continue
            middle = rng.randint(start + 1, stop - 1) if stop - start > 1 else stop
            segment_a = ids(start, middle)
            is_random = stop - start == 1 or rng.random() < 0.5
            if is_random:
                segment_b = self.corpus.random_sentences(index, target - len(segment_a), rng)
                start = middle  # the sentences that B would have been come next
            else:
                segment_b = ids(middle, stop)
                start = stop
            yield *truncate_pair(segment_a, segment_b, self.room, rng), is_random

    def join(self, segment_a, segment_b):
        """[CLS] A [SEP] or [CLS] A [SEP] B [SEP], and the length of the first segment."""
        ids = [self.tokenizer.cls_token_id, *segment_a, self.tokenizer.sep_token_id]
        return ids if segment_b is None else [*ids, *segment_b, self.tokenizer.sep_token_id], len(ids)

    def json_lines(self, instances):
        """The sequences as the reference writes them, UTF-8."""
        names, lines = self.json_tokens, []
        zeros, ones = "0, " * self.settings.max_seq_len, "1, " * self.settings.max_seq_len
        for ids, first_length, is_random, positions, labels in instances:
            token_types = zeros[: 3 * first_length] + ones[: 3 * (len(ids) - first_length)]
            lines.append(
                f'{{"tokens": [{", ".join([names[token] for token in ids])}], "segment_ids": [{token_types[:-2]}], '
                f'"is_random_next": {"true" if is_random else "false"}, "masked_lm_positions": {positions}, '
                f'"masked_lm_labels": [{", ".join([names[token] for token in labels])}]}}\n'
            )
        return "".join(lines).encode()

    def packed(self, instances):
        """The bytes of the sequences in each of the packed files."""
        ids, rows, masked = array(self.typecode), [], []
        for whole, first, is_random, positions, labels in instances:
            ids.extend(whole[1 : first - 1])
            ids.extend(whole[first:-1])
            rows.append((len(whole), first, is_random, len(positions))[: len(self.dtypes["_sequences.npy"])])
            masked.extend(zip(positions, labels, strict=True))
        # Without masking there is no third file.
        parts = zip((ids, rows, masked), self.dtypes.values(), strict=False)
        return [np.array(values, dtype).tobytes() for values, dtype in parts]

    def mask(self, ids, rng):
        """Mask `ids` in place: 80% [MASK], 10% another word, 10% as it was. Returns (positions, original ids)."""
        # The reference masks at least one token even when the probability is 0; here 0 masks nothing.
        if self.settings.masked_lm_prob == 0:
            return [], []
        words = []
        for position, token in enumerate(ids):
            if token in (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id):
                continue
            if self.settings.do_whole_word_mask and words and self.continues[token] and words[-1][-1] == position - 1:
                words[-1].append(position)
            else:
                words.append([position])
        wanted = min(self.settings.max_predictions_per_seq, max(1, round(len(ids) * self.settings.masked_lm_prob)))
        rng.shuffle(words)
        masked = {}
        for word in words:
            for position in word if len(masked) + len(word) <= wanted else ():
                masked[position] = ids[position]
                draw = rng.random()
                if draw < 0.8:
                    ids[position] = self.tokenizer.mask_token_id
                elif draw < 0.9:
                    ids[position] = rng.choice(self.ordinary_ids)
        positions = sorted(masked)
        return positions, [masked[position] for position in positions]


def truncate_pair(segment_a, segment_b, room, rng):
    """Cut the longer of two segments, one token at a time from a random end, until both fit into `room`."""
    excess = len(segment_a) + len(segment_b) - room
    if excess <= 0:
        return segment_a, segment_b
    # Tokens go from the longer one until both are equally long, from then on by turns, from B first.
    difference = len(segment_a) - len(segment_b)
    alone = min(abs(difference), excess)
    cuts = [(excess - alone) // 2, (excess - alone + 1) // 2]
    cuts[difference <= 0] += alone
    fronts = [rng.getrandbits(cut).bit_count() for cut in cuts]  # heads of so many coins
    segments = zip((segment_a, segment_b), cuts, fronts, strict=True)
    return tuple(segment[front : len(segment) - (cut - front)] for segment, cut, front in segments)
