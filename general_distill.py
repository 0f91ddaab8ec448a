"""Stage 3: general distillation. A pre-trained teacher's layers teach a small student, on any text (section 3.2).

For every batch, teacher and student read the same tokens. Each student layer m is pulled towards the teacher layer g(m)
that it maps to: its attention scores (equation 7) and, through a linear map, its hidden states (equation 8); the
student's embeddings towards the teacher's (equation 9). No labels, no masked LM: general distillation has no prediction
layer.

Reads:   --pregenerated_data (stage 2), --teacher_model, --student_model (config.json; its weights too with
         --continue_train)
Writes:  <output_dir>/pytorch_model.bin (the latest), step_N_pytorch_model.bin, config.json, vocab.txt,
         tokenizer_config.json, log.txt, train_log.jsonl, curves.png (with matplotlib)

    python general_distill.py --pregenerated_data 2_pregenerate_data --teacher_model teacher_model \\
        --student_model student_model --output_dir 3_general_distill --do_lower_case
    python general_distill.py --sample

第三步：通用蒸馏。教师的注意力与隐藏层逐层教学生，得到通用学生模型。
"""

import logging
import math
import time

import numpy as np

from transformer import stages
from transformer.data import pregenerated_epochs, read_epoch
from transformer.distillation import check_pair, check_same_vocabulary
from transformer.downloads import model_folder, upload
from transformer.files import UserError, make_folder
from transformer.initialization import initialize_from_teacher
from transformer.modeling import WEIGHTS_NAME, BertConfig, TinyBertForPreTraining, check_vocabulary, describe
from transformer.optimization import BertAdam, decay_groups
from transformer.stages import flag
from transformer.tokenization import BertTokenizer
from transformer.training import (
    Plan,
    TrainingRun,
    add_training_flags,
    begin,
    claim,
    format_results,
    launch,
    leave,
    mean_losses,
    transformer_learner,
)

# For debugging in an editor: a flag's value put here replaces its default, e.g. {"sample": True, "max_steps": 20}.
HEADER = {}

INIT_SEQUENCES = 256  # that --init_student teacher looks at


def parse_args(argv=None):
    parser = stages.make_parser(__doc__)
    group = parser.add_argument_group("input and output")
    flag(group, "--pregenerated_data", help="folder of stage 2's epoch files (2_pregenerate_data)")
    flag(group, "--teacher_model", help="folder or name of the teacher (teacher_model)")
    flag(group, "--student_model", help="folder of the student's config.json (student_model)")
    flag(group, "--output_dir", help="folder of the general student (3_general_distill)")
    flag(group, "--cache_dir", help="where downloaded models are kept")
    flag(group, "--max_seq_length", type=int, help="longest sequence; at least stage 2's --max_seq_len (128)")
    flag(group, "--do_lower_case", action="store_true", help="force lower case; without it the model decides")
    flag(group, "--reduce_memory", action="store_true", help="keep ids that cannot be mapped in a file, not in memory")
    flag(group, "--continue_train", action="store_true", help="start from the student's weights, not at random")
    flag(
        group,
        "--init_student",
        choices=["random", "teacher"],
        help="a new student's weights: drawn at random, or projected from the teacher's (teacher)",
    )
    flag(group, "--keep_checkpoints", type=int, help="how many of the latest step_N_pytorch_model.bin stay (2)")
    flag(group, "--do_eval", action="store_true", help="only measure the losses of --output_dir's student")
    add_training_flags(parser)
    stages.add_common_flags(parser, "max_steps")
    args = parser.parse_args(argv)
    sample = stages.SAMPLE_GENERAL_DISTILLATION if args.sample or HEADER.get("sample") else {}
    args.origins = stages.settle(
        args, ("script header", HEADER), ("sample", sample), ("default", stages.GENERAL_DISTILLATION)
    )
    stages.check_training(args)
    stages.check_positive(args, "keep_checkpoints")
    return args


def main():
    args, started = parse_args(), time.monotonic()
    place = launch(args)
    output = make_folder(args.output_dir)
    stages.set_up_logging(quiet=not place.first)
    logging.info("general distillation on %s", place)
    stages.print_settings(args)
    epochs = pregenerated_epochs(args.pregenerated_data)
    teacher_folder = model_folder(args.teacher_model, args.cache_dir)
    tokenizer = BertTokenizer.from_pretrained(teacher_folder, args.do_lower_case)
    teacher = load_teacher(teacher_folder, tokenizer, place)
    if args.do_eval:
        if place.first:
            evaluate_output(output, teacher, epochs, tokenizer, args, place)
        return leave(place)

    student_folder = model_folder(args.student_model, args.cache_dir, need_weights=bool(args.continue_train))
    student = make_student(student_folder, teacher, tokenizer, args).to(place.device)
    inputs = {
        "teacher_model": teacher_folder,
        "student_model": student_folder,
        **{path.name: path for path, _ in epochs},
    }
    record = stages.OutputRecord(output / "run.json", output / WEIGHTS_NAME, "general_distill", args, inputs)
    status, done = claim(record, stages.model_outputs(output), args.overwrite_output, place), ""
    if status != "finished":
        logging.info("teacher %s", describe(teacher))
        logging.info("student %s", describe(student))
        done = distill(student, teacher, epochs, tokenizer, record, args, place)
        if place.first:
            record.finish()
    if place.first:
        upload([output], args.data_url)
    stages.sum_up(status, output / WEIGHTS_NAME, started, done)
    sample = stages.SAMPLE_TASK_STEPS["intermediate"] if args.sample else {}
    flags = {"teacher_model": args.teacher_model, "student_model": args.output_dir, "do_lower_case": args.do_lower_case}
    stages.hint_next("task_distill.py", args, flags, {**stages.TASK_STEPS["intermediate"], **sample})


