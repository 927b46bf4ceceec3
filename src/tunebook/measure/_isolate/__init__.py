"""A worker process for code that may crash, hang or fill the memory: started, limited, killed with all its children, replaced."""

from tunebook.measure._isolate._host import Host, Stage
from tunebook.measure._isolate._messages import HostError
from tunebook.measure._isolate._system import limit_memory

__all__ = ["Host", "HostError", "Stage", "limit_memory"]
