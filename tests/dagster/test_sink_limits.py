"""What the IO manager of the labels cannot store is refused before a request is sent; other partitions go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from code_location import labeled

from dagster_llm_batch import HiveParquetIOManager
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.storage import names

LONG = "k" * 300
NULL = "__HIVE_DEFAULT_PARTITION__"
