"""`python3 -m example_project`: sets itself up, labels three days of tweets in a real Dagster instance, evaluates them.

python3 -m example_project       run everything; a second run continues from the first
python3 -m example_project ui    start only Dagster's UI, with the existing data
python3 -m example_project review       open a page of every tweet: prompt, reply, label, human label
python3 -m example_project cascade      label with the lexicon, and ask people where it is unsure, with a guarantee
python3 -m example_project documents    extract totals with quotes from PDFs, in a chain of two datasets
python3 -m example_project providers    label through eight emulated clouds, in one process
python3 -m example_project stream       label a Kafka topic by batch, student and real time, in one definition
"""

from example_project import bootstrap
from example_project.arguments import read_command

if __name__ == "__main__":
    wanted = "dev" if read_command() in ("providers", "stream") else "example"  # dev has all SDKs, and a broker
    bootstrap.enter("example_project", wanted)  # returns inside the environment, where the rest can be imported
    from example_project.cli import main

    main()
