"""Segments on several workers: processes, threads, a cluster, or any other executor, with the same archive in the end.

`jobs` is what runs in a worker, `processes` and `cluster` are executors, `crew` keeps a bounded number of jobs on one
and gives the results in order, `encoding` and `decoding` are the two directions.
"""
