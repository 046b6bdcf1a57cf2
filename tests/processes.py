"""Fresh processes for tests, without paying the imports again: each is a fork of one server that has imported all."""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
# A test process has one such server, and what was set last holds for it: so it is set here alone.
PROCESSES.set_forkserver_preload(["tests.warm"])
