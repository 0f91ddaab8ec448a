"""Stage 2: turn a corpus into training sequences for general distillation.

Reads:   --train_corpus, UTF-8 text: one sentence a line, an empty line between documents; or JSON Lines, a document a
         line in the field text; several files, folders, .gz, https:// and s3:// too; the tokenizer of --bert_model
Writes:  <output_dir>/epoch_N.json, one JSON object a line: tokens, segment_ids, is_random_next, masked_lm_positions,
         masked_lm_labels (with --packed instead: epoch_N_ids.npy, all token ids, and epoch_N_sequences.npy, a row a
         sequence); then <output_dir>/epoch_N_metrics.json, which says that the epoch is complete

A sequence is two runs of sentences, [CLS] A [SEP] B [SEP]: B follows A or comes from a random document, half and half
(--one_seq: one run only). TinyBERT's general distillation needs no masking, so --masked_lm_prob is 0 by default.
The corpus streams through: memory does not grow with it.

    python pregenerate_training_data.py --train_corpus 1_pre_data/documents.txt --output_dir 2_pregenerate_data \\
        --bert_model teacher_model --do_whole_word_mask
    python pregenerate_training_data.py --sample

第二步：把语料切成训练序列，写出 epoch_N.json。
"""

import gc
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import threading
import time
from array import array
from bisect import bisect_left
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from transformer import stages
from transformer.corpus import Corpus, CorpusWriter, corpus_files, read_blocks, tokenize_block
from transformer.data import EpochFiles, id_typecode, packed_dtypes, vocabulary_digest
from transformer.downloads import model_folder, upload
from transformer.files import UserError, make_folder, read_json, write_json
from transformer.stages import flag
from transformer.tokenization import TOKENIZER_FILES, BertTokenizer

# For debugging in an editor: a flag's value put here replaces its default, e.g. {"sample": True, "limit": 20}.
HEADER = {}

CHUNK_SENTENCES = 2000  # sentences (in whole documents) that a worker takes at a time
SAVE_SECONDS = 20  # between two saved states: what a killed run has to do again


