"""A page on loopback on which people look at the rows of a deployment, `dagster-llm-batch review`, and the way of
rows to other tools.

tables.py        stored tables, filtered and paged in place by DuckDB
stored_rows.py   the files of one table as rows, whatever files and columns are named
overview.py      the first page: how good the labels are, and what to do next
samples.py        the rows of a gold sample, with their texts and what people answered
evaluation_page.py  one evaluation in words, with its confusions and its change
evidence.py      what was sent and what came back for one request
comparison.py    a mistake beside gold and the labels of all candidates
prompts.py       a request body of any vendor as the messages that a person reads
tasks.py         rows as tasks of Label Studio, Argilla and spreadsheets
task_answers.py  what people said there, read back
server.py        the pages, and who may see them
"""
