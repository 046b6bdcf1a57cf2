"""A page on loopback on which people look at the rows of a deployment, `dagster-llm-batch review`, and the way of
rows to other tools.

tables.py        stored tables, filtered and paged in place by DuckDB
stored_rows.py   the files of one table as rows, with any names of files and columns
overview.py      the first page: how good the labels are, and the next step
samples.py        the rows of a gold sample, with their texts and people's answers
evaluation_page.py  one evaluation in words, with its confusions and its change
evidence.py      the stored request and replies of one row
comparison.py    a mistake next to gold and the labels of all candidates
prompts.py       a request body of any vendor as the messages that a person reads
tasks.py         rows as tasks of Label Studio, Argilla and spreadsheets
task_answers.py  people's answers in these tools, read back
server.py        the pages, and who may see them
"""
