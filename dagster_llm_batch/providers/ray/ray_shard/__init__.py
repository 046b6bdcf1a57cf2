"""Code that runs on the Ray cluster for one shard: the module `ray_shard`, with a folder and the id of a Ray job.

It travels with the job as one of its `py_modules`, so it imports only the standard library and the packages of
`ray[data]` (pyarrow, requests), and nothing else of this package.

    FOLDER/requests.jsonl                    OpenAI batch lines       written before the job is submitted
    FOLDER/plan.json                         how they are answered     "
    FOLDER/<submission id>.started.json      the job has begun
    FOLDER/results/<digest>-<rows>.jsonl     result lines of some rows; each file is whole or absent
    FOLDER/<submission id>.ended.json        every row has its line
"""
