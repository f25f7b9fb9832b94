"""The benchmark suite, installed as `bigmodel_bench`: `bigmodel bench` runs it, and so does pytest (`make bench`).

A file per op says which cases there are and what a PyTorch user would call instead; harness.py takes times, memory.py
and run.py the rest of a row; machine.py measures the ceilings; record.py keeps a run, report.py and compare.py show it.
"""
