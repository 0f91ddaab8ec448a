"""Every flag of the suite, one row per flag.

`settings` derives the rest from this table: the parsers, the defaults in --help, the sample's values, what a record
holds, and what fine-tuning and the baseline inherit.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

ROOT = Path(__file__).resolve().parents[1]

# The steps of the pipeline. The last five belong to task_distill.py, where switches choose between them.
AUGMENTATION, PREGENERATION, GENERAL = "augmentation", "pregeneration", "general"
INTERMEDIATE, PREDICTION, EVALUATION = "intermediate", "prediction", "evaluation"
FINETUNE, BASELINE = "finetune", "baseline"
TASK = (INTERMEDIATE, PREDICTION, EVALUATION, FINETUNE, BASELINE)
TRAINING = (GENERAL, *TASK)
ALL = (AUGMENTATION, PREGENERATION, *TRAINING)
SCRIPTS = {AUGMENTATION: "data_augmentation.py", PREGENERATION: "pregenerate_training_data.py"}
SCRIPTS |= {GENERAL: "general_distill.py"} | dict.fromkeys(TASK, "task_distill.py")
SWITCHES = {FINETUNE: "do_finetune", EVALUATION: "do_eval", PREDICTION: "pred_distill"}

EVALUATIONS = ("do_eval", "do_predict", "predict_file", "do_export")  # what may be done with a finished student

# What a number must be, in the words of the error message.
EXPECTED = {
    "a number above 0, up to a billion": lambda value: 0 < value <= 1e9,
    "a number that is not negative, up to a billion": lambda value: 0 <= value <= 1e9,
    "0 to 1": lambda value: 0 <= value <= 1,
    "0 up to 1, 1 excluded": lambda value: 0 <= value < 1,
    "between 0 and 1": lambda value: 0 < value < 1,
    "0 or more, below 2^63": lambda value: 0 <= value < 1 << 63,
    "8 to 65535": lambda value: 8 <= value < 1 << 16,
    "-1 or more": lambda value: -1 <= value < 1e9,
}
ABOVE_0, NOT_NEGATIVE, FRACTION, BELOW_1, BETWEEN, *_ = EXPECTED
ATTENTION_LOSSES = ("scores", "relations")
INITIALIZATIONS = ("random", "teacher")
EXPORTS = ("int8", "onnx", "safetensors")


def at_root(name):
    """A path in the repository, valid from any working directory; relative if that is the repository's root."""
    return name if Path.cwd() == ROOT else str(ROOT / name)


def task_key(name):
    """A task's name without case and punctuation: sst2 for SST-2."""
    return "".join(filter(str.isalnum, name.lower()))


# Types of a flag: a file or folder; a model, given by folder, hub name or address. Defaults are in the repository.
path, model = NewType("path", str), NewType("model", str)


@dataclass(frozen=True)
class Flag:
    """One row. `default` and `sample` are a value or {step: value}, where OTHERWISE stands for all other steps."""

    type: object  # int, float, str, path, model; bool = a switch; list = several paths or choices
    help: str
    default: object = None
    sample: object = None  # its value with --sample
    expected: str = ABOVE_0  # of a number: one of EXPECTED
    choices: tuple = ()
    alias: str = ""
    by_task: tuple = ()  # the steps in which a task's row may set it
    sample_data: bool = False  # the sample's value belongs to the sample's own task
    result: bool = True  # it affects the result, so the record holds it
    heirs: tuple = (FINETUNE, BASELINE)  # the trainings inside another step that inherit a given value

    def value_at(self, step, of="default"):
        """The default, or with `of` "sample" the sample's value, for a step; None without one."""
        value = getattr(self, of)
        if isinstance(value, dict):
            step = PREDICTION if step == BASELINE else step  # what it is compared with
            value = value.get(step, value.get(OTHERWISE))
        if self.type in (path, model, list) and value is not None:
            value = at_root(value)
        return [value] if self.type is list and value is not None else value


own = functools.partial(Flag, heirs=(BASELINE,))  # concerns a step's own training; fine-tuning has its own value
distilling = functools.partial(Flag, heirs=())
mode = functools.partial(Flag, heirs=(), result=False)  # chooses what a run does, without affecting a result
NO_RESULT = {"result": False}  # concerns where or how fast a run works

