"""A command on this machine that reads a batch file and writes the results, in a separate process."""
