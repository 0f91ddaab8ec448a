"""Stage 1: enlarge a task's training set by replacing words (TinyBERT, algorithm 1 of the paper).

Each word that carries meaning is replaced, with probability --p, by one of its candidates. A word of one piece is
masked, and the masked language model proposes --M others. A word of several pieces gets its --M nearest GloVe
neighbours. Each sentence gets --N tries, the task's own number by default; new results are kept, with the row's label.
In Chinese text, characters are first joined into the words that the vectors know; a word of one character is masked, a
longer one gets neighbours.

Reads:   <glue_dir>/<task>/train.tsv (.csv, .jsonl), a BERT with a masked-LM head, GloVe vectors (text)
Writes:  <glue_dir>/<task>/train_aug.tsv (.csv, .jsonl): the header, then each row followed by its variants

The output depends on the inputs, the flags and the seed, but not on --batch_size, the number of processes or an
interruption. For this reason --precision defaults to fp32: in bf16 and fp16, candidates with nearly equal scores can
swap places when the batch changes. On several GPUs: torchrun --nproc_per_node=2 data_augmentation.py ...

    python data_augmentation.py --pretrained_bert_model teacher_model --glove_embs 1_pre_data/glove.6B.100d.txt \\
        --glue_dir . --task_name SST-2
    python data_augmentation.py --sample

第一步：数据增强。用掩码语言模型和词向量近邻替换词语，写出 train_aug.tsv；中文按词替换。
"""

import logging
import os
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
from transformer.json_file import check, whole
from transformer.modeling import BertConfig, BertForMaskedLM
from transformer.outputs import Output
from transformer.own_tasks import find_task
from transformer.proposals import CandidateProposer
from transformer.settings import read_command_line, settings_for
from transformer.tasks.task import TaskFile
from transformer.tokenization import BertTokenizer
from transformer.vectors import WordVectors

# For debugging, uncomment lines here. A flag on the command line wins over a line here.
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
    # "overwrite_output": True,  # replace existing output
    # "no_cuda": True,  # stay on the CPU
    # "debug": True,  # tracebacks
}

CHUNK_ROWS = 256  # rows per process between saved states; their masked words share batches
CHUNK_TEXT = 1 << 19  # characters, likewise, so that memory does not grow with long rows
CUDA_CHUNKS = 4  # chunks between saved states on a GPU, which finishes one faster than a state is saved
PROGRESS = {key: whole(needed=True) for key in ("rows", "written", "bytes")}  # of a stopped run, in its record


def read_settings(argv=None):
    """(settings, task) of this stage, from the command line, HEADER and the flag table."""
    given = read_command_line(__doc__, AUGMENTATION, argv)
    # Twice: the first pass finds the task, whose row then supplies defaults to the second.
    asked = settings_for(AUGMENTATION, given, HEADER)
    folder = Path(asked.glue_dir) / asked.task_name
    task = find_task(asked.task_name, folder, asked.dev_fraction)
    if not task.source:  # else the lack of dev rows would show only after this stage's work, which it changes
        task.check_file(folder / task.dev_files[0])
    return settings_for(AUGMENTATION, given, HEADER, task.settings), task


def main():
    settings, task = read_settings()
    here = processes.start(settings.seed, settings.precision, settings.no_cuda)
    # No TF32: its products are noisier than `proposals.TIE` allows for, and nearest neighbours would be missed.
    torch.set_float32_matmul_precision("highest")
    console.set_up_logging(quiet=not here.first)
    task.announce("data augmentation", here)
    settings.log()
    task.check_training()
    folder = Path(settings.glue_dir) / task.name
    result, train_file = folder / task.augmented_file, TaskFile(folder / task.train_file, task)
    bert = model_folder(settings.pretrained_bert_model, settings.cache_dir)
    inputs = {"pretrained_bert_model": bert, "glove_embs": settings.glove_embs, "glue_dir": train_file.path}
    following = settings.next_command()
    with Output(result, settings.provenance, inputs, here, following, [result.name], whole_folder=False) as output:
        if not output.finished:
            # Only the first process reads the record and writes the files, so the others ask it.
            progress = here.from_first(lambda: find_progress(output))
            model, tokenizer = load_masked_lm(bert, here.device)
            vectors = WordVectors(settings.glove_embs, settings.glove_words)
            proposer = CandidateProposer(model, tokenizer, vectors, settings.M, here, settings.batch_size)
            del vectors  # lets the proposer free them after `prepare`
            total = prepare(proposer, train_file, progress["rows"], settings.limit, here)
            output.begin()
            known = task.kind.known(train_file) if settings.augment_entities else {}
            augment = partial(augment_rows, train_file, proposer, settings.N, settings.p, settings.seed, known=known)
            output.finish(augment_file(train_file, augment, progress, total, settings.limit, output))
    here.leave()


def load_masked_lm(folder, device):
    """(masked LM, tokenizer). Raises UserError for a checkpoint without a masked-LM head."""
    config, tokenizer = BertConfig.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    check_vocabulary(config, tokenizer, folder)
    # Without this check a fresh, random head would propose nonsense.
    if "cls.predictions.transform.dense.weight" not in load_state_dict(folder):
        raise UserError(
            f"{folder}: this checkpoint has no masked-LM head (cls.predictions.*), so it cannot propose words; "
            "take a BERT that was saved as a masked LM, such as bert-base-uncased"
        )
    return BertForMaskedLM.from_pretrained(folder).to(device).eval(), tokenizer


