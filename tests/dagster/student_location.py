"""What `dagster-llm-batch answer` loads in a process of its own: an asset that holds a student."""

import dagster as dg

from dagster_llm_batch import HiveParquetIOManager


@dg.asset(name="student")
def stored() -> None:
    """A student, which a test has stored in its place."""


defs = dg.Definitions(assets=[stored], resources={"io_manager": HiveParquetIOManager(root=dg.EnvVar("TABLES"))})