OTHERWISE = "otherwise"
TEACHER, CORPUS, GLOVE = "teacher_model", "1_pre_data/documents.txt", "1_pre_data/glove.6B.100d.txt"
STUDENTS = {GENERAL: "student_model", INTERMEDIATE: "3_general_distill", PREDICTION: "4_task_distill_mid"}
STUDENTS |= {EVALUATION: "5_task_distill_out"}
OUTPUTS = {PREGENERATION: "2_pregenerate_data", GENERAL: "3_general_distill", INTERMEDIATE: "4_task_distill_mid"}
OUTPUTS |= {PREDICTION: "5_task_distill_out", EVALUATION: "5_task_distill_out"}
RATES = {OTHERWISE: 5e-5, FINETUNE: 3e-5}
EVAL_STEPS = {OTHERWISE: 50, GENERAL: 1000, FINETUNE: 500}  # a teacher of BERT-base's size writes 1.3 GB each time
PRECISION = {OTHERWISE: "auto", AUGMENTATION: "fp32"}
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
TEACHER_PRECISIONS = ("auto", "fp32", "bf16", "int8")

SAMPLE = "1_pre_data/sample"
SAMPLE_TASK = "SST-2"
SAMPLE_TEACHER, SAMPLE_DATA, SAMPLE_VECTORS = f"{SAMPLE}/teacher", f"{SAMPLE}/{SAMPLE_TASK}", f"{SAMPLE}/vectors.txt"
SAMPLE_STUDENTS = {GENERAL: f"{SAMPLE}/student"}
SAMPLE_AUGMENTED = {INTERMEDIATE: True, PREDICTION: True, EVALUATION: True}
SAMPLE_RATES = {GENERAL: 5e-4, INTERMEDIATE: 5e-4, PREDICTION: 5e-4, FINETUNE: 2e-4}
SAMPLE_EPOCHS = {GENERAL: 10.0, INTERMEDIATE: 1.5, PREDICTION: 1.0, FINETUNE: 3.0}
SAMPLE_LIMITS = {AUGMENTATION: 3000}
SAMPLE_STEPS = {OTHERWISE: 100, GENERAL: 200}
OWN_DATA = {"sample_data": True, "by_task": TASK, **NO_RESULT}

CORPUS_HELP = "files, folders or addresses of the corpus: .txt (one sentence per line, empty lines between documents), "
CORPUS_HELP += '.jsonl (one document per line, field "text"), both also .gz; remote files are fetched into the cache'
DEV_HELP = "for your own data without a dev file: the part of the training rows to use as dev, e.g. 0.1; "
DEV_HELP += "the choice does not depend on the seed; give it to every step"
UNLABELLED_HELP = "files with more texts for the two steps, which need no labels: .tsv, .csv, .jsonl with the task's "
UNLABELLED_HELP += "text columns, else a text a line (pairs: a tab between)"
VOCAB_HELP = "word pieces that the student keeps: task = those of its training text, or the most frequent N of them"

STATES_HELP = "intermediate step, on a CPU: run the teacher once instead of in every epoch, and keep its layers' "
STATES_HELP += "states on disk (float16), provided they fit into this many gigabytes (off)"

STRIDE_HELP = "answer spans: tokens from the start of a window over a long text to that of the next one (128)"
ENTITIES_HELP = "token labels: also replace tokens of entities, by others that have the same label in the training file"
TEACHER_HELP = "precision of the teacher while it teaches; int8: CPUs only, faster, hidden states some percent off; "
TEACHER_HELP += "auto: int8 on CPUs with AVX2 (default: that of --precision)"

PREDICT_HELP = "only answer the texts of this file: .tsv, .csv, .jsonl with the task's columns, else a text a line; "
PREDICT_HELP += "- = from standard input to standard output; the model's folder knows its task"

