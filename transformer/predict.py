"""--do_predict: a model's predictions for the test sets, in the format of the GLUE site."""

import logging

from transformer.checkpoint import label_names
from transformer.downloads import upload
from transformer.files import atomic_write, make_folder
from transformer.glue import TASKS
from transformer.tasks.task import label_order


def predict(run, student, output_dir):
    """Write predictions for the test files of the run's task and of other tasks that its models do, if they are there:
    MNLI's models also answer the diagnostic set AX."""
    run.warn_of_untrained(student)
    model, tokenizer = run.load_finished(student)
    labels, folder, written = label_order(run.task, label_names(model.config)), make_folder(output_dir), []
    found = [(run.task, run.folder)]
    for other in TASKS.values():
        if other.trained_as != run.task.name or other.source == run.task.source:  # MNLI-mm's file is MNLI's own
            continue
        folders = (run.folder, run.folder.parent / other.name)
        found += [(other, place) for place in folders if (place / other.test_files[0]).is_file()][:1]
    # Every file is read before the first one is written, so that a bad one leaves earlier predictions as they were.
    read = [(task, run.read(task.test_files, tokenizer, labels, False, task, data_dir)) for task, data_dir in found]
    for task, sets in read:
        for name, (_, sequences) in zip(task.submissions, sets, strict=True):
            predictions = task.kind.predictions(task, run.evaluator.outputs(model, sequences), labels)
            with atomic_write(folder / name) as file:
                file.write("index\tprediction\n")
                file.writelines(f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions))
            logging.info("%d predictions: %s", len(predictions), folder / name)
            written.append(folder / name)
    upload(written, run.provenance.data_url)
