"""Processes forked from a server that has imported torch and tunebook once: the import takes seconds."""

from __future__ import annotations

import multiprocessing

#: A process has one such server, and whoever starts it decides what it imports: all scenarios name the same. Modules beside
#: this one are not among it: up to Python 3.12 the server looks for them without our `sys.path`, and passes over them in silence.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch.distributed", "tunebook.engine", "tunebook.kernels"])
