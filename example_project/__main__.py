"""`python3 -m example_project`: sets itself up, labels three days of tweets in a real Dagster instance, evaluates them.

python3 -m example_project       all of it; a second run goes on from the first
python3 -m example_project ui    only Dagster's UI, on what is there
"""

from example_project import bootstrap

if __name__ == "__main__":
    bootstrap.enter("example_project")  # returns inside the environment, where the rest can be imported
    from example_project.cli import main

    main()
