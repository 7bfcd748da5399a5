from . import device as device
from . import distributed as distributed
from . import utils as utils


def ones(shape, dtype="float32"):
    return [0.0]
