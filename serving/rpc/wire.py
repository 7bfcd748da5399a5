"""What the gRPC door and its clients agree on besides protos/appliance/v1."""

from __future__ import annotations

from serving.rpc.v1 import appliance_pb2 as pb

SERVICE = "appliance.v1.LanguageModel"

ERROR_KEY = "appliance-error-bin"
"""Where a failed call's trailing metadata holds the serialized `Error`."""

MAX_REQUEST = 4 << 20
"""Largest message to the server, in bytes. Answers have no limit: they are done when they are sent,
and with log-probabilities they are long."""

REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}
"""Why an answer ended: the core's word, and the message's."""
