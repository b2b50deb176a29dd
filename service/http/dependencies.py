"""What routes ask for."""

from typing import Annotated

from fastapi import Depends, Request

from service.http.errors import unavailable
from service.service import Service


async def any_service(request: Request) -> Service:
    """Return the service, in whatever condition it is."""
    service: Service = request.app.state.service
    return service


async def running_service(service: Annotated[Service, Depends(any_service)]) -> Service:
    """Return the service if it can do work.

    Raises:
        HTTPError: 503 it is starting or draining.
    """
    if service.draining.is_set():
        raise unavailable("draining", "the service is shutting down")
    if not service.is_ready:
        raise unavailable("starting", "the service is starting")
    return service


AnyCondition = Annotated[Service, Depends(any_service)]
Running = Annotated[Service, Depends(running_service)]
