"""`python3 -m example_project`: sets itself up, labels three days of tweets in a real Dagster instance, evaluates them.

python3 -m example_project       all of it; a second run goes on from the first
python3 -m example_project ui    only Dagster's UI, on what is there
python3 -m example_project review       a page to look at every tweet: prompt, reply, label, what people said
python3 -m example_project cascade      the lexicon, and the model where it is unsure, with a promise held to
python3 -m example_project providers    the same labeling through eight emulated clouds, in one process
python3 -m example_project stream       batch, a student and real time over a Kafka topic, in one definition
"""

from example_project import bootstrap
from example_project.arguments import read_command

if __name__ == "__main__":
    wanted = "dev" if read_command() in ("providers", "stream") else "example"  # dev has all SDKs, and a broker
    bootstrap.enter("example_project", wanted)  # returns inside the environment, where the rest can be imported
    from example_project.cli import main

    main()
