"""Graph -> Graph, one pass per file; docs/passes.md has them all, in the order in which they run.

What passes share:

- rewriting a graph, and saying what was done: ``rewriting``; forming kernels: ``region``
- questions about values: ``state``, ``rows``, ``views``; numbers that change: ``number_inputs``
- for the memory plan: ``arena``, ``commits``, ``in_place``, ``parts``, ``live_set``
"""
