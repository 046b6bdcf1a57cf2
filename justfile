# The same verbs as `python3 -m …`; both set themselves up.

# The example: labels, costs and an evaluation, in a real Dagster
example:
    python3 -m example_project

# Dagster's UI on what the example has made
ui:
    python3 -m example_project ui

# The tests of ten minutes, all that CI runs (`just test all`), or some of: style, types, imports, wheel, slow
test *steps:
    python3 -m tests {{ steps }}

# Pin the newest versions of all requirements
pin:
    sh requirements/compile.sh --upgrade