def parse_args(argv=None):
    parser = stages.make_parser(__doc__)
    group = parser.add_argument_group("input and output")
    flag(
        group,
        "--train_corpus",
        nargs="+",
        help="files, folders or addresses of the corpus: .txt (a sentence a line, "
        "documents apart by an empty line), .jsonl (a document a line, field text), both also .gz; what is not here "
        "is fetched into the cache",
    )
    flag(group, "--output_dir", help="folder of the epoch files (2_pregenerate_data)")
    flag(
        group,
        "--bert_model",
        help="folder or name of the model whose tokenizer is used, or a vocabulary file; no weights needed "
        "(teacher_model)",
    )
    flag(group, "--do_lower_case", action="store_true", help="force lower case; without it the model decides")
    flag(
        group,
        "--packed",
        action="store_true",
        help="write arrays of token ids that general_distill.py maps without "
        "parsing, a sixth of the size, in place of JSON",
    )
    group = parser.add_argument_group("sequences")
    flag(group, "--epochs_to_generate", type=int, help="epoch files, each cut and paired anew (3)")
    flag(
        group,
        "--max_seq_len",
        type=int,
        help="tokens of a sequence, special ones included; general_distill.py's "
        "--max_seq_length must be at least this (128)",
    )
    flag(group, "--short_seq_prob", type=float, help="fraction of sequences made shorter on purpose (0.1)")
    flag(group, "--one_seq", action="store_true", help="one run of sentences a sequence, no pairs")
    group = parser.add_argument_group("masking")
    flag(group, "--masked_lm_prob", type=float, help="fraction of tokens to mask, 0 = none (0)")
    flag(group, "--max_predictions_per_seq", type=int, help="masked tokens a sequence, at most (20)")
    flag(group, "--do_whole_word_mask", action="store_true", help="mask all pieces of a word or none")
    group = parser.add_argument_group("resources")
    flag(group, "--num_workers", type=int, help="processes; the output does not depend on their number (1)")
    flag(
        group,
        "--reduce_memory",
        action="store_true",
        help="keep no more of the corpus's ids in memory than are "
        "being worked on: below 500 MB, however large the corpus",
    )
    flag(group, "--cache_dir", help="where downloaded models and corpora are kept")
    stages.add_common_flags(parser, "limit")
    args = parser.parse_args(argv)
    sample = stages.SAMPLE_PREGENERATION if args.sample or HEADER.get("sample") else {}
    args.origins = stages.settle(args, ("script header", HEADER), ("sample", sample), ("default", stages.PREGENERATION))
    if isinstance(args.train_corpus, str):
        args.train_corpus = [args.train_corpus]
    stages.check_positive(args, "epochs_to_generate", "num_workers", "limit", "max_predictions_per_seq")
    if not 8 <= args.max_seq_len < 1 << 16:
        raise UserError(f"--max_seq_len {args.max_seq_len}: expected 8 to {(1 << 16) - 1}")
    for name in ("short_seq_prob", "masked_lm_prob"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected 0 to 1")
    return args


def main():
    args, started = parse_args(), time.monotonic()
    stages.set_up_logging()
    logging.info("pregeneration: %s", " ".join(args.train_corpus))
    stages.print_settings(args)
    folder = make_folder(args.output_dir)
    bert = Path(args.bert_model)
    bert = bert if bert.is_file() else model_folder(args.bert_model, args.cache_dir, need_weights=False)
    tokenizer = BertTokenizer.from_pretrained(bert, args.do_lower_case)
    files = corpus_files(args.train_corpus, args.cache_dir)
    outputs = sorted(path for path in folder.glob("epoch_*") if path.suffix in (".json", ".npy", ".part"))

    last = folder / f"epoch_{args.epochs_to_generate - 1}_metrics.json"
    read = [bert] if bert.is_file() else [bert / name for name in TOKENIZER_FILES]
    inputs = {"train_corpus": files, "bert_model": read}
    record = stages.OutputRecord(folder / "run.json", last, "pregenerate_training_data", args, inputs)
    status, done = record.claim(outputs, args.overwrite_output), ""
    if status != "finished":
        tokenize_corpus(files, tokenizer, record, args)
        done = generate_epochs(folder, tokenizer, record, args)
        record.finish()
    CorpusWriter.remove(folder)
    upload([folder], args.data_url)
    stages.sum_up(status, folder, started, done)
    defaults = {**stages.GENERAL_DISTILLATION, **(stages.SAMPLE_GENERAL_DISTILLATION if args.sample else {})}
    flags = {
        "pregenerated_data": args.output_dir,
        "teacher_model": None if bert.is_file() else args.bert_model,
        "max_seq_length": args.max_seq_len,
        "do_lower_case": args.do_lower_case,
    }
    stages.hint_next("general_distill.py", args, flags, defaults)


def tokenize_corpus(files, tokenizer, record, args):
    """Bring the corpus's ids onto the disk, beside the output, from where a killed run left them."""
    typecode = id_typecode(len(tokenizer.vocab))
    made_from = {"inputs": record.values["inputs"], "lower": tokenizer.do_lower_case, "limit": args.limit}
    writer = CorpusWriter(record.path.parent, typecode, made_from)
    if not writer.complete:
        try:
            add_documents(writer, files, partial(tokenize_block, tokenizer, typecode), args)
        except WorkerDied:
            raise  # what was saved is good
        except UserError:
            CorpusWriter.remove(writer.folder)
            raise
    if writer.num_documents < (1 if args.one_seq else 2):
        CorpusWriter.remove(writer.folder)
        if not writer.num_documents:
            raise UserError(f"{files[0]}: no text in it; expected a sentence a line and empty lines between documents")
        raise UserError(f"{files[0]}: one document only, and a pair needs two; put empty lines between documents")
    logging.info("%d documents, %d sentences, %d tokens", writer.num_documents, writer.num_sentences, writer.num_ids)


def add_documents(writer, files, tokenize, args):
    """Tokenize what is not in `writer` yet."""
    saved, total = time.monotonic(), sum(path.stat().st_size for path in files)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="tokens", disable=None, leave=False)
    before = files[: writer.position[0]]
    bar.update(sum(path.stat().st_size for path in before) + writer.position[1])  # of .gz, what it was unpacked
    with Workers(tokenize, args.num_workers) as workers:
        for block, found in workers.map(read_blocks(files, tuple(writer.position))):
            writer.add(*found, block.next, args.limit)
            bar.update(len(block.data))
            if writer.num_documents == args.limit:
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                writer.save()
                saved = time.monotonic()
    bar.close()
    writer.finish()


