"""``Program`` -> ``Executable``: machine code, memory and threads.

- machine code: ``jit``, ``cache``, ``compile_workers``
- running it: ``executable``, ``memory``, ``native_call``, ``timed``
- threads: ``pool``, ``team``, ``placement``
- the machine and the user's settings: ``probe``, ``settings``
"""
