"""Finished pieces of a long stage: kept by name and configuration; what is damaged counts as unfinished."""

import json

from toys import toy_config

from learngene_core.runs.pieces import Pieces
from learngene_core.runs.run import Run


def test_a_damaged_piece_counts_as_unfinished(tmp_path):
    pieces = Pieces(Run.open(toy_config(), tmp_path / "run"), "atlas")
    pieces.put("one", {"rows": [1.5]})
    assert pieces.get("one") == {"rows": [1.5]} and pieces.get("two") is None
    file = pieces.folder / "one.json"
    whole = json.loads(file.read_text())
    for text in ("{", "[]", json.dumps({"stage_hash": whole["stage_hash"]}), json.dumps({**whole, "stage_hash": "no"})):
        file.write_text(text)
        assert pieces.get("one") is None