def part_of(result):
    return result.with_name(f"{result.name}.part")


def find_progress(output):
    """What an earlier run saved: {"rows": rows read, "written": rows written, "bytes": size of the file}."""
    saved, part = output.progress, part_of(output.result)
    check(saved or {}, PROGRESS if saved else {}, output.path)
    if saved and output.result.exists() and not part.exists():
        os.replace(output.result, part)  # killed between the rename and the record's last line: nothing is lost
    if saved and part.exists() and part.stat().st_size >= saved["bytes"]:
        return saved
    return {"rows": 0, "written": 0, "bytes": 0}  # no earlier run, or its file was removed


def prepare(proposer, train_file, start, limit, here):
    """Show the proposer all remaining texts. Returns the number of rows in the whole file, at most `limit`."""
    # Reading every row here also finds the bad ones before anything is written.
    total = sum(1 for _ in train_file)
    to_come = (rows for _, _, rows in rounds(train_file, start, limit, here))
    proposer.prepare(text for rows in to_come for row in rows for text in row.texts)
    return min(total, limit) if limit else total


def rounds(train_file, start, limit, here):
    """Yield (number of rows in the round, number of this process's first row, this process's rows) from `start` on."""
    # Consecutive parts in rank order: joined, they are in file order, and a resumed run may have another world size.
    rows = islice(train_file, start, limit)
    size = CHUNK_ROWS * here.world_size * (CUDA_CHUNKS if here.device.type == "cuda" else 1)
    while part := take(rows, size, CHUNK_TEXT * here.world_size):
        share = -(-len(part) // here.world_size)
        first = min(here.rank * share, len(part))
        yield len(part), start + first, part[first : first + share]
        start += len(part)


def take(rows, most, characters):
    """The next `most` rows, fewer where their texts come to so many characters."""
    taken = []
    while len(taken) < most and characters > 0 and (row := next(rows, None)):
        taken.append(row)
        characters -= sum(map(len, row.texts))
    return taken


def augment_file(train_file, augment, progress, total, limit, output):
    """Write the header, then every row and its variants, resuming after the last saved round. Returns a summary.

    Args: augment(rows, number of the first row): their lines; progress: from `find_progress`; total: from `prepare`.
    """
    part, here, before = part_of(output.result), output.processes, progress["rows"]
    started = told = time.monotonic()
    watched = console.progress_bar(total, before, "row", shown=here.first)
    # Cutting the file at the saved size drops what a killed run wrote after it.
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
            # A log file has no bar, so it gets a line now and then.
            if bar.disable and now - told >= console.REPORT_SECONDS and progress["rows"] < total:
                speed, told = (progress["rows"] - before) / (now - started), now
                left = (total - progress["rows"]) / speed / 60
                logging.info("%d of %d rows, %.1f rows/s, %.0f min left", progress["rows"], total, speed, left)
    if here.first:
        os.replace(part, output.result)  # train_aug.tsv appears only when it is complete
    resumed = f" ({before} of them before)" if before else ""
    skipped = f", {train_file.skipped} left out" if train_file.skipped else ""
    return f"{progress['rows']} rows in{resumed}{skipped}, {progress['written']} rows out"


def augment_rows(train_file, proposer, tries, probability, seed, rows, first_number, known=None):
    """The output lines for some rows: each row unchanged, then its variants, one text column at a time.

    Args: tries: N of algorithm 1, per text; probability: p; first_number: number of the first row in the file; known:
    from `Kind.known`.
    """
    candidates = proposer.candidates([text for row in rows for text in row.texts])
    kind, lines = train_file.task.kind, []
    for number, row in enumerate(rows, first_number):
        # Each row has its own generator, so that its variants do not depend on the rows before it or on the process.
        # The reference never seeds its generators.
        rng = np.random.default_rng([seed, number])
        lines.append(train_file.table.line(row.columns))
        for column, (text, key) in enumerate(zip(row.texts, train_file.text_keys, strict=True)):
            before, options = kind.replaceable(row, column, *candidates[text], proposer.words, known or {})
            for parts in make_variants(text, before, options, tries, probability, rng, kind.join):
                # The row's other sentence stays original. In the reference it keeps its last variant.
                lines.append(train_file.table.line(kind.variant(row, column, key, before, parts)))
    return lines


def make_variants(text, words, candidates, tries, probability, rng, join):
    """The words of distinct new sentences, from the words of `text` and candidates {index of a word: [word, ...]}."""
    if not candidates or not tries:
        return []
    seen, variants = {text, join(words)}, []
    # All draws at once: one call of numpy per word would cost far more than the draw.
    counts = [len(choices) for choices in candidates.values()]
    drawn = rng.integers(counts, size=(tries, len(counts))).tolist()
    replaced = (rng.random((tries, len(counts))) < probability).tolist()
    for choices, flags in zip(drawn, replaced, strict=True):
        new_words = words.copy()
        for (index, options), choice, replace in zip(candidates.items(), choices, flags, strict=True):
            if replace:
                new_words[index] = options[choice]
        variant = join(new_words)
        if variant not in seen:
            seen.add(variant)
            variants.append(new_words)
    return variants


if __name__ == "__main__":
    console.run(main, HEADER.get("debug"))
