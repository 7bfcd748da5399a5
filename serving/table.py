"""The one table of a request's errors: what REST, gRPC and OpenAI's clients call each."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from appliance.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    RequestCancelled,
    RequestError,
)


@dataclass(frozen=True)
class Row:
    """How the doors say one class of error. 499 is nginx's number for a client that went away."""

    http: int
    grpc: grpc.StatusCode
    type: str
    code: str


TABLE: dict[type[RequestError], Row] = {
    InvalidRequest: Row(
        400, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error", "invalid_value"
    ),
    PromptTooLong: Row(
        400, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error", "context_length_exceeded"
    ),
    ModelNotFound: Row(404, grpc.StatusCode.NOT_FOUND, "invalid_request_error", "model_not_found"),
    Overloaded: Row(429, grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limit_error", "overloaded"),
    DeadlineExceeded: Row(504, grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_error", "timeout"),
    RequestCancelled: Row(499, grpc.StatusCode.CANCELLED, "cancelled_error", "cancelled"),
    EngineFailed: Row(503, grpc.StatusCode.UNAVAILABLE, "server_error", "engine_failed"),
}
DEFECT = Row(500, grpc.StatusCode.INTERNAL, "server_error", "internal_error")
DEFECT_MESSAGE = "The server failed on this request; its log says why."


def row_of(error: BaseException) -> Row:
    """The row of an error's class or of the nearest class above it; `DEFECT` if it has none."""
    return next((TABLE[c] for c in type(error).__mro__ if c in TABLE), DEFECT)


def message_of(error: BaseException) -> str:
    """What the client is told: what is wrong and what to do. A defect's details stay in the log."""
    if not isinstance(error, RequestError):
        return DEFECT_MESSAGE
    return ". ".join(part.rstrip(".") for part in (error.message, error.hint) if part) + "."


def param_of(error: BaseException) -> str | None:
    """The field at fault, if one is."""
    return error.param if isinstance(error, RequestError) else None


def error_of(code: str, message: str, param: str | None) -> RequestError:
    """The error that a door's `code` stands for, for clients; EngineFailed for codes of no row."""
    kind = next((k for k, row in TABLE.items() if row.code == code), EngineFailed)
    return kind(message, param=param)