def generate_epochs(folder, tokenizer, record, args):
    """Write the epochs that are not there yet. Returns a phrase: documents in, sequences out."""
    maker, total = InstanceMaker(Corpus(folder, id_typecode(len(tokenizer.vocab))), tokenizer, args), 0
    record.begin()
    digest = {"vocabulary": vocabulary_digest(tokenizer)} if args.packed else {}
    documents = len(maker.corpus)
    bar = tqdm(total=documents * args.epochs_to_generate, unit="doc", desc="sequences", disable=None)
    with bar, logging_redirect_tqdm(), Workers(maker.make_chunk, args.num_workers) as workers:
        for epoch in range(args.epochs_to_generate):
            metrics_path = folder / f"epoch_{epoch}_metrics.json"
            if metrics_path.is_file():  # complete: a killed run comes by here again
                bar.update(documents)
                total += read_json(metrics_path)["num_training_examples"]
                continue
            count = write_epoch(folder, epoch, maker, workers, record, bar)
            if not count:
                raise UserError(f"{folder}: no sequence came out of the corpus")
            write_json(metrics_path, {"num_training_examples": count, "max_seq_len": args.max_seq_len, **digest})
            logging.info("epoch %d: %d sequences", epoch, count)
            total += count
    return f"{documents} documents in, {total} sequences out"


def write_epoch(folder, epoch, maker, workers, record, bar):
    """Write the files of one epoch, from where a killed run left them; returns the number of sequences."""
    corpus, done = maker.corpus, record.progress or {}
    files = EpochFiles(folder / f"epoch_{epoch}", maker.dtypes, done["sizes"] if done.get("epoch") == epoch else None)
    first, count = (0, 0) if files.fresh else (done["documents"], done["sequences"])
    bar.update(first)
    saved = time.monotonic()
    with files:
        # In the order of the documents, whichever worker is done first.
        for (_, start, stop), (chunk_count, parts) in workers.map(chunks(corpus, epoch, first)):
            files.write(parts)
            count += chunk_count
            bar.update(stop - start)
            if time.monotonic() - saved > SAVE_SECONDS:
                record.save_progress(
                    files.files, {"epoch": epoch, "documents": stop, "sequences": count, "sizes": files.sizes()}
                )
                saved = time.monotonic()
    return count


def chunks(corpus, epoch, start):
    """Yield (epoch, first document, end): runs of documents of about CHUNK_SENTENCES sentences."""
    while start < len(corpus):
        end = int(np.searchsorted(corpus.document_offsets, corpus.document_offsets[start] + CHUNK_SENTENCES))
        stop = min(max(end, start + 1), len(corpus))
        yield epoch, start, stop
        start = stop


class WorkerDied(UserError):
    """A process ended that should not have; the same command goes on."""


