"""``POST /predict``: labels and probabilities from the newest snapshot."""

from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from service.http.body import JSON, SAFETENSORS, check_number, content_type, decoded, read_body
from service.http.dependencies import Running
from service.http.errors import ErrorBody, HTTPError
from streams.batch import Features, check_features, decode_features
from streams.json_batch import features_from_json

router = APIRouter()


class Inputs(BaseModel):
    """Examples without labels."""

    features: list[list[float]] = Field(examples=[[[0.0, 0.5, 1.0]]])


class Predictions(BaseModel):
    """Answers in the order of the examples."""

    labels: list[int]
    probabilities: list[list[float]] | None = None
    """[n, classes]."""
    model_version: int


BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {"schema": Inputs.model_json_schema()},
        SAFETENSORS: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "safetensors: features [n, d] uint8, float16 or float32",
            }
        },
    },
}


@router.post(
    "/predict",
    response_model=Predictions,
    responses={s: {"model": ErrorBody} for s in (401, 403, 408, 413, 415, 422, 503)},
    openapi_extra={"requestBody": BODY},
)
async def predict(
    request: Request,
    service: Running,
    probabilities: Annotated[bool, Query(description="false leaves them out")] = True,
) -> Response:
    """Predict; changes nothing."""
    kind = content_type(request, JSON, SAFETENSORS)
    body = await read_body(request, service.settings.max_body_bytes)
    width = service.settings.features

    def read(body: bytes) -> Features:
        features = features_from_json(body, width) if kind == JSON else decode_features(body)
        check_number(len(features))
        check_features(features, width)
        return features

    features = await decoded(read, body, kind)
    assert service.predictor is not None
    with service.metrics.predict_seconds.time():
        prediction = await service.predictor.predict(features)
    finite = np.isfinite(prediction.probabilities).all(axis=1)
    if not finite.all():
        raise HTTPError(
            422,
            "no_prediction",
            "the model's answer for this example is not finite",
            "features",
            int(finite.argmin()),
        )
    answer: dict[str, Any] = {"labels": prediction.labels}
    if probabilities:
        answer["probabilities"] = prediction.probabilities
    answer["model_version"] = prediction.version
    return Response(
        orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
    )
