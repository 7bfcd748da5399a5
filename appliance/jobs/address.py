"""Which server a user means: a deployment by its name, the only running one, or an address."""

from __future__ import annotations

from appliance.errors import DeployError
from appliance.jobs import ask
from appliance.jobs.store import running_deployments


def address_of(named: str | None, *, grpc: bool) -> str | None:
    """The address to talk to; None where nothing is named and no deployment runs here.

    Raises DeployError where nothing is named and several deployments run.
    """
    if named is not None and ":" in named:
        return named
    running = {serving.name: serving for serving in running_deployments()}
    if named is not None and named not in running:
        return named
    if named is None and len(running) > 1:
        raise DeployError(
            f"several deployments run here: {', '.join(sorted(running))}",
            hint="Name one of them, such as `appliance chat " + min(running) + "`.",
        )
    if not running:
        return None
    serving = running[named] if named else next(iter(running.values()))
    return ask.grpc_address(serving) if grpc else ask.rest_address(serving)
