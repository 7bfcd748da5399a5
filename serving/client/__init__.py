"""Python clients of both doors: the same methods, the same results."""

from serving.client.rest import RestClient
from serving.client.results import Answer, Choice, Chunk, Client, Model, TokenLogprob, Usage
from serving.client.rpc import RpcClient

__all__ = [
    "Answer",
    "Choice",
    "Chunk",
    "Client",
    "Model",
    "RestClient",
    "RpcClient",
    "TokenLogprob",
    "Usage",
]
