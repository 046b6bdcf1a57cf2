"""What holds for all tests."""

import os
from contextlib import suppress

with suppress(ModuleNotFoundError):  # engines with an environment of their own do without it
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # a machine that does other work is no defect
    settings.load_profile("untimed")

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # it asks for each bucket's kind at Google itself
