"""A report of a defect: what was run, on what, and the whole traceback."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from pathlib import Path

from appliance.errors import MachineError
from appliance.files import write_text
from appliance.home import home
from appliance.version import __version__

NO_ROOM = 1 << 20  # bytes


def is_full(error: BaseException) -> bool:
    """Whether a disk or a quota without room is the cause, which is no defect.

    SQLite says "disk I/O error" where it finds no room for its journal.
    """
    if isinstance(error, sqlite3.OperationalError):
        return shutil.disk_usage(home()).free < NO_ROOM
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def save_report(error: BaseException) -> Path:
    """Write the report of an unexpected error below `home()/crashes`, or where that cannot be
    written to among the temporary files; its path."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"{stamp}-{os.getpid()}.txt"
    lines = (
        f"appliance {__version__}",
        f"command   {' '.join(sys.argv)}",
        f"python    {sys.version}",
        f"platform  {platform.platform()}",
        f"time      {stamp} UTC",
        "",
        "".join(traceback.format_exception(error)),
    )
    try:
        path = home() / "crashes" / name
        write_text(path, "\n".join(lines))
    except (MachineError, OSError):
        path = Path(tempfile.gettempdir()) / f"appliance-{name}"
        write_text(path, "\n".join(lines))
    return path
