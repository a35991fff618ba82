"""What the figures were measured on: said with them, since absolute numbers mean nothing without."""

import os
import platform
import re
import subprocess
from pathlib import Path

from dispatcher import __version__
from tests.kafka import maven


def described() -> dict[str, object]:
    """Processor, cores, kernel, and the versions of what took part. No names of machines, no paths."""
    processor = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr.strip()
    return {
        "dispatcher": __version__,
        "processor": processor[1] if processor else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "kafka": maven.kafka_version(),
        "receiver": nginx.rpartition("/")[2] and f"nginx {nginx.rpartition('/')[2]}",
    }
