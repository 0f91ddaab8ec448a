"""Training sequences from documents: how they are cut and paired, masked, and written.

The sequences of a document depend on seed, epoch and document alone, whichever process makes them.
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
    """Flags of `pregenerate_training_data.py`, under their names."""

    max_seq_len: int  # in tokens, with [CLS] and [SEP]
    short_seq_prob: float
    one_seq: bool  # B always follows A
    masked_lm_prob: float  # 0 masks nothing; any other value masks at least one token
    max_predictions_per_seq: int
    do_whole_word_mask: bool
    seed: int
    packed: bool  # arrays, not JSON


class InstanceMaker:
    """Cuts the documents of a `Corpus` into training sequences, for `EpochFiles` with `dtypes`. `reduce_memory`: free
    the corpus's pages after each chunk."""

    def __init__(self, corpus, tokenizer, settings, reduce_memory=False):
        self.corpus, self.tokenizer, self.settings, self.reduce_memory = corpus, tokenizer, settings, reduce_memory
        self.room = settings.max_seq_len - 3  # without [CLS] and two [SEP]
        self.continues = [token.startswith("##") for token in tokenizer.ids_to_tokens]
        self.json_tokens = [json.dumps(token, ensure_ascii=False) for token in tokenizer.ids_to_tokens]
        special = {getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")}
        self.ordinary_ids = [index for index in range(len(tokenizer.vocab)) if index not in special]
        # B of a lone sentence with --one_seq, as in the reference.
        self.filler = tokenizer.vocab.get(".", tokenizer.unk_token_id)
        self.typecode = id_typecode(len(tokenizer.vocab))
        masked = settings.masked_lm_prob > 0
        self.dtypes = packed_dtypes(self.typecode, masked) if settings.packed else {".json": None}

    def make_chunk(self, chunk):
        """The sequences of a chunk, (epoch, first document, end): (their number, the bytes for each file)."""
        epoch, start, stop = chunk
        cls_id, sep_id, instances = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, []
        for index in range(start, stop):
            rng = random.Random(f"{self.settings.seed} {epoch} {index}")
            for segment_a, segment_b, is_random in self.instances(index, rng):
                ids = [cls_id, *segment_a, sep_id, *segment_b, sep_id]
                instances.append((ids, len(segment_a) + 2, is_random, *self.mask(ids, rng)))
        if self.reduce_memory:
            self.corpus.release()
        return len(instances), self.packed(instances) if self.settings.packed else [self.json_lines(instances)]

    def instances(self, index, rng):
        """Yield (list of the ids of A, of B, whether B is random) for one document."""
        document, bounds = self.corpus.document(index)

        def ids(first, last):  # of the sentences first..last
            return document[bounds[first] : bounds[last]].tolist()

        start, end = 0, len(bounds) - 1  # in sentences
        target = rng.randint(2, self.room) if rng.random() < self.settings.short_seq_prob else self.room
        while start < end:
            # Take sentences until the target length is reached or the document ends.
            stop = min(bisect_left(bounds, bounds[start] + target, start + 1), end)
            middle = rng.randint(start + 1, stop - 1) if stop - start > 1 else stop
            segment_a = ids(start, middle)
            is_random = not self.settings.one_seq and (stop - start == 1 or rng.random() < 0.5)
            if is_random:
                segment_b = self.corpus.random_sentences(index, target - len(segment_a), rng)
                start = middle  # the sentences that B replaces are used next
            else:
                segment_b = ids(middle, stop) or [self.filler]
                start = stop
            yield *truncate_pair(segment_a, segment_b, self.room, rng), is_random

    def json_lines(self, instances):
        """The sequences in the reference's format, UTF-8."""
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
        """The bytes of the sequences for each packed file."""
        ids, rows, masked = array(self.typecode), [], []
        for whole, first, is_random, positions, labels in instances:
            ids.extend(whole[1 : first - 1])
            ids.extend(whole[first:-1])
            rows.append((len(whole), first, is_random, len(positions))[: len(self.dtypes["_sequences.npy"])])
            masked.extend(zip(positions, labels, strict=True))
        parts = zip((ids, rows, masked), self.dtypes.values(), strict=False)  # no third file without masking
        return [np.array(values, dtype).tobytes() for values, dtype in parts]

    def mask(self, ids, rng):
        """Mask `ids` in place: 80% [MASK], 10% a random token, 10% unchanged. Returns (positions, original ids)."""
        if self.settings.masked_lm_prob == 0:  # the reference masks at least one token even then
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
    """Cut the longer of two segments, one token at a time from a random end, until both fit into `room` tokens."""
    excess = len(segment_a) + len(segment_b) - room
    if excess <= 0:
        return segment_a, segment_b
    # The longer one loses tokens until both are equally long; then they take turns, B first.
    difference = len(segment_a) - len(segment_b)
    alone = min(abs(difference), excess)
    cut_b = (excess - alone + 1) // 2
    cut_a = excess - alone - cut_b
    if difference > 0:
        cut_a += alone
    else:
        cut_b += alone
    front_a, front_b = rng.getrandbits(cut_a).bit_count(), rng.getrandbits(cut_b).bit_count()  # heads of coin tosses
    end_a, end_b = len(segment_a) - (cut_a - front_a), len(segment_b) - (cut_b - front_b)
    return segment_a[front_a:end_a], segment_b[front_b:end_b]