# {(heading in --help, steps): {name: row}}
FLAGS = {
    ("step", TRAINING): {"do_eval": mode(bool, "only evaluate the student, without training")},
    ("task distillation", TASK): {
        "pred_distill": distilling(bool, "prediction step; without it the intermediate step"),
        "do_finetune": mode(bool, "fine-tune the teacher on the task and stop"),
        "do_predict": mode(bool, "only write predictions for the test set, in GLUE's format"),
        "predict_file": mode(path, PREDICT_HELP),
        "do_export": mode(list, "only write the student in these forms, in folders of its own", choices=EXPORTS),
        "no_finetune": mode(bool, "never fine-tune: stop where the teacher does not know the task"),
        "baseline": mode(bool, "also train the same student without distillation, for comparison"),
        "data_dir": Flag(path, "folder with train.tsv and dev.tsv (the task's name)", None, SAMPLE_DATA, **OWN_DATA),
        "aug_train": own(bool, "train on train_aug.tsv, stage 1's output", None, SAMPLE_AUGMENTED, sample_data=True),
        "unlabelled": distilling(list, UNLABELLED_HELP),
        "student_vocab": distilling(str, VOCAB_HELP),
        "teacher_states": distilling(float, STATES_HELP),
        "temperature": distilling(float, "softens both models' logits in the prediction step", 1.0),
        "doc_stride": Flag(int, STRIDE_HELP, by_task=TASK),
        "max_query_length": Flag(int, "answer spans: tokens of a question at most (64)", by_task=TASK),
    },
    ("task", (AUGMENTATION, *TASK)): {
        "task_name": Flag(str, "a GLUE task, in upper or lower case, or a folder with your own data", SAMPLE_TASK),
        "dev_fraction": Flag(float, DEV_HELP, None, expected=BETWEEN),
    },
    ("augmentation", (AUGMENTATION,)): {
        "pretrained_bert_model": Flag(model, "a BERT with a masked-LM head", TEACHER, SAMPLE_TEACHER),
        "glove_embs": Flag(path, "word vectors as text; Chinese ones for Chinese text", GLOVE, SAMPLE_VECTORS),
        "glove_words": Flag(int, "most words to read from the vectors, 0 = all", 100_000, expected=NOT_NEGATIVE),
        "glue_dir": Flag(path, "folder of the tasks' folders", ".", SAMPLE, sample_data=True),
        "N": Flag(int, "tries per sentence; repeats are dropped", 30, 4, NOT_NEGATIVE, by_task=(AUGMENTATION,)),
        "M": Flag(int, "candidates per word", 15, 8),
        "p": Flag(float, "probability that a word is replaced, 0 to 1", 0.4, expected=FRACTION),
        "augment_entities": Flag(bool, ENTITIES_HELP),
        "batch_size": Flag(int, "masked sentences of 128 tokens per batch; more if shorter", 32, **NO_RESULT),
    },
    ("pregeneration", (PREGENERATION,)): {
        "train_corpus": Flag(list, CORPUS_HELP, CORPUS),
        "bert_model": Flag(model, "the model that has the tokenizer, or a vocabulary file", TEACHER, SAMPLE_TEACHER),
        "epochs_to_generate": Flag(int, "epoch files, each cut and paired anew", 3, 2),
        "max_seq_len": Flag(int, "tokens per sequence, including special ones", 128, 64, expected="8 to 65535"),
        "short_seq_prob": Flag(float, "fraction of sequences made shorter on purpose", 0.1, expected=FRACTION),
        "one_seq": Flag(bool, 'B always follows A; a sentence without a next one gets "."'),
        "masked_lm_prob": Flag(float, "fraction of tokens to mask, 0 = none", 0.0, expected=FRACTION),
        "max_predictions_per_seq": Flag(int, "most masked tokens per sequence", 20),
        "do_whole_word_mask": Flag(bool, "mask all pieces of a word or none"),
        "packed": Flag(bool, "write arrays of token ids instead of JSON, at a sixth of the size"),
        "num_workers": Flag(int, "processes; the output does not depend on their number", 1, **NO_RESULT),
    },
    ("general distillation", (GENERAL,)): {
        "pregenerated_data": Flag(path, "folder of stage 2's epoch files", "2_pregenerate_data", **NO_RESULT),
        "init_student": Flag(
            str, "a new student's weights: random, or projected from the teacher's", "teacher", choices=INITIALIZATIONS
        ),
        "continue_train": Flag(bool, "start from the weights in --student_model; --init_student then has no effect"),
        "keep_checkpoints": Flag(int, "number of latest step_N_pytorch_model.bin to keep", 2, **NO_RESULT),
    },
    ("models and data", TRAINING): {
        "teacher_model": Flag(model, "folder or name of the teacher", TEACHER, SAMPLE_TEACHER, heirs=(FINETUNE,)),
        "student_model": own(
            model, "folder or name of the student", STUDENTS, SAMPLE_STUDENTS, by_task=(PREDICTION, EVALUATION)
        ),
        "max_seq_length": Flag(int, "tokens per sequence; stage 3 refuses more, stage 4 cuts", 128, 64, by_task=TASK),
    },
    ("output", (PREGENERATION, *TRAINING)): {
        "output_dir": own(path, "folder for the output", OUTPUTS, by_task=TASK[:3], **NO_RESULT),
        "do_lower_case": Flag(bool, "force lower case; by default the model decides"),
    },
    ("training", TRAINING): {
        "train_batch_size": own(int, "examples per optimizer step, over all processes", 32),
        "eval_batch_size": Flag(int, "examples per evaluation batch", 32, **NO_RESULT),
        "learning_rate": own(float, "peak rate of BertAdam", RATES, SAMPLE_RATES, NOT_NEGATIVE),
        "weight_decay": own(float, "decoupled, 0 = off", 0.01, None, NOT_NEGATIVE, alias="wd"),
        "num_train_epochs": own(float, "passes over the data, e.g. 1.5", 3.0, SAMPLE_EPOCHS, by_task=(INTERMEDIATE,)),
        "warmup_proportion": own(float, "fraction of all steps with a rising rate", 0.1, expected=BELOW_1),
        "gradient_accumulation_steps": Flag(int, "parts that a batch is split into, to save memory", 1),
        "eval_step": own(int, "optimizer steps between evaluations, which also save", EVAL_STEPS, SAMPLE_STEPS),
        "pad_to_max_length": Flag(bool, "pad batches to the maximum and average over padding, as the reference does"),
        "max_steps": Flag(int, "stop after this many optimizer steps, for debugging"),
        "fp16": Flag(bool, "short for --precision fp16", **NO_RESULT),
        "compile": Flag(bool, "compile the models: takes minutes at the start, then faster on GPUs"),
    },
    ("what the student learns from", TRAINING): {
        "layer_map": distilling(str, "teacher layers: uniform, last, top, bottom, or a list: 3,6,9,12", "uniform"),
        "attention_loss": distilling(
            str, "the paper's scores, or MiniLMv2's relations for any head counts", "scores", choices=ATTENTION_LOSSES
        ),
        "attention_weight": distilling(float, "factor for attention losses", 1.0, None, NOT_NEGATIVE),
        "hidden_weight": distilling(float, "factor for hidden-state losses", 1.0, None, NOT_NEGATIVE),
        "teacher_precision": distilling(str, TEACHER_HELP, choices=TEACHER_PRECISIONS),
    },
    ("device", (AUGMENTATION, *TRAINING)): {
        "no_cuda": Flag(bool, "stay on the CPU", **NO_RESULT),
        "precision": Flag(str, "auto = bf16 if the GPU has it, else fp32 with TF32", PRECISION, choices=PRECISIONS),
    },
    ("several devices", TRAINING): {
        "local_rank": Flag(int, "this process's number; torchrun sets it", -1, None, "-1 or more", **NO_RESULT),
    },
    ("several seeds", TASK): {
        "seeds": mode(str, "1,2,3: run once for each seed, in <output_dir>/seed_N, and average the scores"),
    },
    ("memory", (PREGENERATION, GENERAL)): {
        "reduce_memory": Flag(bool, "keep token ids on disk instead of in memory", **NO_RESULT),
    },
    ("common", ALL): {
        "sample": Flag(bool, "run on the bundled sample; given flags still win", **NO_RESULT),
        "seed": Flag(int, "seed of all randomness", 42, expected="0 or more, below 2^63"),
        "overwrite_output": own(bool, "replace a finished output, or one from other flags or inputs", **NO_RESULT),
        "limit": Flag(int, "read only this many rows or documents", None, SAMPLE_LIMITS, sample_data=True),
        "cache_dir": Flag(path, "for downloads ($TINYBERT_CACHE or ~/.cache/tinybert)", **NO_RESULT),
        "data_url": Flag(str, "folder or s3://bucket/prefix to copy finished outputs to", **NO_RESULT),
        "debug": Flag(bool, "show the traceback of an error", **NO_RESULT),
    },
}


