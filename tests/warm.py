"""All that a worker process imports late, imported once by the server that `tests.processes` forks them from."""

import gc
import importlib

_LATE = (
    "anthropic.resources.messages.batches",
    "anyio._backends._asyncio",
    "boto3.s3.inject",
    "boto3.s3.transfer",
    "dagster_llm_batch.testing.emulator",
    "genai_prices.data",
    "genai_prices.decompose",
    "genai_prices.validation",
    "google.cloud.storage",
    "google.genai",
    "google_crc32c",
    "httpcore",
    "httpcore2",
    "openai.resources.batches",
    "openai.resources.files",
    "pandas",
    "psycopg2",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "sqlalchemy.dialects.sqlite",
    "tests.crash.worker",
    "upath.implementations.local",
)
for _name in _LATE:
    importlib.import_module(_name)
gc.freeze()  # otherwise a worker looks through all this for garbage, and thereby copies its pages
