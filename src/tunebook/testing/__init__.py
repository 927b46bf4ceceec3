"""What is promised by whoever writes a runner, an op, a format or a device, as checks that a test can call.

    from tunebook.testing import cases_of

    @pytest.mark.parametrize("case", cases_of(project, ["demo::project|…|M≤16"]), ids=str)
    def test_contract(case):
        case.check()

A promise that is broken raises `ContractError`, in one line that names the thing and the remedy.
"""

from tunebook.testing._cases import Case, cases_of
from tunebook.testing._device import check_device
from tunebook.testing._failure import ContractError, UnavailableError
from tunebook.testing._format import check_format
from tunebook.testing._op import check_op
from tunebook.testing._runner import check_runner

__all__ = [
    "Case",
    "ContractError",
    "UnavailableError",
    "cases_of",
    "check_device",
    "check_format",
    "check_op",
    "check_runner",
]
