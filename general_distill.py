"""Stage 3: general distillation. A pre-trained teacher's layers teach a small student, on any text (section 3.2).

Teacher and student read the same batches. Student layer m learns from teacher layer g(m): it matches the attention
scores (equation 7) and, through a linear map, the hidden states (equation 8). The student's embeddings match the
teacher's (equation 9). There are no labels, no masked LM and no prediction loss.

Reads:   --pregenerated_data (stage 2), --teacher_model, --student_model (config.json, with --continue_train weights)
Writes:  <output_dir>/pytorch_model.bin (the latest), step_N_pytorch_model.bin, config.json, vocab.txt,
         tokenizer_config.json, log.txt, train_log.jsonl, curves.png (with matplotlib)

A run that was stopped or killed resumes when the same command is given again; --continue_train is not needed for that.

    python general_distill.py --pregenerated_data 2_pregenerate_data --teacher_model teacher_model \\
        --student_model student_model --output_dir 3_general_distill --do_lower_case
    python general_distill.py --sample

第三步：通用蒸馏。教师的注意力与隐藏层逐层教学生，得到通用学生模型。
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from transformer import console, distillation, processes
from transformer.checkpoint import WEIGHTS_NAME, check_float, check_positions, check_vocabulary, describe
from transformer.downloads import check_finished, model_folder
from transformer.epochs import Epochs
from transformer.evaluation import Evaluator
from transformer.files import UserError
from transformer.flags import GENERAL
from transformer.initialization import initialize_from_teacher
from transformer.modeling import BertConfig, TinyBertForPreTraining
from transformer.outputs import RESULTS_NAME, Output, holding, read_record, write_results
from transformer.quantization import set_precision
from transformer.settings import Batching, Matching, Schedule, read_command_line, settings_for
from transformer.tokenization import BertTokenizer
from transformer.training import Plan, TrainingRun

# For debugging, uncomment lines here. A flag on the command line wins over a line here.
HEADER = {
    # "sample": True,  # the bundled small models and text
    # "limit": 100,  # sequences of each epoch
    # "max_steps": 20,  # optimizer steps
    # "pregenerated_data": "2_pregenerate_data",
    # "teacher_model": "teacher_model",
    # "student_model": "student_model",
    # "output_dir": "3_general_distill",
    # "train_batch_size": 32,
    # "learning_rate": 5e-5,
    # "num_train_epochs": 3.0,
    # "eval_step": 1000,
    # "max_seq_length": 128,
    # "overwrite_output": True,  # replace existing output
    # "no_cuda": True,  # stay on the CPU
    # "debug": True,  # tracebacks
}

INIT_SEQUENCES = 64  # that --init_student teacher reads; with 32 to 512 the losses of the first step are the same


def read_settings(argv=None):
    """The settings of this stage, from the command line, HEADER and the flag table."""
    return settings_for(GENERAL, read_command_line(__doc__, GENERAL, argv), HEADER)


def main():
    settings = read_settings()
    matching, schedule, batching = settings.part(Matching), settings.part(Schedule), settings.part(Batching)
    here = processes.start(*settings.processes)
    console.set_up_logging(quiet=not here.first)
    logging.info("general distillation on %s", here)
    settings.log()

    # The teacher, and the text. The student uses the teacher's tokenizer: they are compared token by token.
    output_dir, length = Path(settings.output_dir), settings.max_seq_length
    teacher_folder = model_folder(settings.teacher_model, settings.cache_dir)
    tokenizer = BertTokenizer.from_pretrained(teacher_folder, settings.do_lower_case)
    ids_folder, padded = output_dir if settings.reduce_memory else None, settings.pad_to_max_length
    epochs = Epochs(settings.pregenerated_data, tokenizer, length, ids_folder, settings.limit, padded)
    teacher = TinyBertForPreTraining.from_pretrained(teacher_folder, fit_size=None).to(here.device)
    check_vocabulary(teacher.config, tokenizer, teacher_folder)

    # --do_eval: measure the losses of a finished student.
    if settings.do_eval:
        with holding(output_dir, output_dir, here):
            here.from_first(lambda: check_own(output_dir))
            # The losses compare hidden states through the trained projection; a new one would make them meaningless.
            student = load_student(output_dir, teacher, tokenizer, fresh_projection=False)
            learner = make_learner(student.to(here.device), teacher, matching, length)
            if here.first:
                results = Evaluator(settings.eval_batch_size, here).losses(learner, epochs.read(0))
                write_results(output_dir / RESULTS_NAME, results)
                logging.info("%s", console.format_results(results))
        return here.leave()

    # Otherwise train one.
    student_folder = model_folder(settings.student_model, settings.cache_dir, bool(settings.continue_train))
    inputs = {"teacher_model": teacher_folder, "student_model": student_folder, **epochs.inputs}
    following = settings.next_command()
    with Output(output_dir / WEIGHTS_NAME, settings.provenance, inputs, here, following) as output:
        if not output.finished:
            student = (load_student if settings.continue_train else new_student)(student_folder, teacher, tokenizer)
            learner = make_learner(student.to(here.device), teacher, matching, length)
            from_teacher = settings.init_student == "teacher" and not settings.continue_train
            distill(learner, epochs, tokenizer, schedule, batching, from_teacher, settings.keep_checkpoints, output)
    if not settings.sample:
        logging.info("the task there is SST-2; --task_name chooses another, of GLUE or a folder with your own data")
    here.leave()


def check_own(folder):
    """Raise UserError where a folder has no finished student of this stage: its results must not replace others."""
    check_finished(folder)
    maker = read_record(folder).get("script", "general_distill")
    if maker != "general_distill":
        raise UserError(f"{folder}: has the output of {maker}; expected a student of general_distill.py")


def make_learner(student, teacher, matching, max_seq_length):
    """The module whose forward gives the losses of a batch: two per student layer, attention and hidden states.

    --layer_map chooses the teacher layer g(m) for student layer m. Layer 0, the embeddings, has only the second loss.
    Raises UserError where the models and the sequence length do not fit together.
    """
    for who, config in (("teacher", teacher.config), ("student", student.config)):
        check_positions(config, max_seq_length, f"the {who}")
    # MiniLMv2's relations do not need equal head counts; the paper's scores do.
    relations = matching.attention_loss == "relations"
    return distillation.TransformerLearner(
        student,
        teacher,
        attention=distillation.relation_loss if relations else distillation.attention_loss,  # equation 7
        hidden=distillation.hidden_loss,  # equation 8, and at the embeddings equation 9
        matching=matching,
    )


def distill(learner, epochs, tokenizer, schedule, batching, from_teacher, keep_checkpoints, output):
    """Train the student over the epochs. `from_teacher`: initialize its weights from the teacher's."""
    student, here = learner.student, output.processes
    logging.info("teacher %s", describe(learner.teacher))
    logging.info("student %s", describe(student))
    first = epochs.read(0)  # before output.begin(): bad input must not cost the user an earlier output
    plan = Plan(epochs.read, epochs.sizes, schedule, batching)
    run = TrainingRun(output.folder, learner, plan, here, "warmup_linear", keep_step_files=keep_checkpoints)
    output.begin()
    if output.replaced is not None:  # a new log
        first.log_example(tokenizer)
    if here.first:
        student.config.save_pretrained(output.folder, student.architecture)
        tokenizer.save_pretrained(output.folder, student.config.max_position_embeddings)
    logging.info("%d sequences, %d steps", sum(epochs.sizes), plan.total_steps)
    if from_teacher and not run.has_state():  # a saved state holds weights that have already learned
        logging.info("student's weights from the teacher's, by %d sequences", min(INIT_SEQUENCES, len(first)))
        start_from_teacher(learner, first, here)
    set_precision(learner.teacher, here)
    run.train()
    run.finish()
    output.finish(f"{sum(epochs.sizes)} sequences in, {plan.total_steps} steps of {batching.train_batch_size}")


