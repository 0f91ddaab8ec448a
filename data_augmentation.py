"""Stage 1: widen a task's training set by replacing words (TinyBERT, algorithm 1 of the paper).

Each word that carries meaning is replaced, with probability --p, by one of its candidates: a word of one piece is
masked and the masked language model proposes --M others; a word of several pieces gets its --M nearest GloVe
neighbours. Every sentence is tried --N times; what comes out new is kept, with the row's label.
Chinese text works too: its characters are joined to the words that the vectors know; a word of one character is masked,
a longer one gets its neighbours.

Reads:   <glue_dir>/<task>/train.tsv (.csv, .jsonl), a BERT with a masked-LM head, GloVe vectors (text)
Writes:  <glue_dir>/<task>/train_aug.tsv (.csv, .jsonl): the header, then each row itself followed by its variants;
         beside vectors of more than 16 MB a binary copy, <glove_embs>.npz, which loads faster

The output depends on the inputs, the flags and the seed, not on --batch_size, the number of processes or a stop between
(that is why --precision is fp32 here; in bf16 and fp16, candidates with nearly equal scores may change places with the
batch). On several GPUs or processes:
torchrun --nproc_per_node=2 data_augmentation.py ...

    python data_augmentation.py --pretrained_bert_model teacher_model --glove_embs 1_pre_data/glove.6B.100d.txt \\
        --glue_dir . --task_name SST-2
    python data_augmentation.py --sample

第一步：数据增强。用掩码语言模型和词向量近邻替换词语，写出 train_aug.tsv；中文按词替换。
"""

import logging
import os
import re
import time
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from transformer import console, processes
from transformer.checkpoint import check_vocabulary, load_state_dict
from transformer.downloads import model_folder
from transformer.files import UserError, append_to
from transformer.flags import AUGMENTATION
from transformer.modeling import BertConfig, BertForMaskedLM
from transformer.outputs import Output
from transformer.own_tasks import find_task
from transformer.proposals import CandidateProposer
from transformer.settings import read_command_line, settings_for
from transformer.tasks.task import TaskFile
from transformer.tokenization import CJK, BertTokenizer
from transformer.vectors import WordVectors

# Edit for debugging: take the # away. A flag on the command line wins over a line here.
HEADER = {
    # "sample": True,  # the bundled small models and data
    # "limit": 20,  # rows
    # "task_name": "SST-2",
    # "glue_dir": ".",
    # "pretrained_bert_model": "teacher_model",
    # "glove_embs": "1_pre_data/glove.6B.100d.txt",
    # "N": 30,
    # "M": 15,
    # "p": 0.4,
    # "batch_size": 32,
    # "overwrite_output": True,  # replace what is there
    # "no_cuda": True,  # stay on the CPU
    # "debug": True,  # tracebacks
}

CHUNK_ROWS = 256  # rows of one process between two saved states; their masked words share batches
CUDA_CHUNKS = 4  # so many such chunks on a GPU, which is done with one before the state is saved
REPORT_SECONDS = 60  # between two lines of the log that say how far it is, where nobody watches the bar
# Where no space stands between two words: both are Chinese or its punctuation; quotes and dashes are so beside one.
_SOLID, _DASHES = CJK + "\u3000-\u30ff\uff01-\uff65", "\u2010-\u2027"
UNSPACED = re.compile(f"(?<=[{_SOLID}]) (?=[{_SOLID}{_DASHES}])|(?<=[{_DASHES}]) (?=[{_SOLID}])")


def read_settings(argv=None):
    """(settings, task) of this stage, from the command line, HEADER and the table of flags."""
    given = read_command_line(__doc__, AUGMENTATION, argv)
    asked = settings_for(AUGMENTATION, given, HEADER)
    task = find_task(asked.task_name, Path(asked.glue_dir) / asked.task_name)
    return settings_for(AUGMENTATION, given, HEADER, task.settings), task


def main():
    settings, task = read_settings()
    here = processes.start(settings.seed, settings.precision, settings.no_cuda)
    # Products in TF32 would not only be noisier than `proposals.TIE` allows for: they would also miss neighbours.
    torch.set_float32_matmul_precision("highest")
    console.set_up_logging(quiet=not here.first)
    logging.info("data augmentation: %s on %s", task.name, here)
    settings.log()
    folder = Path(settings.glue_dir) / task.name
    result, train_file = folder / task.augmented_file, TaskFile(folder / task.train_file, task)
    bert = model_folder(settings.pretrained_bert_model, settings.cache_dir)
    inputs = {"pretrained_bert_model": bert, "glove_embs": settings.glove_embs, "glue_dir": train_file.path}
    following = settings.next_command()
    with Output(result, settings.provenance, inputs, here, following, [result], whole_folder=False) as output:
        if not output.finished:
            # What the first process sees counts: it alone knows the record and changes the files.
            progress = here.from_first(lambda: find_progress(output))
            model, tokenizer = load_masked_lm(bert, here.device)
            vectors = WordVectors(settings.glove_embs, keep_copy=here.first)
            proposer = CandidateProposer(model, tokenizer, vectors, settings.M, here, settings.batch_size)
            del vectors  # so that the proposer can let them go
            total = prepare(proposer, train_file, progress["rows"], settings.limit, here)
            output.begin()
            augment = partial(augment_rows, train_file, proposer, settings.N, settings.p, settings.seed)
            output.finish(augment_file(train_file, augment, progress, total, settings.limit, output))
    here.leave()


