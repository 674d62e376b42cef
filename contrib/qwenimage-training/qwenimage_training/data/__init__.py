"""The data side of training: metadata -> rows with their pictures -> batches of one size.

    arguments.py    what can be said about a dataset        metadata.py   csv, json, jsonl, caption folders -> records
    files.py        names in records -> files inside a root  pictures.py   reading and cutting to size
    rows.py         a record -> a row with loaded pictures   buckets.py    sizes of targets
    batches.py      which rows form which batch              dropout.py    leaving out captions and conditions
    dataset.py      all of it as a torch dataset             check.py      what is wrong with a dataset, before training

Only dataset.py imports torch.
"""
