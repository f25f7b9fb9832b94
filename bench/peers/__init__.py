"""Our kernels against the fastest that anyone offers on this machine: `bigmodel bench --peers all`.

Every family of contenders runs in a worker process of its own (worker.py), where its dependencies demand it in another
virtual environment (`make peers`); conductor.py lets them take turns, families.py lists them, rows.py says what they
compute, engine_*.py how each of them computes it.
"""
