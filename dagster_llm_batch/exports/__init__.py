"""Labels as files to train on: tables in several formats, and examples for fine-tuning. Each includes its provenance.

write_table(labels, "labels.tfrecord")
write_examples(fine_tuning(definition, rows, labels), "train.jsonl")
"""

from dagster_llm_batch.exports.fine_tuning import Example, fine_tuning, write_examples
from dagster_llm_batch.exports.tables import FORMATS, write_table

__all__ = ["FORMATS", "Example", "fine_tuning", "write_examples", "write_table"]