def load_teacher(folder, tokenizer, place):
    """The pre-trained teacher, on its device."""
    teacher = TinyBertForPreTraining.from_pretrained(folder, fit_size=None)
    check_vocabulary(teacher.config, tokenizer, folder)
    return teacher.to(place.device)


def make_student(folder, teacher, tokenizer, args):
    """A student with a projection onto the teacher's width: new, or with --continue_train from its weights."""
    config = BertConfig.from_pretrained(folder, fit_size=teacher.config.hidden_size)
    if not args.continue_train and config.vocab_size != teacher.config.vocab_size:
        # The student reads with its teacher's vocabulary, whatever the language.
        logging.info("student: vocab_size %d, as the teacher's, not %d", teacher.config.vocab_size, config.vocab_size)
        config.vocab_size = teacher.config.vocab_size
    check_student(config, folder, teacher, tokenizer, args)
    if not args.continue_train:
        return TinyBertForPreTraining(config)
    check_same_vocabulary(tokenizer, folder)
    return TinyBertForPreTraining.from_pretrained(folder, fit_size=teacher.config.hidden_size)


def check_student(config, folder, teacher, tokenizer, args):
    """Raise UserError for a student that this teacher cannot teach with these flags."""
    check_pair(config, teacher.config, args.layer_map, args.attention_loss)
    check_vocabulary(config, tokenizer, folder)
    for who, its_config in (("student", config), ("teacher", teacher.config)):
        positions = its_config.max_position_embeddings
        if args.max_seq_length > positions:
            raise UserError(f"--max_seq_length {args.max_seq_length}: the {who} has {positions} positions")


def distill(student, teacher, epochs, tokenizer, record, args, place):
    """Train the student over the epochs. Returns a phrase: sequences in, steps."""
    output = record.path.parent
    learner = transformer_learner(student, teacher, args)
    read = epoch_reader(epochs, tokenizer, output, args)
    first = read(0)  # a file that cannot be used is found before anything is written
    sizes = [min(metrics["num_training_examples"], args.limit or math.inf) for _, metrics in epochs]
    plan = Plan(
        read,
        sizes,
        args.train_batch_size,
        args.num_train_epochs,
        args.seed,
        args.max_steps,
        bucketed=not args.pad_to_max_length,
    )
    optimizer = BertAdam(
        decay_groups(student, args.weight_decay),
        args.learning_rate,
        args.warmup_proportion,
        plan.total_steps,
        "warmup_linear",
    )
    run = TrainingRun(
        output,
        learner,
        optimizer,
        plan,
        place,
        eval_step=args.eval_step,
        keep_step_files=args.keep_checkpoints,
        compiled=args.compile,
        accumulation=args.gradient_accumulation_steps,
        pad_token_id=tokenizer.pad_token_id,
        pad_to=args.max_seq_length if args.pad_to_max_length else None,
    )
    begin(record, place)
    if place.first:
        stages.log_to(output / "log.txt")
        student.config.save_pretrained(output, student.architecture)
        tokenizer.save_pretrained(output)
    logging.info("%d sequences, %d steps", sum(sizes), plan.total_steps)
    if args.init_student == "teacher" and not args.continue_train and not run.has_state():
        start_from_teacher(student, teacher, first, tokenizer, learner.mapping, place)
    run.train()
    run.finish()
    return f"{sum(sizes)} sequences in, {plan.total_steps} steps of {args.train_batch_size}"


def start_from_teacher(student, teacher, sequences, tokenizer, mapping, place):
    """Project the teacher's weights onto the student's width, by what some of the sequences look like inside it."""
    logging.info("student's weights from the teacher's, by %d sequences", min(INIT_SEQUENCES, len(sequences)))
    rows = np.random.default_rng(0).permutation(len(sequences))[:INIT_SEQUENCES]
    batches = (
        place.to_device(sequences.batch(rows[start : start + 16], tokenizer.pad_token_id))
        for start in range(0, len(rows), 16)
    )
    initialize_from_teacher(student, teacher, mapping, batches)


def epoch_reader(epochs, tokenizer, output, args):
    """A function from the number of a pass to its Sequences; the files are used in turn, one at a time in memory."""
    latest = {}

    def read(number):
        index = number % len(epochs)
        if index not in latest:
            latest.clear()
            path, metrics = epochs[index]
            folder = output if args.reduce_memory else None
            latest[index] = read_epoch(path, metrics, tokenizer, args.max_seq_length, folder, args.limit)
        return latest[index]

    return read


def evaluate_output(output, teacher, epochs, tokenizer, args, place):
    """--do_eval: the losses of the student in --output_dir over the first epoch file, without training."""
    student = TinyBertForPreTraining.from_pretrained(output).to(place.device)
    check_student(student.config, output, teacher, tokenizer, args)
    check_same_vocabulary(tokenizer, output)
    if student.config.fit_size != teacher.config.hidden_size:
        raise UserError(
            f"{output}: its projection is onto width {student.config.fit_size}, the teacher has "
            f"{teacher.config.hidden_size}; give the teacher that taught it"
        )
    learner = transformer_learner(student, teacher, args).eval()
    sequences = epoch_reader(epochs, tokenizer, output, args)(0)
    results = mean_losses(
        learner,
        sequences,
        args.eval_batch_size,
        place,
        tokenizer.pad_token_id,
        args.max_seq_length if args.pad_to_max_length else None,
    )
    stages.write_results(output / "eval_results.txt", results)
    logging.info("%s", format_results(results))


if __name__ == "__main__":
    stages.run(main)
