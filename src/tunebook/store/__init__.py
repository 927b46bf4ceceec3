"""Where results are kept: the cache and its policies, run files, and every way in which a file cannot be served."""

from tunebook.store.cache import MAX_CACHE_BYTES, CacheContents, read_any, read_cache
from tunebook.store.location import Location
from tunebook.store.misses import Miss, MissKind
from tunebook.store.policy import Policy, ResolvedPolicy, resolve_policy
from tunebook.store.publish import Published, publish
from tunebook.store.run_files import MAX_RUN_BYTES, Run, read_run
from tunebook.store.run_writer import RunWriter
from tunebook.store.sessions import new_session_id

__all__ = [
    "MAX_CACHE_BYTES",
    "MAX_RUN_BYTES",
    "CacheContents",
    "Location",
    "Miss",
    "MissKind",
    "Policy",
    "Published",
    "ResolvedPolicy",
    "Run",
    "RunWriter",
    "new_session_id",
    "publish",
    "read_any",
    "read_cache",
    "read_run",
    "resolve_policy",
]
