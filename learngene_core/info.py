"""What is in a run folder, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path

from .config import Config
from .files import StudyError, file_hash, read_json, say
from .runs import checked_manifest


def inspect(path: Path) -> dict:
    """Stages of a run folder -> files -> whole, missing or damaged; and the configuration.

    Raises StudyError when `path` is no run folder.
    """
    if not (path / "config.json").is_file():
        raise StudyError(f"{path} is no run folder (it has no config.json)")
    try:
        cfg = Config.from_dict(read_json(path / "config.json"))
    except (ValueError, TypeError, AttributeError) as error:
        raise StudyError(f"{path / 'config.json'} is no configuration of this version: {error}") from None
    manifest = checked_manifest(path / "manifest.json") if (path / "manifest.json").exists() else {}
    stages = {}
    for stage, entry in manifest.items():
        files = {}
        for name, facts in entry["files"].items():
            file = path / name
            if not file.is_file():
                files[name] = "missing"
            else:
                whole = file.stat().st_size == facts["bytes"] and file_hash(file) == facts["sha256"]
                files[name] = "whole" if whole else "damaged"
        matches = entry["hash"] == cfg.stage_hash(stage)
        stages[stage] = {"configuration": "matches" if matches else "another", "files": files}
    return {
        "run": str(path),
        "preset": cfg.preset_name,
        "data": cfg.data,
        "seed": cfg.seed,
        "stages": stages,
        "whole": all(
            s["configuration"] == "matches" and set(s["files"].values()) == {"whole"} for s in stages.values()
        ),
    }


def report(run: str | Path, *, as_json: bool = False) -> int:
    """Print what `inspect` finds; returns 0 when the run is whole, else 1."""
    facts = inspect(Path(run).expanduser().absolute())
    if as_json:
        say(json.dumps(facts, indent=1))
    else:
        say(f"{facts['run']}: preset {facts['preset']}, data {facts['data']}, seed {facts['seed']}")
        for stage, entry in facts["stages"].items():
            bad = [f"{name} {state}" for name, state in entry["files"].items() if state != "whole"]
            state = "whole" if not bad else f"{', '.join(bad)} (rebuild with --redo {stage})"
            say(f"  {stage}: {state}" + ("" if entry["configuration"] == "matches" else "; from another configuration"))
        if not facts["stages"]:
            say("  no stage is finished yet")
    return 0 if facts["whole"] else 1
