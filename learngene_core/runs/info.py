"""What is in a run folder: every stage of the chain, whether it is whole, and the command that goes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from ..config import STAGES, Config
from ..errors import expanded, say
from .bookkeeping import changed, checked_manifest, configuration, only_extent, state_of, stored_machine
from .parameters import quoted
from .run import default_folder, parameters_of
from .seals import inspected

# what `learngene study` computes
STUDY = ("division", "collective", "criteria", "reconstruct", "openworld", "measures", "atlas", "controls", "claims")
EXTENDED = "to be extended"  # finished, but more (or less) of the same is asked for now
COMPUTED = tuple(stage for stage in STAGES if stage != "targets")  # target tasks are drawn again, never stored


def inspect(path: Path) -> dict[str, Any]:
    """What stands in a run folder.

    `stages`: every stage of the study, and others that were asked for -> `state` (whole, missing, damaged, another
    configuration), `files` (name -> whole, missing, damaged) and `configuration` (matches, another, none). `source_tasks`:
    how many are saved whole, of how many, and what is wrong with the next ("": nothing). `whole`: something is finished, and
    all that is can be used. `complete`: every stage of the study is whole. `next`: the command that goes on.

    Raises StudyError when `path` is no run folder or its bookkeeping is damaged.
    """
    cfg = configuration(path)
    manifest = checked_manifest(path / "manifest.json") if (path / "manifest.json").exists() else {}
    if (path / "machine.json").exists():
        stored_machine(path / "machine.json")
    stages = {s: _stage(path, manifest.get(s), cfg, s) for s in COMPUTED if s in STUDY or s in manifest}
    complete = all(stages[stage]["state"] == "whole" for stage in STUDY)
    saved, wrong = len([*path.glob("collective/task_*/about.json")]), None
    if "collective" not in manifest:  # nothing else looks at the tasks of an unfinished walk
        saved, wrong = inspected(path / "collective")
    bad = [stage for stage, facts in stages.items() if facts["state"] not in ("whole", "missing", EXTENDED)]
    return {
        "run": str(path),
        "preset": cfg.preset_name,
        "data": cfg.data,
        "seed": cfg.seed,
        "stages": stages,
        "source_tasks": {"saved": saved, "all": cfg.n_source_tasks, "damaged": wrong or ""},
        "whole": bool(manifest) and not bad,
        "complete": complete,
        "next": "" if complete and not bad else command(cfg, path, redo=bad),
    }


def _stage(path: Path, entry: dict[str, Any] | None, cfg: Config, stage: str) -> dict[str, Any]:
    if entry is None:
        return {"state": "missing", "configuration": "none", "files": {}}
    files = {name: state_of(path / name, facts) for name, facts in entry["files"].items()}
    matches = entry["hash"] == cfg.stage_hash(stage)
    names = changed(cfg.fields_of(stage), entry["fields"])
    other = "another configuration" if names and not only_extent(names) else EXTENDED
    state = "damaged" if set(files.values()) - {"whole"} else "whole" if matches else other
    return {"state": state, "configuration": "matches" if matches else "another", "files": files}


def command(cfg: Config, path: Path, verb: str = "study", redo: list[str] | None = None) -> str:
    """The command line that asks for exactly `cfg` in the run folder `path`."""
    given = parameters_of(cfg, path)
    words = ["learngene", verb, "--preset", given.pop("preset")]
    if given["data"] == Config.preset(cfg.preset_name).data:
        given.pop("data")
    if given.pop("out") == str(default_folder(cfg)):
        path = None
    for name in ("data", "data_path", "seed"):
        if name in given:
            words += _option(name.replace("_", "-"), str(given.pop(name)))
    for name, value in given.items():
        words += ["--set", f"{name}={quoted(name, value)}"]
    words += _option("out", str(path)) if path else []
    return shlex.join([*words, *(word for stage in redo or () for word in ("--redo", stage))])


def _option(name: str, value: str) -> list[str]:
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def report(run: str | Path, *, as_json: bool = False) -> int:
    """Print what `inspect` finds; returns 0 when the run is whole (so far), else 1."""
    facts = inspect(expanded(run).absolute())
    if as_json:
        say(json.dumps(facts, indent=1))
        return 0 if facts["whole"] else 1
    say(f"{facts['run']}: preset {facts['preset']}, data {facts['data']}, seed {facts['seed']}")
    for stage, entry in facts["stages"].items():
        bad = [f"{name} {state}" for name, state in entry["files"].items() if state != "whole"]
        text = f"{', '.join(bad)} (rebuild with --redo {stage})" if bad else entry["state"]
        if entry["state"] == "another configuration":
            text = f"from another configuration (rebuild with --redo {stage})"
        tasks = facts["source_tasks"]
        if stage == "collective" and entry["state"] == "missing" and tasks["saved"]:
            text = f"missing ({tasks['saved']} of {tasks['all']} source tasks are saved)"
        if stage == "collective" and entry["state"] == "missing" and tasks["damaged"]:
            text += f"; task {tasks['saved'] + 1}: {tasks['damaged']}, it will be trained again"
        say(f"  {stage}: {text}")
    if facts["complete"] and facts["whole"]:
        say("complete: every stage of the study is whole")
    else:
        say(f"{'not complete' if facts['whole'] else 'not whole'}; go on with: {facts['next']}")
    return 0 if facts["whole"] else 1
