"""Stage 2: turn a corpus into training sequences for general distillation.

Reads:   --train_corpus, UTF-8 text: one sentence a line, an empty line between documents; the tokenizer of --bert_model
Writes:  <output_dir>/epoch_N.json, one JSON object a line: tokens, segment_ids, is_random_next, masked_lm_positions,
         masked_lm_labels; then <output_dir>/epoch_N_metrics.json, which says that the epoch is complete

A sequence is two runs of sentences, [CLS] A [SEP] B [SEP]: B follows A or comes from a random document, half and half
(--one_seq: one run only). TinyBERT's general distillation needs no masking, so --masked_lm_prob is 0 by default.

    python pregenerate_training_data.py --train_corpus 1_pre_data/documents.txt --output_dir 2_pregenerate_data \\
        --bert_model teacher_model --do_whole_word_mask
    python pregenerate_training_data.py --sample

第二步：把语料切成训练序列，写出 epoch_N.json。
"""

import json
import logging
import multiprocessing
import random
import signal
from array import array
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import accumulate, islice

import numpy as np
from tqdm import tqdm

from transformer import stages
from transformer.data import IdStore
from transformer.file_utils import UserError, atomic_write, model_folder, upload, write_json
from transformer.glue import read_lines
from transformer.stages import flag
from transformer.tokenization import BertTokenizer

# For debugging in an editor: a flag's value put here replaces its default, e.g. {"sample": True, "limit": 20}.
HEADER = {}

