"""What a process of several does, given JOB: the environment it is to find, where its output goes, and what it runs."""

import os
import runpy
import sys
from typing import Any

import torch

JOB: dict[str, Any] = globals()["JOB"]

os.environ.update(JOB["environment"])
output = os.open(JOB["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
for stream in (1, 2):
    os.dup2(output, stream)
torch.set_num_threads(1)
sys.argv = ["train", *JOB["arguments"]]
if JOB["code"]:
    exec(JOB["code"], {"__name__": "__main__"})
else:
    runpy.run_module("qwenimage_training", run_name="__main__")
