"""Every error that the appliance raises on purpose.

    ApplianceError
    ├── UserError                 the reader can mend it: exit 2, no traceback
    │   ├── RecipeError           a recipe's fields, all at once
    │   ├── DataError             a data file, with its line
    │   ├── ModelError            a base model that cannot be read or does not fit
    │   ├── ChatError             a conversation that the model's chat template refuses
    │   ├── BundleError           a bundle that is not whole
    │   │   └── SealError         a file of it was changed after sealing
    │   ├── JobError              a job that is unknown, busy or in the wrong state
    │   ├── MachineError          something that this machine lacks
    │   └── DeployError           a port, an address, a server that does not answer
    ├── StageError                a stage failed: exit 1, its log names the cause
    │   └── ProofError            the served model is not the trained model
    ├── Interrupted               Ctrl-C or SIGTERM: exit 130, nothing is lost
    └── RequestError              one request to a served model
        ├── InvalidRequest        a field that is wrong
        ├── PromptTooLong         more tokens than the model's context
        ├── ModelNotFound         a model name that is not served
        ├── Overloaded            the queue is full
        ├── DeadlineExceeded      the request ran out of its time
        ├── RequestCancelled      the client went away
        └── EngineFailed          the engine broke; the request may be sent again

An error carries what is wrong (`message`), where (inside the message) and what to do (`hint`).
"""

from __future__ import annotations


class ApplianceError(Exception):
    """The root. `exit_code` is what the command line ends with."""

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(ApplianceError):
    """The reader can mend it."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe's fields are wrong; the message lists all of them, a line each."""


class DataError(UserError):
    """A data file is missing or malformed; the message names file and line."""


class ModelError(UserError):
    """A base model cannot be read, or does not fit the recipe."""


class ChatError(UserError):
    """The model's chat template refuses a conversation."""


class BundleError(UserError):
    """A bundle is not whole."""


class SealError(BundleError):
    """A file of a bundle was changed, added or removed after sealing."""


class JobError(UserError):
    """A job is unknown, busy, or in a state that does not allow what was asked."""


class MachineError(UserError):
    """This machine lacks something that the recipe asks for."""


class DeployError(UserError):
    """A deployment could not be started or reached."""


class StageError(ApplianceError):
    """A stage of a job failed."""

    exit_code = 1


class ProofError(StageError):
    """The served model is not the trained model."""


class Interrupted(ApplianceError):
    """The work was stopped from outside; nothing is lost."""

    exit_code = 130


class RequestError(ApplianceError):
    """One request to a served model failed. `param` names the field at fault, if one is."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class InvalidRequest(RequestError):
    """A field of the request is wrong."""

    exit_code = 2


class PromptTooLong(InvalidRequest):
    """The prompt, or prompt and answer together, exceed the model's context."""


class ModelNotFound(RequestError):
    """The named model is not served here."""

    exit_code = 2


class Overloaded(RequestError):
    """The queue is full; try again later."""


class DeadlineExceeded(RequestError):
    """The request ran out of its time."""


class RequestCancelled(RequestError):
    """The client went away."""


class EngineFailed(RequestError):
    """The engine broke while it served the request."""