def flags_of(step):
    """{name: Flag} of a step. The baseline has only the flags that it inherits."""
    groups = (rows.items() for (_, steps), rows in FLAGS.items() if step in steps)
    return {name: flag for rows in groups for name, flag in rows if step != BASELINE or BASELINE in flag.heirs}


def _same(*names):
    return {name: name for name in names}


_OF_TASK = _same("teacher_model", "task_name", "data_dir", "max_seq_length", "do_lower_case", "cache_dir", "no_cuda")
_OF_TASK |= _same("dev_fraction", "doc_stride", "max_query_length")
_TEACHING = _same("aug_train", "unlabelled", "teacher_precision")
_OF_CORPUS = {"pregenerated_data": "output_dir", "teacher_model": "bert_model", "max_seq_length": "max_seq_len"}

# {step: (the next step, {its flag: the flag of this step that provides the value})}
NEXT = {
    AUGMENTATION: (PREGENERATION, {"bert_model": "pretrained_bert_model"}),
    PREGENERATION: (GENERAL, _OF_CORPUS | _same("do_lower_case")),
    GENERAL: (
        INTERMEDIATE,
        {"student_model": "output_dir"} | _same("teacher_model", "do_lower_case", "teacher_precision"),
    ),
    FINETUNE: (GENERAL, _same("teacher_model")),
    INTERMEDIATE: (PREDICTION, _OF_TASK | {"student_model": "output_dir"} | _TEACHING),
    PREDICTION: (EVALUATION, _OF_TASK | {"student_model": "output_dir"} | _same("output_dir")),
}
# The same for steps after which another task than the sample's goes on with its own student.
NEXT_OF_TASK = {
    AUGMENTATION: {"teacher_model": "pretrained_bert_model"}
    | _same("task_name", "dev_fraction", "cache_dir", "no_cuda"),
    FINETUNE: _OF_TASK | _same("aug_train"),
}
# For a task's step: what augmentation takes over to make the file that is missing or out of date.
AUGMENT_AGAIN = {"pretrained_bert_model": "teacher_model"}
AUGMENT_AGAIN |= _same("task_name", "dev_fraction", "cache_dir", "no_cuda")
