"""`bigmodel tune`: which launches of the Triton kernels are fastest on the device that is here.

It never runs by itself. For each problem (a kind of product of some sizes, a pass of attention of some head size) it
times a filtered list of candidates, wider than the default tables, holds the fastest against the reference, and keeps
the best that passes on disk (tuned_launches.py), where launchers find it.
"""