class Workers:
    """Calls a function for many chunks, in this process or in several; the results come in the order of the chunks."""

    work = None  # in a worker process: the function

    def __init__(self, work, num_workers):
        self.work, self.num_workers, self.pool = work, num_workers, None

    def __enter__(self):
        if self.num_workers > 1:
            # Forked processes share what the function holds; elsewhere than on Linux forking is not safe.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            self.pool = ProcessPoolExecutor(self.num_workers, context, Workers.start, (self.work,))
        return self

    def __exit__(self, *_):
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(self, chunks):
        """Yield (chunk, result); a few chunks for each worker are under way at a time."""
        if self.pool is None:
            yield from ((chunk, self.work(chunk)) for chunk in chunks)
            return
        pending = deque()
        try:
            for chunk in chunks:
                pending.append((chunk, self.pool.submit(Workers.run, chunk)))
                if len(pending) > 2 * self.num_workers:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        except BrokenProcessPool:
            raise WorkerDied("a worker process died (out of memory?); fewer --num_workers may help") from None

    @staticmethod
    def start(work):
        """In a new worker: Ctrl-C is the main process's to answer, and no worker outlives it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.freeze()  # what the main process made stays: going through it again and again takes a twentieth of the time
        Workers.work = staticmethod(work)
        threading.Thread(target=Workers.end_with_parent, daemon=True).start()

    @staticmethod
    def end_with_parent():
        # A killed process cannot tell its workers: they would wait for chunks, and hold its terminal, for ever.
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    @staticmethod
    def run(chunk):
        return Workers.work(chunk)


class InstanceMaker:
    """Cuts documents into training sequences; what it makes of a document depends on seed, epoch and document alone."""

    def __init__(self, corpus, tokenizer, args):
        self.corpus, self.tokenizer, self.args = corpus, tokenizer, args
        self.room = args.max_seq_len - (2 if args.one_seq else 3)
        self.continues = [token.startswith("##") for token in tokenizer.ids_to_tokens]
        self.json_tokens = [json.dumps(token, ensure_ascii=False) for token in tokenizer.ids_to_tokens]
        special = {
            tokenizer.pad_token_id,
            tokenizer.unk_token_id,
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.mask_token_id,
        }
        self.ordinary_ids = [index for index in range(len(tokenizer.vocab)) if index not in special]
        self.typecode = id_typecode(len(tokenizer.vocab))
        self.dtypes = packed_dtypes(self.typecode, args.masked_lm_prob > 0) if args.packed else {".json": None}

    def make_chunk(self, chunk):
        """The sequences of documents start..stop of an epoch: (how many, the bytes that each file gets)."""
        epoch, start, stop = chunk
        instances = []
        for index in range(start, stop):
            rng = random.Random(f"{self.args.seed} {epoch} {index}")
            for segment_a, segment_b, is_random in self.instances(index, rng):
                ids, first_length = self.join(segment_a, segment_b)
                instances.append((ids, first_length, is_random, *self.mask(ids, rng)))
        if self.args.reduce_memory:
            self.corpus.release()
        return len(instances), self.packed(instances) if self.args.packed else [self.json_lines(instances)]

    def instances(self, index, rng):
        """Yield (ids of A, ids of B or None, B is random) for one document, lists."""
        document, bounds = self.corpus.document(index)

        def ids(first, last):  # of some sentences
            return document[bounds[first] : bounds[last]].tolist()

        start, end = 0, len(bounds) - 1  # in sentences
        while start < end:
            target = rng.randint(2, self.room) if rng.random() < self.args.short_seq_prob else self.room
            # Take sentences until the target length is reached or the document ends.
            stop = min(bisect_left(bounds, bounds[start] + target, start + 1), end)
            if self.args.one_seq:
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
        zeros, ones = "0, " * self.args.max_seq_len, "1, " * self.args.max_seq_len
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
        ids, rows = array(self.typecode), []
        for whole, first, is_random, positions, _ in instances:
            ids.extend(whole[1 : first - 1])
            ids.extend(whole[first:-1])
            rows.append((len(whole), first, is_random, len(positions))[: len(self.dtypes["_sequences.npy"])])
        parts = [ids.tobytes(), np.array(rows, self.dtypes["_sequences.npy"]).tobytes()]
        if "_masked.npy" in self.dtypes:
            masked = [pair for *_, positions, labels in instances for pair in zip(positions, labels, strict=True)]
            parts.append(np.array(masked, self.dtypes["_masked.npy"]).tobytes())
        return parts

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
    if excess <= 0:
        return segment_a, segment_b
    # Tokens go from the longer one until both are equally long, from then on by turns, from B first.
    difference = len(segment_a) - len(segment_b)
    alone = min(abs(difference), excess)
    cut_b = (excess - alone + 1) // 2
    cut_a = excess - alone - cut_b
    if difference > 0:
        cut_a += alone
    else:
        cut_b += alone
    front_a, front_b = coin_tosses(cut_a, rng), coin_tosses(cut_b, rng)
    return segment_a[front_a : len(segment_a) - (cut_a - front_a)], segment_b[
        front_b : len(segment_b) - (cut_b - front_b)
    ]


def coin_tosses(count, rng):
    """How many of `count` coins show heads."""
    return rng.getrandbits(count).bit_count() if count else 0


if __name__ == "__main__":
    stages.run(main)
