"""What a result must say of the machine, so that it can be read a year later."""

import datetime
import hashlib
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
QUERY = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.limit"


def card(name: str) -> str:
    """The short name of a GPU, for files: "NVIDIA H100 80GB HBM3" to "h100"."""
    words = re.sub(r"nvidia|geforce|tesla", " ", name.lower()).split() or ["gpu"]
    short = "-".join(words[:2]) if words[0] in ("rtx", "gtx", "quadro") else words[0]
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"-(pcie|sxm\d?|nvl).*", "", short)).strip("-")


def _says(*command: str) -> str:
    """What a command prints; empty where it fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def gpu_state() -> dict[str, str]:
    """Driver, clocks, temperature and power limit by nvidia-smi; empty where there is none."""
    first = _says("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader").partition("\n")[0]
    values = [value.strip() for value in first.split(",")]
    names = QUERY.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def sources() -> str:
    """A hash of the kernels' source, which tells results of other kernels apart."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "kernels/fused").glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def describe(dry: bool) -> dict[str, Any]:
    """Card, versions, commit, date, and the order in which SDPA tries its backends."""
    import torch
    import triton

    order = getattr(torch._C, "_get_sdp_priority_order", list)()
    names = {int(v): k for k, v in torch.nn.attention.SDPBackend.__members__.items()}
    found: dict[str, Any] = {
        "card": "dry",
        "gpu": "none: Triton's interpreter",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "commit": _says("git", "rev-parse", "--short=12", "HEAD") or "unknown",
        "changed": bool(_says("git", "status", "--porcelain", "--", "kernels", "python")),
        "sources": sources(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "sdpa_order": [names.get(int(backend), str(backend)) for backend in order],
    }
    if not dry:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": card(properties.name),
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found
