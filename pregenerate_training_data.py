"""Stage 2: turn a corpus into training sequences for general distillation.

Reads:   --train_corpus, UTF-8 text with one sentence per line and an empty line between documents, or JSON Lines with
         one document per line in the field "text"; files, folders, .gz, https:// and s3://; --bert_model's tokenizer
Writes:  <output_dir>/epoch_N.json, one JSON object per line: tokens, segment_ids, is_random_next, masked_lm_positions,
         masked_lm_labels (with --packed: epoch_N_ids.npy, all token ids, and epoch_N_sequences.npy, one row per
         sequence); then <output_dir>/epoch_N_metrics.json, which marks the epoch as complete

A sequence is two runs of sentences, [CLS] A [SEP] B [SEP]. In half of them B follows A, in the rest B comes from a
random document (--one_seq: B always follows A). General distillation needs no masking, so --masked_lm_prob is 0 by
default. The corpus is streamed: memory use does not grow with its size.

    python pregenerate_training_data.py --train_corpus 1_pre_data/documents.txt --output_dir 2_pregenerate_data \\
        --bert_model teacher_model --do_whole_word_mask
    python pregenerate_training_data.py --sample

第二步：把语料切成训练序列，写出 epoch_N.json。
"""

import logging
import time
from functools import partial
from pathlib import Path

import numpy as np

from transformer import console
from transformer.corpus import Corpus, CorpusWriter, corpus_files, read_blocks, tokenize_block
from transformer.data import id_typecode
from transformer.downloads import model_folder
from transformer.epochs import METRICS, EpochFiles, vocabulary_digest
from transformer.files import UserError, without_secrets, write_json
from transformer.flags import PREGENERATION
from transformer.instances import InstanceMaker, InstanceSettings
from transformer.json_file import Field, check, read_json, whole
from transformer.outputs import Output
from transformer.settings import read_command_line, settings_for
from transformer.tokenization import TOKENIZER_FILES, BertTokenizer
from transformer.workers import WorkerDied, map_in_workers

# For debugging, uncomment lines here. A flag on the command line wins over a line here.
HEADER = {
    # "sample": True,  # the tokenizer of the bundled models, short sequences
    # "limit": 20,  # documents
    # "train_corpus": ["1_pre_data/documents.txt"],
    # "bert_model": "teacher_model",
    # "output_dir": "2_pregenerate_data",
    # "epochs_to_generate": 3,
    # "max_seq_len": 128,
    # "short_seq_prob": 0.1,
    # "masked_lm_prob": 0.0,
    # "do_whole_word_mask": True,
    # "packed": True,  # arrays in place of JSON
    # "num_workers": 1,
    # "overwrite_output": True,  # replace existing output
    # "debug": True,  # tracebacks
}

CHUNK_SENTENCES = 2000  # sentences, in whole documents, that a worker processes at a time
# Of a stopped run, in its record.
PROGRESS = {key: whole(needed=True) for key in ("documents", "sequences")}
PROGRESS |= {"sizes": Field("the files' sizes", (list,), of=whole(), needed=True)}
SAVE_SECONDS = 20  # between saved states; a killed run repeats at most this much work


def read_settings(argv=None):
    """The settings of this stage, from the command line, HEADER and the flag table."""
    return settings_for(PREGENERATION, read_command_line(__doc__, PREGENERATION, argv), HEADER)


def main():
    settings = read_settings()
    console.set_up_logging()
    logging.info("pregeneration: %s", without_secrets(" ".join(settings.train_corpus)))
    settings.log()
    folder, bert = Path(settings.output_dir), Path(settings.bert_model)
    one_file = bert.is_file()  # a vocabulary file, without a model
    bert = bert if one_file else model_folder(settings.bert_model, settings.cache_dir, need_weights=False)
    tokenizer = BertTokenizer.from_pretrained(bert, settings.do_lower_case)
    files = corpus_files(settings.train_corpus, settings.cache_dir)
    inputs = {"train_corpus": files, "bert_model": [bert] if one_file else [bert / name for name in TOKENIZER_FILES]}
    # A vocabulary file has no teacher, so stage 3's default teacher is suggested.
    following = settings.next_command(**({"teacher_model": None} if one_file else {}))
    # Epochs are written in order, so the last one's metrics file means that all of them are complete.
    last = folder / f"epoch_{settings.epochs_to_generate - 1}_metrics.json"
    epochs = ("epoch_*.json", "epoch_*.npy", "epoch_*.part")
    with Output(last, settings.provenance, inputs, next_command=following, replaces=epochs, shown=folder) as output:
        if not output.finished:
            fewest = 1 if settings.one_seq else 2
            contents = output.values["inputs"]
            corpus = tokenize_corpus(folder, files, contents, tokenizer, settings.limit, fewest, settings.num_workers)
            maker = InstanceMaker(corpus, tokenizer, settings.part(InstanceSettings), settings.reduce_memory)
            done = generate_epochs(folder, maker, output, settings.epochs_to_generate, settings.num_workers)
            output.finish(done)
        CorpusWriter.remove(folder)  # only a resumed run needs the token ids


