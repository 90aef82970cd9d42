"""``python -m obatchd.cli.doctor.nvml_report``: what NVML says about this host, as JSON.

A process of its own, because a call into a sick driver may never return, and then its caller cannot even be killed.
"""

from __future__ import annotations

import json

import pynvml


def main() -> None:
    """Print ``{"driver", "gpus": [names]}``, or ``{"error"}``."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        names = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
        print(json.dumps({"driver": pynvml.nvmlSystemGetDriverVersion(), "gpus": names}))
    except pynvml.NVMLError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
