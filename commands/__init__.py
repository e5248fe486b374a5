"""The subcommands of ``netwright``, one per file, and what they share.

A subcommand's module has ``add(subparsers)``, which declares its arguments and sets ``run``. It
imports what it works with inside of ``run``, so that ``netwright --help`` is quick.
"""
