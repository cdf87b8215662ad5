"""Who may use the control plane: the operator. Who else is known is told so, and who proves nothing is asked for credentials.

Where a gate stands before the inference doors it knows callers by name, so that one who may not (403) is told apart from nobody
(401, RFC 9110, section 15.5.2); without one there is nobody to know but the operator.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import NoReturn

from fastapi import Depends, Request, Security, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from toprope_shared.errors import NotAdmittedError, NotAllowedError
from toprope_shared.serving.gate import Gate

OPERATOR = HTTPBearer(scheme_name="operator", description="The operator's token, keys/operator.token", auto_error=False)
_OPERATORS = "this needs the operator's token: Authorization: Bearer <keys/operator.token>"


def operator_guard(token: str, gate: Gate | None = None) -> Callable[..., Awaitable[None]]:
    """Return a dependency that lets the operator's token through and refuses whatever else as `refuse` does."""

    async def operator(request: Request, shown: HTTPAuthorizationCredentials | None = Security(OPERATOR)) -> None:
        given = shown.credentials if shown else ""
        if not hmac.compare_digest(given.encode(), token.encode()):
            refuse(request, gate, _OPERATORS)

    return operator


def guards(token: str, gate: Gate | None) -> tuple[list[params.Depends], list[params.Depends]]:
    """Return what a request must pass that changes something, and what one must that only reads.

    Args:
        token: the operator's.
        gate: of the inference doors; where there is one, reading is the operator's too.
    """
    guard = [Depends(operator_guard(token, gate))]
    return guard, guard if gate else []


def refuse(request: Request, gate: Gate | None, needs: str) -> NoReturn:
    """Refuse a request whose credentials are not those that it needs; called on the event loop, as the gate is.

    Args:
        request: what came.
        gate: knows other callers; None knows nobody.
        needs: a sentence that says which credentials would do.

    Raises:
        NotAdmittedError: there are no credentials, or they prove nobody.
        NotAllowedError: they prove somebody, who may not.
        TooManyRequestsError: he has asked too often.
    """
    caller = ""
    if gate:
        try:
            caller = gate.admit(request.headers)
        except NotAdmittedError as error:
            raise NotAdmittedError(needs) from error
    if not caller:
        raise NotAdmittedError(needs)
    raise NotAllowedError(f"{caller} may not do this; {needs}", caller=caller)
