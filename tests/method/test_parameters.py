"""Parameters are data, never code: whatever a string holds, the notebook gets that string, and nothing else happens."""

import json
import os
import sys
import time

import nbformat
import pytest

from learngene_core.config import Config
from learngene_core.study import notebooks, report

MARK = "was_run"
TEXTS = (
    "plain",
    'it\'s "both" \'\'\'kinds\'\'\' of """quotes"""',
    f'"; import pathlib; pathlib.Path("{MARK}").touch(); x = "',
    f"'); __import__('pathlib').Path('{MARK}').touch() #",
    f"two lines\nimport pathlib; pathlib.Path('{MARK}').touch()",
    f"%%bash\ntouch {MARK}",
    f"\n%%bash\ntouch {MARK}\n",
    f"!touch {MARK}",
    f"\n!touch {MARK}\n",
    f"%run {MARK}.py\n%system touch {MARK}",
    f"x = !touch {MARK}",
    f"$(touch {MARK}) `touch {MARK}` ; touch {MARK} | touch {MARK} && touch {MARK}",
    "ends with a backslash\\",
    "\\" * 7 + '"' + "\\n \\N{BULLET} \\x41 \\u0041 {braces} %s %(x)s {0}",
    "question?",
    "??",
    "separators \u2028 \u2029 \x85 \x0b \x0c \x1c \r carriage\rreturn\r\n",
    "umlauts äöü, signs \U0001f600, right to left \u202e, zero width \u200b, \ufeff",
    "\x1b[31mred\x07",
    "# no comment",
    "{'a': 1}",
    "None",
    "",
    " " * 50,
    "long " * 40_000,
    "\n" * 500,
)


def notebook_of(folder):
    first = nbformat.v4.new_code_cell(
        'preset = ""\nout = ""\ndata_path = ""\nsplit = ""\nlayers = None\nseed = 0', metadata={"tags": ["parameters"]}
    )
    names = '("out", "data_path", "split", "layers", "seed")'
    dump = nbformat.v4.new_code_cell(
        f"import json, pathlib\nvalues = {{n: globals()[n] for n in {names}}}\n"
        f"pathlib.Path({str(folder / 'seen.json')!r}).write_text(json.dumps(values))"
    )
    config = nbformat.v4.new_code_cell(
        "from learngene_core.config import Config\ncfg = Config.from_notebook({n: globals()[n] for n in ['preset', *values]})\n"
        f"pathlib.Path({str(folder / 'config.json')!r}).write_text(json.dumps(cfg.to_dict()))"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[first, dump, config]), folder / "a.ipynb")
    return folder / "a.ipynb"


def test_any_string_reaches_a_notebook_as_it_is_and_runs_nothing(tmp_path, monkeypatch):
    """Through papermill's own translation and a real kernel, in scalars and in lists."""
    monkeypatch.chdir(tmp_path)
    everything = "\n".join(TEXTS)
    given = {
        "preset": "smoke",
        "out": everything,
        "data_path": TEXTS[5],
        "split": everything[::-1],
        "layers": TEXTS,
        "seed": 7,
    }
    notebooks.execute(notebook_of(tmp_path), tmp_path / "done.ipynb", given)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen == {
        "out": everything,
        "data_path": TEXTS[5],
        "split": everything[::-1],
        "layers": list(TEXTS),
        "seed": 7,
    }
    assert not (tmp_path / MARK).exists()
    assert {p.name for p in tmp_path.iterdir()} == {"a.ipynb", "done.ipynb", "seen.json", "config.json"}
    cfg = Config.from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert cfg == Config.preset("smoke", data_path=TEXTS[5], split=everything[::-1], layers=TEXTS, seed=7)
    # the executed copy can be read again, and its report made, without running anything either
    report.write_report([tmp_path / "done.ipynb"], "title", "summary", tmp_path / "report.html")
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("text", ["nul\0byte", "half \ud800 a pair"])
@pytest.mark.parametrize("name", ["data_path", "split"])
def test_what_no_notebook_can_hold_is_refused_before_a_kernel_starts(tmp_path, name, text):
    with pytest.raises(ValueError, match=name):
        notebooks.execute(notebook_of(tmp_path), tmp_path / "done.ipynb", {name: text})
    assert not (tmp_path / "done.ipynb").exists()


@pytest.mark.slow
def test_jupyterlab_listens_on_this_machine_alone_and_asks_for_a_token(tmp_path):
    """What `make lab` starts, with its own options."""
    import re
    import socket
    import subprocess
    import urllib.error
    import urllib.request
    from pathlib import Path

    import psutil

    root = Path(__file__).parents[2]
    told = subprocess.run(["make", "-n", "lab"], cwd=root, capture_output=True, text=True, check=True).stdout
    options = next(t for t in told.splitlines() if "jupyter lab" in t).split("jupyter lab")[1].split()
    # Root is let in only where the user is root (Jupyter refuses otherwise); no option opens the server to others.
    user = {"--allow-root"} if os.getuid() == 0 else set()
    assert set(options) == {"--ip=127.0.0.1", "notebooks"} | user
    more = ["--no-browser", "--port=0", f"--ServerApp.root_dir={tmp_path}"]
    command = [sys.executable, "-m", "jupyterlab", *(o for o in options if o != "notebooks"), *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
    try:
        address, end = None, time.monotonic() + 60
        while not address and time.monotonic() < end:
            address = re.search(r"http://\S+:(\d+)/lab\?token=([0-9a-f]{20,})", process.stderr.readline())
        port, token = address.groups()
        assert address.group(0).startswith("http://127.0.0.1:")
        while time.monotonic() < end:  # it names its address before it listens
            try:
                socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.2)
        families = (socket.AF_INET, socket.AF_INET6)
        mine = {a.address for some in psutil.net_if_addrs().values() for a in some if a.family in families}
        for other in mine - {"127.0.0.1", "::1"}:
            with pytest.raises(OSError):  # nobody listens on the addresses that others can reach
                socket.create_connection((other, int(port)), timeout=5).close()
        url = f"http://127.0.0.1:{port}/api/contents"
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(url, timeout=10)
        assert refusal.value.code == 403
        assert urllib.request.urlopen(f"{url}?token={token}", timeout=10).status == 200
    finally:
        process.terminate()
        process.communicate(timeout=20)