def tokenize_corpus(folder, files, contents, tokenizer, limit, fewest, num_workers):
    """Tokenize the corpus files into `folder`, resuming where a killed run stopped. Returns a `Corpus`.

    Args: contents: fingerprints of files and tokenizer; limit: most documents; fewest: least, else UserError.
    """
    typecode = id_typecode(len(tokenizer.vocab))
    writer = CorpusWriter(folder, typecode, {"inputs": contents, "lower": tokenizer.do_lower_case, "limit": limit})
    try:
        if not writer.complete:
            add_documents(writer, files, partial(tokenize_block, tokenizer, typecode), limit, num_workers)
        if not writer.num_documents:
            raise UserError(f"{files[0]}: no text in it; expected a sentence a line and empty lines between documents")
        if writer.num_documents < fewest:
            raise UserError(f"{files[0]}: one document only, and a pair needs two; put empty lines between documents")
    except UserError as error:
        if not isinstance(error, WorkerDied):  # in that case the saved part is still good
            CorpusWriter.remove(folder)
        raise
    logging.info("%d documents, %d sentences, %d tokens", writer.num_documents, writer.num_sentences, writer.num_ids)
    return Corpus(folder, typecode)


def add_documents(writer, files, tokenize, limit, num_workers):
    """Tokenize the documents that `writer` does not have yet."""
    sizes, (number, offset, _) = [path.stat().st_size for path in files], writer.position
    done = sum(sizes[:number]) + offset  # for .gz files the offset is in the unpacked text, so the bar is approximate
    saved = time.monotonic()
    with console.progress_bar(sum(sizes), done, "B", unit_scale=True, desc="tokens", leave=False) as bar:
        for block, found in map_in_workers(tokenize, read_blocks(files, writer.position), num_workers):
            writer.add(*found, block.next, limit)
            bar.update(len(block.data))
            if writer.num_documents == limit:
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                writer.save()
                saved = time.monotonic()
    writer.finish()


def generate_epochs(folder, maker, output, epochs, num_workers):
    """Write the missing epochs. Returns a summary: documents in, sequences out."""
    output.begin()
    about = {"max_seq_len": maker.settings.max_seq_len}
    if maker.settings.packed:  # ids mean nothing without their vocabulary; stage 3 compares it with the teacher's
        about["vocabulary"] = vocabulary_digest(maker.tokenizer)
    documents, total = len(maker.corpus), 0
    with console.progress_bar(documents * epochs, 0, "doc", desc="sequences") as bar:
        for epoch in range(epochs):
            metrics_path = folder / f"epoch_{epoch}_metrics.json"
            if metrics_path.is_file():  # completed before this run was killed and restarted
                bar.update(documents)
                total += read_json(metrics_path, METRICS)["num_training_examples"]
                continue
            count = write_epoch(folder / f"epoch_{epoch}", epoch, maker, num_workers, output, bar)
            if not count:
                raise UserError(f"{folder}: no sequence came out of the corpus")
            # Written last: stage 3 and a resumed run take it as proof that the epoch's data is complete.
            write_json(metrics_path, {"num_training_examples": count, **about})
            logging.info("epoch %d: %d sequences", epoch, count)
            total += count
    return f"{documents} documents in, {total} sequences out"


def write_epoch(name, epoch, maker, num_workers, output, bar):
    """Write the files of one epoch, resuming where a killed run stopped. Returns the number of sequences."""
    done = output.progress if (output.progress or {}).get("epoch") == epoch else {}
    most = {"documents": whole(0, len(maker.corpus), needed=True)}
    check(done, PROGRESS | most if done else {}, output.path)
    files = EpochFiles(name, maker.dtypes, done.get("sizes"))
    first, count = (0, 0) if files.fresh else (done["documents"], done["sequences"])
    bar.update(first)
    saved = time.monotonic()
    # Results arrive in document order, whatever the number of workers, so a position and file sizes suffice to resume.
    made = map_in_workers(maker.make_chunk, chunks(maker.corpus, epoch, first), num_workers)
    for (_, start, stop), (chunk_count, parts) in made:
        files.write(parts)
        count += chunk_count
        bar.update(stop - start)
        if time.monotonic() - saved > SAVE_SECONDS:
            sizes = [file.tell() for file in files.files]
            progress = {"epoch": epoch, "documents": stop, "sequences": count, "sizes": sizes}
            output.save_progress(files.files, progress)
            saved = time.monotonic()
    files.finish()
    return count


def chunks(corpus, epoch, start):
    """Yield (epoch, first document, end) for runs of documents with about CHUNK_SENTENCES sentences in all."""
    while start < len(corpus):
        end = int(np.searchsorted(corpus.document_offsets, corpus.document_offsets[start] + CHUNK_SENTENCES))
        # At least one document: a long one can exceed a chunk by itself.
        stop = min(max(end, start + 1), len(corpus))
        yield epoch, start, stop
        start = stop


if __name__ == "__main__":
    console.run(main, HEADER.get("debug"))
