"""The requests and responses of /v1, as in its OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from densekit.serve.batcher import Ask
from densekit.serve.bodies import JSON, MULTIPART, RAW, JsonImages

MOST_CLASSES = 32
"""Classes whose maps one request may ask for."""


class AskQuery(BaseModel):
    """A request's URL parameters; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")
    topk: int = Field(5, ge=1, le=1_000_000, description="Answers per image.")
    cam: str | None = Field(
        None,
        pattern=r"^(answers|[0-9]{1,7}(,[0-9]{1,7})*)$",
        max_length=300,
        description="Class activation maps: of these classes' numbers (`3` or `3,7`), or "
        "`answers`, of each answer's class.",
        examples=["answers", "3,7"],
    )

    @field_validator("cam")
    @classmethod
    def _few(cls, cam: str | None) -> str | None:
        if cam is not None and cam.count(",") >= MOST_CLASSES:
            raise ValueError(f"at most {MOST_CLASSES} classes")
        return cam

    def ask(self) -> Ask:
        if self.cam is None or self.cam == "answers":
            return Ask(self.topk, answer_cams=self.cam is not None)
        return Ask(self.topk, cams=tuple(int(label) for label in self.cam.split(",")))


class AnswerOut(BaseModel):
    """A class and its probability."""

    class_: int = Field(alias="class", description="The class' number.")
    label: str
    prob: float = Field(ge=0, le=1)
    positive: bool | None = Field(
        None, description="Whether it reaches the class' threshold, where the network has one."
    )


class MapOut(BaseModel):
    """A class activation map: what each part of the network's input adds to the class' logit;
    value = signed byte * scale / 127."""

    class_: int = Field(alias="class")
    label: str
    height: int
    width: int
    scale: float
    data: str = Field(description="Signed bytes in base64, row after row.")


class RowOut(BaseModel):
    """One image's answer, as `densekit predict --json` prints it."""

    file: str | None
    topk: list[AnswerOut]
    error: str | None
    cam: list[MapOut] | None = Field(None, description="Only with `cam=`.")


class TimesOut(BaseModel):
    """Times of the request's slowest image, in milliseconds."""

    decode: float
    queue: float
    compute: float
    total: float = Field(description="From the body's last byte to the answer.")


class Predictions(BaseModel):
    """A row for each image, in order."""

    predictions: list[RowOut]
    ms: TimesOut


class Unanswered(Predictions):
    """No image has answers; each row has its error."""

    error: str


class ErrorOut(BaseModel):
    """Why there is no answer."""

    error: str


class ModelOut(BaseModel):
    """The network: its architecture, training data and metrics."""

    name: str
    task: Literal["multiclass", "multilabel"]
    classes: list[str]
    preprocessing: dict[str, Any]
    metrics: dict[str, Any]
    data: dict[str, Any]
    provenance: dict[str, Any]
    parameters: int | None = Field(description="Of torch's network; null for an exported one.")
    engine: str
    device: str
    precision: str
    maps: bool = Field(description="Whether `cam=` works.")
    limits: dict[str, Any]


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorOut, "description": "The request is not understood."},
    401: {"model": ErrorOut, "description": "The token is missing or wrong."},
    408: {"model": ErrorOut, "description": "The body took too long."},
    413: {"model": ErrorOut, "description": "More bytes or images than a request may have."},
    415: {"model": ErrorOut, "description": "No kind of body that is read."},
    421: {"model": ErrorOut, "description": "Not for this host."},
    500: {"model": ErrorOut, "description": "A fault of the server."},
    503: {"model": ErrorOut, "description": "Busy; Retry-After says for how many seconds."},
    504: {"model": ErrorOut, "description": "Not answered in time."},
}

BINARY = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
IMAGES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                    "required": ["images"],
                }
            },
            JSON: {"schema": JsonImages.model_json_schema(ref_template="#/$defs/{model}")},
            RAW: BINARY,
            "image/jpeg": BINARY,
            "image/png": BINARY,
        },
    }
}
"""The body; routes read it themselves, so that it is counted while it arrives."""