def start_from_teacher(learner, first, here):
    """Set the student's weights from its teacher's, as --init_student teacher does. `first`: epoch 0's Sequences."""
    # Seed 0 whatever --seed is, so that runs with different seeds start from the same weights.
    rows = np.random.default_rng(0).permutation(len(first))[:INIT_SEQUENCES]
    text = replace(first, pad_to=None)  # padding is not looked at here and would only cost time
    batches = (here.to_device(text.batch(rows[start : start + 16])) for start in range(0, len(rows), 16))
    initialize_from_teacher(learner.student, learner.teacher, learner.mapping, batches)


def new_student(folder, teacher, tokenizer):
    """A randomly initialized student of the size in config.json, with a projection onto the teacher's width."""
    config = BertConfig.from_pretrained(folder, fit_size=teacher.config.hidden_size, quantized=None)
    if config.vocab_size != teacher.config.vocab_size:
        # Both models read the same token ids, so the teacher's vocabulary decides, whatever the language.
        logging.info("student: vocab_size %d, as the teacher's, not %d", teacher.config.vocab_size, config.vocab_size)
        config.vocab_size = teacher.config.vocab_size
    return TinyBertForPreTraining(config)


def load_student(folder, teacher, tokenizer, fresh_projection=True):
    """A student with the weights in `folder`. Raises UserError where this teacher cannot teach it. `fresh_projection`:
    allow a new random projection where the saved one is for a teacher of another width."""
    distillation.check_same_vocabulary(tokenizer, folder)
    width, own = teacher.config.hidden_size, BertConfig.from_pretrained(folder).fit_size
    if own != width and not fresh_projection:
        told = f"{folder}: its projection is onto width {own}, the teacher has {width}"
        raise UserError(f"{told}; give the teacher that taught it")
    student = TinyBertForPreTraining.from_pretrained(folder, fit_size=width)
    check_float(student.config, folder)
    check_vocabulary(student.config, tokenizer, folder)
    return student


if __name__ == "__main__":
    console.run(main, HEADER.get("debug"))
