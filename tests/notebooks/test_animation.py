"""The film of the gradient record: its frames show the record's numbers, its end the choice, and the file is small."""

import shutil

import matplotlib

matplotlib.use("agg")

import animation
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figuretables import LAYERS, make_record
from matplotlib.colors import to_rgb
from PIL import Image

from learngene_core.criteria import profile, score
from learngene_core.figures import style

THRESHOLD = 1e-6


def frames_of(record, **options):
    """(title, values as drawn, profile) of every frame."""
    with plt.rc_context():
        style.use_style()
        for figure in animation.film(record, THRESHOLD, "positive", LAYERS[-3:], **options):
            heat, line = figure.axes[0], figure.axes[1].get_lines()[0]
            drawn = np.ma.array(heat.collections[0].get_array()).reshape(len(LAYERS), -1).T
            yield heat.get_title(loc="left"), drawn.filled(np.nan), np.array(line.get_xdata()), figure


def test_tasks_fill_one_after_the_other_with_the_means_of_the_record():
    record = make_record(n_tasks=3, n_epochs=2)
    shares = record.fraction(THRESHOLD)
    seen = [(title, values, line) for title, values, line, _ in frames_of(record)]
    assert len(seen) == 6
    assert [title.split(": ")[1] for title, *_ in seen[:3]] == [
        f"task {t} of 3, epoch {e}" for t, e in ((1, 1), (1, 2), (2, 1))
    ]
    filled = [int(np.isfinite(values).all(1).sum()) for _, values, _ in seen]
    assert filled == [1, 1, 2, 2, 3, 3]
    assert np.allclose(seen[2][1][:2], [shares[:2].mean(0), shares[2]])
    values, line = seen[-1][1:]
    assert np.allclose(values, profile(record, threshold=THRESHOLD)[0])
    assert np.allclose(line, score(record, "released", threshold=THRESHOLD)["score"])


def test_only_the_last_frame_marks_the_choice():
    framed = [len(figure.axes[0].patches) for *_, figure in frames_of(make_record())]
    assert framed == [0, 0, 0, 0, 0, 1]
    *_, (_, _, _, last) = frames_of(make_record())
    assert last.axes[0].collections[0].get_clim() == (0, 0.5)  # as in notebook 03
    assert last.axes[0].patches[0].get_height() == 3 and last.axes[1].get_title() == "chosen: conv4 to conv6"


def test_long_records_are_shown_in_few_frames_up_to_the_end():
    seen = list(frames_of(make_record(n_tasks=3, n_epochs=8), most_frames=5))
    assert len(seen) == 5 and np.isfinite(seen[-1][1]).all()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "record.gif"
    return path, animation.record_gif(make_record(), path, threshold=THRESHOLD)


def test_the_file_is_small_opaque_and_ends_with_a_pause(film):
    path, chosen = film
    assert chosen == LAYERS[-3:] and path.stat().st_size < 700_000
    with Image.open(path) as gif:
        assert gif.width <= 900 and gif.n_frames == 6 and gif.info["loop"] == 0
        assert gif.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        gif.seek(5)
        assert gif.info["duration"] == animation.HOLD
        colours = {colour for _, colour in gif.convert("RGB").getcolors(1 << 20)}
    for name in (style.ACCENT, style.METHOD_COLOURS["learngene"]):
        assert tuple(round(255 * c) for c in to_rgb(name)) in colours, (
            "the palette keeps the colours that mean something"
        )


def test_equal_records_are_equal_files(film, tmp_path):
    animation.record_gif(make_record(), tmp_path / "again.gif", threshold=THRESHOLD)
    assert (tmp_path / "again.gif").read_bytes() == film[0].read_bytes()


def test_one_command_makes_it_from_a_run(tmp_path, capsys, smoke_run):
    assert animation.main([str(smoke_run), str(tmp_path / "own.gif"), "5e-4"]) == 0
    assert "chosen conv" in capsys.readouterr().out
    assert Image.open(tmp_path / "own.gif").n_frames > 1


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys, smoke_copy):
    assert animation.main(["nowhere", str(tmp_path / "a.gif")]) == 1
    assert animation.main([str(smoke_copy), str(tmp_path / "a.gif"), "1e9"]) == 1
    shutil.rmtree(smoke_copy / "collective")
    (smoke_copy / "histograms.npz").unlink()
    assert animation.main([str(smoke_copy), str(tmp_path / "a.gif")]) == 1
    assert animation.main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 4 and "does not exist" in lines[0] and "1e+09" in lines[1] and "learngene collective" in lines[2]
    )
    assert not (tmp_path / "a.gif").exists()
