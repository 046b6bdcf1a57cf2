"""The code location that `dagster-llm-batch answer` loads in a separate process: an asset that holds a student."""

import dagster as dg

from dagster_llm_batch import HiveParquetIOManager


@dg.asset(name="student")
def stored() -> None:
    """Stand for a student that a test has stored."""


defs = dg.Definitions(assets=[stored], resources={"io_manager": HiveParquetIOManager(root=dg.EnvVar("TABLES"))})
