"""Faults, made on purpose in many places: what survives them, as a table.

``python -m faults``, with this folder's parent on the path, prints what was tried, how often, and
what failed. A command joins the suite by an entry of :data:`faults.work.COMMANDS`.
"""