CHUNK_DOCUMENTS = 64  # documents a worker takes at a time
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def parse_args(argv=None):
    parser = stages.make_parser(__doc__)
    group = parser.add_argument_group("input and output")
    flag(group, "--train_corpus", help="text file: a sentence a line, documents apart by an empty line")
    flag(group, "--output_dir", help="folder of the epoch files (2_pregenerate_data)")
    flag(
        group,
        "--bert_model",
        help="folder or name of the model whose tokenizer is used; no weights needed (teacher_model)",
    )
    flag(group, "--do_lower_case", action="store_true", help="force lower case; without it the model decides")
    group = parser.add_argument_group("sequences")
    flag(group, "--epochs_to_generate", type=int, help="epoch files, each cut and paired anew (3)")
    flag(group, "--max_seq_len", type=int, help="tokens of a sequence, special ones included; general_distill.py's "
         "--max_seq_length must be at least this (128)")  # fmt: skip
    flag(group, "--short_seq_prob", type=float, help="fraction of sequences made shorter on purpose (0.1)")
    flag(group, "--one_seq", action="store_true", help="one run of sentences a sequence, no pairs")
    group = parser.add_argument_group("masking")
    flag(group, "--masked_lm_prob", type=float, help="fraction of tokens to mask, 0 = none (0)")
    flag(group, "--max_predictions_per_seq", type=int, help="masked tokens a sequence, at most (20)")
    flag(group, "--do_whole_word_mask", action="store_true", help="mask all pieces of a word or none")
    group = parser.add_argument_group("resources")
    flag(group, "--num_workers", type=int, help="processes; the output does not depend on their number (1)")
    flag(group, "--reduce_memory", action="store_true", help="keep the corpus's ids in a file, not in memory")
    flag(group, "--cache_dir", help="where downloaded models are kept")
    stages.add_common_flags(parser, "limit")
    args = parser.parse_args(argv)
    sample = stages.SAMPLE_PREGENERATION if args.sample or HEADER.get("sample") else {}
    args.origins = stages.settle(args, ("script header", HEADER), ("sample", sample), ("default", stages.PREGENERATION))
    stages.check_positive(args, "epochs_to_generate", "num_workers", "limit", "max_predictions_per_seq")
    if args.max_seq_len < 8:
        raise UserError(f"--max_seq_len {args.max_seq_len}: expected at least 8")
    for name in ("short_seq_prob", "masked_lm_prob"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected 0 to 1")
    return args


def main():
    args = parse_args()
    stages.set_up_logging()
    logging.info("pregeneration: %s", args.train_corpus)
    stages.print_settings(args)
    folder = stages.make_output_folder(args.output_dir)
    bert = model_folder(args.bert_model, args.cache_dir, need_weights=False)
    tokenizer = BertTokenizer.from_pretrained(bert, args.do_lower_case)
    outputs = [path for path in sorted(folder.glob("epoch_*.json*"))]

    last = folder / f"epoch_{args.epochs_to_generate - 1}_metrics.json"
    inputs = {"train_corpus": args.train_corpus, "bert_model": bert / "vocab.txt",
              "casing": bert / "tokenizer_config.json"}  # fmt: skip
    record = stages.OutputRecord(folder / "run.json", last, "pregenerate_training_data", args, inputs)
    if record.claim(outputs, args.overwrite_output) != "finished":
        generate_epochs(folder, tokenizer, record, args)
        record.finish()
    else:
        logging.info("finished before: %s", folder)
    upload([folder], args.data_url)
    stages.hint_next("general_distill.py", args)


def generate_epochs(folder, tokenizer, record, args):
    """Write the epochs that are not there yet."""
    corpus = Corpus.read(args.train_corpus, tokenizer, folder if args.reduce_memory else None, args.limit)
    if len(corpus) < 2 and not args.one_seq:
        raise UserError(
            f"{args.train_corpus}: one document only, and a pair needs two; put empty lines between documents"
        )
    logging.info("%d documents, %d sentences, %d tokens", len(corpus), corpus.num_sentences, corpus.num_tokens)
    maker = InstanceMaker(corpus, tokenizer, args)
    record.begin()
    for epoch in range(args.epochs_to_generate):
        metrics_path = folder / f"epoch_{epoch}_metrics.json"
        if metrics_path.is_file():
            continue  # complete: a killed run comes by here again
        with atomic_write(folder / f"epoch_{epoch}.json", "wb") as file:
            count = write_epoch(file, epoch, maker, args.num_workers)
        if not count:
            raise UserError(f"{args.train_corpus}: gave no sequence; it needs documents of at least one sentence")
        write_json(metrics_path, {"num_training_examples": count, "max_seq_len": args.max_seq_len})
        logging.info("epoch %d: %d sequences", epoch, count)


def write_epoch(file, epoch, maker, num_workers):
    """Write one epoch's sequences to an open file; returns how many."""
    starts = range(0, len(maker.corpus), CHUNK_DOCUMENTS)
    chunks = [(epoch, start, min(start + CHUNK_DOCUMENTS, len(maker.corpus))) for start in starts]
    total = 0
    with worker_map(maker, num_workers) as results, tqdm(total=len(maker.corpus), unit="doc", disable=None) as bar:
        # In the order of the documents, whichever worker is done first.
        for (_, start, stop), (count, text) in zip(chunks, results(chunks), strict=True):
            file.write(text)
            total += count
            bar.update(stop - start)
    return total


class worker_map:
    """Maps chunks of documents to their text: in this process, or in several that share the corpus's memory."""

    maker = None  # of the worker processes; they are forked, so nothing is copied

    def __init__(self, maker, num_workers):
        self.num_workers, worker_map.maker = num_workers, maker

    def __enter__(self):
        if self.num_workers == 1:
            return lambda chunks: map(worker_map.run, chunks)
        # Signals wait until each worker answers them in its own way, not with the main process's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        context = multiprocessing.get_context("fork")
        self.pool = ProcessPoolExecutor(self.num_workers, context, worker_map.answer_signals)
        self.pool.submit(int).result()  # starts all workers
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self.results

    def results(self, chunks):
        """Yield the chunks' results in their order; a few chunks for each worker are under way at a time."""
        pending = deque()
        try:
            for chunk in chunks:
                pending.append(self.pool.submit(worker_map.run, chunk))
                if len(pending) > 4 * self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError("a worker process died (out of memory?); fewer --num_workers may help") from None

    def __exit__(self, *_):
        if self.num_workers > 1:
            self.pool.shutdown(cancel_futures=True)

    @staticmethod
    def answer_signals():
        """In a worker: Ctrl-C is the main process's to answer, SIGTERM ends at once."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    @staticmethod
    def run(chunk):
        return worker_map.maker.chunk_text(*chunk)


class Corpus:
    """Token ids of all documents end to end, where each sentence starts, and where each document's sentences start."""

    def __init__(self, ids, sentence_offsets, document_offsets):
        self.ids, self.sentence_offsets, self.document_offsets = ids, sentence_offsets, document_offsets
        self.num_sentences, self.num_tokens = len(sentence_offsets) - 1, int(sentence_offsets[-1])

    def __len__(self):
        return len(self.document_offsets) - 1

    def document(self, index):
        """The sentences of a document, each a list of ids."""
        first, last = int(self.document_offsets[index]), int(self.document_offsets[index + 1])
        bounds = self.sentence_offsets[first : last + 1].tolist()
        ids = self.ids[bounds[0] : bounds[-1]].tolist()
        return [ids[start - bounds[0] : stop - bounds[0]] for start, stop in zip(bounds, bounds[1:], strict=False)]

    def other_document(self, index, rng):
        """The index of another document, drawn in proportion to its number of sentences."""
        first, last = int(self.document_offsets[index]), int(self.document_offsets[index + 1])
        sentence = rng.randrange(self.num_sentences - (last - first))
        sentence += (last - first) * (sentence >= first)  # step over the document's own sentences
        return int(np.searchsorted(self.document_offsets, sentence, side="right")) - 1

    @classmethod
    def read(cls, path, tokenizer, folder=None, limit=None):
        """Tokenize a corpus file. With `folder` the ids live in a temporary file there. UserError: missing or empty."""
        ids, sentence_offsets, document_offsets = IdStore("I", folder), array("q", [0]), array("q", [0])
        for _, line in read_lines(path):
            if line.strip():
                sentence = tokenizer.ids(line)
                if sentence:
                    ids.extend(sentence)
                    sentence_offsets.append(len(ids))
            elif len(sentence_offsets) - 1 > document_offsets[-1]:
                document_offsets.append(len(sentence_offsets) - 1)
                if limit is not None and len(document_offsets) > limit:
                    break
        if len(sentence_offsets) - 1 > document_offsets[-1]:
            document_offsets.append(len(sentence_offsets) - 1)
        if len(document_offsets) == 1:
            raise UserError(f"{path}: no text in it; expected a sentence a line and empty lines between documents")
        return cls(ids.finish(), np.frombuffer(sentence_offsets, np.int64), np.frombuffer(document_offsets, np.int64))


class InstanceMaker:
    """Cuts documents into training sequences; what it makes of a document depends on seed, epoch and document alone."""

    def __init__(self, corpus, tokenizer, args):
        self.corpus, self.tokenizer, self.args = corpus, tokenizer, args
        self.num_special = 2 if args.one_seq else 3
        self.continues = [token.startswith("##") for token in tokenizer.ids_to_tokens]
        self.json_tokens = [json.dumps(token, ensure_ascii=False) for token in tokenizer.ids_to_tokens]
        special = {tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id,
                   tokenizer.mask_token_id}  # fmt: skip
        self.ordinary_ids = [index for index in range(len(tokenizer.vocab)) if index not in special]

    def chunk_text(self, epoch, start, stop):
        """The sequences of documents start..stop as JSON lines: (how many, UTF-8 bytes)."""
        lines = []
        for index in range(start, stop):
            rng = random.Random(f"{self.args.seed} {epoch} {index}")
            for segment_a, segment_b, is_random in self.instances(index, rng):
                lines.append(self.json_line(segment_a, segment_b, is_random, rng))
        return len(lines), "".join(lines).encode()

    def instances(self, index, rng):
        """Yield (ids of A, ids of B or None, B is random) for one document."""
        document = self.corpus.document(index)
        room = self.args.max_seq_len - self.num_special
        start = 0
        while start < len(document):
            target = rng.randint(2, room) if rng.random() < self.args.short_seq_prob else room
            # Take sentences until the target length is reached or the document ends.
            totals = accumulate(map(len, islice(document, start, None)))
            count = next((number for number, total in enumerate(totals, 1) if total >= target), len(document) - start)
            chunk = document[start : start + count]
            start += count
            if self.args.one_seq:
                (segment_a, segment_b), is_random = truncate_pair(sum(chunk, []), [], room, rng), False
                yield segment_a, None, is_random
                continue
            a_count = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            segment_a = sum(chunk[:a_count], [])
            is_random = len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                segment_b = self.random_segment(index, target - len(segment_a), rng)
                start -= len(chunk) - a_count  # the sentences that B would have been come next
            else:
                segment_b = sum(chunk[a_count:], [])
            yield *truncate_pair(segment_a, segment_b, room, rng), is_random

    def random_segment(self, index, length, rng):
        """At least `length` ids, if there are so many, from a random sentence on of another document."""
        document = self.corpus.document(self.corpus.other_document(index, rng))
        segment = []
        for sentence in document[rng.randrange(len(document)) :]:
            segment = segment + sentence
            if len(segment) >= length:
                break
        return segment

    def json_line(self, segment_a, segment_b, is_random, rng):
        """One sequence as the reference writes it."""
        ids, token_types = self.tokenizer.encode_pair(segment_a, segment_b)
        positions, labels = self.mask(ids, rng)
        names = self.json_tokens
        return (
            f'{{"tokens": [{", ".join([names[token] for token in ids])}], "segment_ids": {token_types}, '
            f'"is_random_next": {"true" if is_random else "false"}, "masked_lm_positions": {positions}, '
            f'"masked_lm_labels": [{", ".join([names[token] for token in labels])}]}}\n'
        )

    def mask(self, ids, rng):
        """Mask `ids` in place: 80% [MASK], 10% another word, 10% as it was. Returns (positions, original ids)."""
        # The reference masks at least one token even when the probability is 0; here 0 masks nothing.
        if self.args.masked_lm_prob == 0:
            return [], []
        words = []
        for position, token in enumerate(ids):
            if token in (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id):
                continue
            if self.args.do_whole_word_mask and words and self.continues[token] and words[-1][-1] == position - 1:
                words[-1].append(position)
            else:
                words.append([position])
        wanted = min(self.args.max_predictions_per_seq, max(1, round(len(ids) * self.args.masked_lm_prob)))
        rng.shuffle(words)
        masked = {}
        for word in words:
            if len(masked) >= wanted:
                break
            if len(masked) + len(word) > wanted:
                continue
            for position in word:
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
    cuts = {True: [0, 0], False: [0, 0]}  # [front, back] of A and of B
    length_a, length_b = len(segment_a), len(segment_b)
    for _ in range(max(excess, 0)):
        from_a = length_a > length_b
        cuts[from_a][rng.random() < 0.5] += 1
        length_a, length_b = length_a - from_a, length_b - (not from_a)
    (front_a, back_a), (front_b, back_b) = cuts[True], cuts[False]
    return segment_a[front_a : len(segment_a) - back_a], segment_b[front_b : len(segment_b) - back_b]


if __name__ == "__main__":
    stages.run(main)
