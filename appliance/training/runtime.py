"""Paddle, imported with the settings that it needs: import it from here."""

from __future__ import annotations

import os

from appliance.training.settings import SETTINGS

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

import paddle  # noqa: E402
from paddlenlp.utils.log import logger as _logger  # noqa: E402

_logger.set_level("WARNING")

__all__ = ["paddle"]