def load_masked_lm(folder, device):
    """The masked LM and its tokenizer. Raises UserError for a checkpoint without a masked-LM head."""
    config, tokenizer = BertConfig.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    check_vocabulary(config, tokenizer, folder)
    if "cls.predictions.transform.dense.weight" not in load_state_dict(folder):
        raise UserError(
            f"{folder}: this checkpoint has no masked-LM head (cls.predictions.*), so it cannot propose words; "
            "take a BERT that was saved as a masked LM, such as bert-base-uncased"
        )
    return BertForMaskedLM.from_pretrained(folder).to(device).eval(), tokenizer


def part_of(result):
    return result.with_name(f"{result.name}.part")


def find_progress(output):
    """What was written and saved before: {"rows": read, "written": rows, "bytes": of the file}."""
    saved, part = output.progress, part_of(output.result)
    if saved and part.exists() and part.stat().st_size >= saved["bytes"]:
        return saved
    return {"rows": 0, "written": 0, "bytes": 0}  # nothing was, or somebody removed it


def prepare(proposer, train_file, start, limit, here):
    """Let the proposer see what is to come. Returns how many rows there are.

    A row that cannot be read is found here, before anything is written.
    """
    total = sum(1 for _ in train_file)
    to_come = (rows for _, _, rows in rounds(train_file, start, limit, here))
    proposer.prepare(text for rows in to_come for row in rows for text in row.texts)
    return min(total, limit) if limit else total


def rounds(train_file, start, limit, here):
    """Yield (rows of the round, number of this process's first one, this process's) from row `start` on.

    In a round the processes take equal parts, the first the first; the number of processes may change between two runs.
    """
    rows = islice(train_file, start, limit)
    size = CHUNK_ROWS * here.world_size * (CUDA_CHUNKS if here.device.type == "cuda" else 1)
    while part := list(islice(rows, size)):
        share = -(-len(part) // here.world_size)
        first = min(here.rank * share, len(part))
        yield len(part), start + first, part[first : first + share]
        start += len(part)


def augment_file(train_file, augment, progress, total, limit, output):
    """Write the header, then every row and its variants; goes on after the last round that a killed run saved.

    Args: augment(rows, number of the first one): their lines; progress: of `find_progress`; total: of `prepare`.
    Returns a phrase that tells how many rows came in and went out.
    """
    part, here, before = part_of(output.result), output.processes, progress["rows"]
    started = told = time.monotonic()
    watched = console.progress_bar(total, before, "row", shown=here.first)
    with append_to(part, progress["bytes"]) if here.first else nullcontext() as file, watched as bar:
        if here.first and not progress["bytes"] and train_file.header is not None:
            file.write(f"{train_file.header}\n".encode())
        for rows, first_number, mine in rounds(train_file, before, limit, here):
            lines = augment(mine, first_number)
            parts = here.gather((len(lines), "".join(f"{line}\n" for line in lines).encode()))
            if not here.first:
                continue
            file.writelines(text for _, text in parts)
            progress["rows"] += rows
            progress["written"] += sum(written for written, _ in parts)
            progress["bytes"] = file.tell()
            output.save_progress([file], progress)
            bar.update(rows)
            now = time.monotonic()
            if bar.disable and now - told >= REPORT_SECONDS and progress["rows"] < total:
                speed, told = (progress["rows"] - before) / (now - started), now
                left = (total - progress["rows"]) / speed / 60
                logging.info("%d of %d rows, %.1f rows/s, %.0f min left", progress["rows"], total, speed, left)
    if here.first:
        os.replace(part, output.result)
    resumed = f" ({before} of them before)" if before else ""
    skipped = f", {train_file.skipped} left out" if train_file.skipped else ""
    return f"{progress['rows']} rows in{resumed}{skipped}, {progress['written']} rows out"


def augment_rows(train_file, proposer, tries, probability, seed, rows, first_number):
    """The output lines of some rows: each row as it stands, then its variants, one text column at a time.

    Args: tries: N of algorithm 1, for each text; probability: p; first_number: the first row's number in the file.
    """
    candidates = proposer.candidates([text for row in rows for text in row.texts])
    lines = []
    for number, row in enumerate(rows, first_number):
        # Each row draws from its own generator, so the output depends on the seed only, not on what came before. The
        # reference draws from generators that nobody seeds.
        rng = np.random.default_rng([seed, number])
        lines.append(train_file.table.line(row.columns))
        for text, key in zip(row.texts, train_file.text_keys, strict=True):
            for variant in make_variants(text, *candidates[text], tries, probability, rng):
                # The row's other sentence stays the original one; in the reference it keeps its last variant.
                columns = row.columns.copy()
                columns[key] = variant
                lines.append(train_file.table.line(columns))
    return lines


def make_variants(text, words, candidates, tries, probability, rng):
    """New sentences from the words of `text` and each word's candidates {index: [word, ...]}, without repetitions."""
    if not candidates or not tries:
        return []
    seen, variants = {text, join_words(words)}, []
    counts = [len(choices) for choices in candidates.values()]
    drawn = rng.integers(counts, size=(tries, len(counts))).tolist()
    replaced = (rng.random((tries, len(counts))) < probability).tolist()
    for choices, flags in zip(drawn, replaced, strict=True):
        new_words = words.copy()
        for (index, options), choice, replace in zip(candidates.items(), choices, flags, strict=True):
            if replace:
                new_words[index] = options[choice]
        variant = join_words(new_words)
        if variant not in seen:
            seen.add(variant)
            variants.append(variant)
    return variants


def join_words(words):
    """The sentence of some words, spaces between them but not inside Chinese."""
    text = " ".join(words)
    return text if text.isascii() else UNSPACED.sub("", text)


if __name__ == "__main__":
    console.run(main)
