"""The dependencies of routes: the service, its model, and the decoder of bodies."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from service.http.body import Bodies
from service.http.budget import Reservation
from service.http.errors import unavailable
from service.http.waits import Waits
from service.log.errors import Stopped
from service.model import Model
from service.monitoring.status import Condition
from service.service import Service

WRONG_ROLE = "wrong_role"
"""Error code of a request that a process of another role takes."""
CODES = {
    Condition.WAITING: "log_unavailable",
    Condition.HALTED: "learning_halted",
    Condition.STANDBY: "standby",
    Condition.FOLLOWING: WRONG_ROLE,
}
"""Error codes of the conditions in which nothing is learned."""


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _bodies(request: Request) -> Bodies:
    bodies: Bodies = request.app.state.bodies
    return bodies


async def _waits(request: Request) -> Waits:
    waits: Waits = request.app.state.waits
    return waits


async def _answer_memory(request: Request) -> AsyncIterator[Reservation]:
    with request.app.state.budget.reserve() as held:
        yield held


async def running(service: Annotated[Service, Depends(_service)]) -> Model:
    """Return the model.

    Raises:
        HTTPError: 503 it has not started, or the service drains.
    """
    if service.draining.is_set():
        raise unavailable("draining", "the service is shutting down")
    if service.model is None:
        raise unavailable("starting", f"the service is starting{service.waits}")
    return service.model


async def learning(
    service: Annotated[Service, Depends(_service)], model: Annotated[Model, Depends(running)]
) -> Model:
    """Return the model, if it learns.

    Raises:
        HTTPError: 503 it does not.
    """
    try:
        model = await service.newest(model)
    except Stopped as error:
        raise unavailable("draining", str(error)) from error
    status = model.status
    if code := CODES.get(status.condition):
        raise unavailable(code, f"this service is not learning: {status.reason}")
    return model


async def deciding(model: Annotated[Model, Depends(learning)]) -> Model:
    """Return the model, if this process may take commands for it.

    Raises:
        HTTPError: 503 its learner is another process.
    """
    if model.settings.never_learns:
        message = "the process that learns takes this; this one only takes examples"
        raise unavailable(WRONG_ROLE, message)
    return model


async def informed(
    service: Annotated[Service, Depends(_service)], model: Annotated[Model, Depends(learning)]
) -> Model:
    """Return the model once its schema is known.

    Raises:
        HTTPError: 503 a replay takes longer.
    """
    if knows_schema(model):
        return model
    try:
        model = await service.informed(model)
    except Stopped as error:
        raise unavailable("draining", str(error)) from error
    if knows_schema(model):
        return model
    message = "the log is replayed, and the schema is not known yet; send these again later"
    raise unavailable("starting", message)


def knows_schema(model: Model) -> bool:
    """Return whether it is known how rows are to be read: not during a replay."""
    is_dense = model.spec.shape is not None and not model.is_open
    return is_dense or model.trainer.knows_schema


AnyService = Annotated[Service, Depends(_service)]
"""The service, even while it starts or drains."""
WaitsOf = Annotated[Waits, Depends(_waits)]
"""The count of requests that wait for their examples to be learned."""
BodiesOf = Annotated[Bodies, Depends(_bodies)]
"""The decoder of request bodies."""
AnswerMemory = Annotated[Reservation, Depends(_answer_memory)]
"""Memory of the answer, which is given back once the answer has been sent."""
Running = Annotated[Model, Depends(running)]
"""The model; 503 before it has started, and once the service drains."""
Learning = Annotated[Model, Depends(learning)]
"""The model, if it learns; 503 otherwise."""
Deciding = Annotated[Model, Depends(deciding)]
"""The model, if it learns and this process decides for it; 503 otherwise."""
Informed = Annotated[Model, Depends(informed)]
"""The model, if it learns, once its schema is known; 503 if a replay takes longer."""
