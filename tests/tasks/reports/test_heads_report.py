"""The report on reconstructions: what stands on the page, what the browser makes of it, and what it survives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from deca_core.assets import procedural_head
from deca_core.flame import FLAME
from schemas.parquet import fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.reports.contact_sheet import samples
from tasks.reports.figures import angles
from tasks.reports.gallery import Sculptor
from tasks.reports.heads_report import write_report
from tasks.reports.viewer import library
from tasks.units.commits import committed_parts
from tasks.units.plan import Plan, PlanError, load_plan
from tasks.units.reasons import quarantine_reasons
from tests.chromium import Browser
from tests.tasks.reports.truth_heads import make_dataset
from tests.tasks.stored_heads import make_heads

HOSTILE = '"><script>alert(1)<!--'
STEP = 2e-5  # metres: what the page promises of its positions


def config_of(plan: Plan) -> ReconstructConfig:
    return ReconstructConfig.model_validate_json(plan.store.read("_config.json"))


def report(plan: Plan, faces: int = 4) -> str:
    """The page's text."""
    write_report(plan, config_of(plan), faces)
    return plan.store.read("_report/report.html").decode()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Photographs of two subjects, the truth about them as reconstructions, and an image of nobody."""
    folder = tmp_path_factory.mktemp("report") / "archive"
    make_dataset(folder, people=2, images=1, unit=1, suffix=HOSTILE, walls=1)
    return folder


@pytest.fixture
def plan(archive, tmp_path) -> Plan:
    """A copy to spoil; its photographs are those of the archive."""
    shutil.copytree(archive / "heads", tmp_path / "heads")
    return load_plan(str(tmp_path / "heads"))


class Elements(HTMLParser):
    """Names of the elements of a page, with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_tells_the_dataset(plan):
    text = report(plan)
    elements = Elements(text).found
    assert [tag for tag, _ in elements].count("script") == 3  # data, library, viewer: no name of a file broke out
    assert not [attributes for _, attributes in elements if any(name.startswith("on") for name in attributes)]
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    for told in ("NoFaceError", "rows in quarantine 1", "68 landmarks", "worker seconds a face", "displacement"):
        assert told in text, told
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    assert len(pictures) == 2 * 6
    assert report(plan) == text  # the same dataset gives the same page


def test_card_names_what_is_data(plan):
    report(plan)
    front, page = plan.store.read("README.md").decode().split("---\n")[1:3]
    named = yaml.safe_load(front)["configs"][0]["data_files"]
    assert [plan.store.join(name) for name in named] == [
        part for part in committed_parts(plan.dest) if Path(part).stat().st_size and rows_of(part)
    ]
    for column in ("`shape` | float32, 100", "`displacement` | uint16, 256 x 256", "| checkpoint | `truth` |"):
        assert column in page, column


def rows_of(part: str) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(part).metadata.num_rows)


def test_sources_that_are_gone_leave_their_panels_out(plan, tmp_path):
    moved = load_plan(plan.dest)
    names = [Path(item.uri) for unit in moved.iter_units() for item in unit.items]
    hidden = names[0].parent.with_name("hidden")
    names[0].parent.rename(hidden)
    try:
        text = report(plan)
    finally:
        hidden.rename(names[0].parent)
    assert "2 of the 2 images cannot be read" in text
    assert Elements(text).found.count(("img", {})) == 0
    titles = re.findall(r"<th>([^<]+)</th>", text)[:3]
    assert titles == ["shape", "detail", "displacement"]
    assert 'id="canvas"' in text  # heads need no image


def test_another_head_is_not_drawn(plan, tmp_path):
    bundle = procedural_head()
    bundle.save(tmp_path / "bundle")
    config = config_of(plan).model_copy(update={"bundle": str(tmp_path / "bundle")})
    assert Sculptor(plan, config).model is not None
    other = plan.record.model_copy(update={"weights": {**plan.record.weights, "bundle": "0" * 64}})
    sculptor = Sculptor(Plan(plan.dest, other), config)
    assert sculptor.model is None
    assert "another head" in sculptor.notes[0]
    gone = config.model_copy(update={"bundle": str(tmp_path / "nowhere")})
    written = write_report(plan, gone, 2)
    assert "bundle is not at hand" in written.notes[0]
    assert 'id="canvas"' not in plan.store.read("_report/report.html").decode()


def test_nothing_to_report_on(plan):
    for name in plan.store.list("_commits"):
        plan.store.delete(name)
    with pytest.raises(PlanError, match="deca status"):
        report(plan)


def test_a_missing_part_is_named(plan):
    Path(committed_parts(plan.dest)[0]).unlink()
    with pytest.raises(PlanError, match="deca verify"):
        report(plan)


def test_angles_are_those_of_the_face():
    pose = np.zeros((4, 6), np.float32)
    pose[0, 1] = pose[1, 0] = pose[2, 2] = pose[3, 3] = 0.3
    yaw, pitch, roll, jaw = angles(pose).values()
    turn = np.degrees(np.float32(0.3))
    np.testing.assert_allclose(yaw, [turn, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(pitch, [0, -turn, 0, 0], atol=1e-4)
    np.testing.assert_allclose(roll, [0, 0, turn, 0], atol=1e-4)
    np.testing.assert_allclose(jaw, [0, 0, 0, turn], atol=1e-4)


def test_quarantine_on_the_page_is_that_of_the_data(plan):
    [reason] = quarantine_reasons(plan)
    assert (reason.stage, reason.error, reason.rows) == ("detect", "NoFaceError", 1)


def test_the_library_comes_with_its_licence():
    text = library()
    assert "SPDX-License-Identifier: MIT" in text[:200]
    assert "</script" not in text
    assert "TrackballControls" not in text  # three.js alone


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(archive, tmp_path_factory) -> Iterator[Browser]:
    plan = load_plan(str(archive / "heads"))
    report(plan)
    window = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        window.open(archive / "heads/_report/report.html", "window.deca")
        yield window
    finally:
        window.close()


def flame(archive: Path, row: int, exp: dict[int, float] | None, jaw: float | None, own: bool) -> np.ndarray:
    """Vertices (V,3) of FLAME itself, head at rest. own: the face's expression and jaw, but for those given."""
    sample = list(samples(load_plan(str(archive / "heads")), 4))[row]
    shape, psi, pose = (torch.from_numpy(fixed_values(sample.row, name).copy()) for name in ("shape", "exp", "pose"))
    pose[:, :3] = pose[:, 4:] = 0
    if not own:
        psi, pose = torch.zeros_like(psi), torch.zeros_like(pose)
    for component, value in (exp or {}).items():
        psi[0, component] = value
    if jaw is not None:
        pose[0, 3] = jaw
    return FLAME(procedural_head())(shape, psi, pose).vertices[0].numpy()


def positions(browser: Browser) -> np.ndarray:
    return np.array(browser.evaluate("deca.positions()")).reshape(-1, 3)


@pytest.mark.slow
def test_page_opens_without_a_complaint_and_loads_nothing(browser):
    assert browser.evaluate("deca.failed") is None
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.slow
def test_heads_are_flames_as_reconstructed(browser, archive):
    for row in (1, 0):
        browser.evaluate(f"document.querySelectorAll('#heads button')[{row}].click()")
        away = np.abs(positions(browser) - flame(archive, row, None, None, own=True))
        assert away.max() < STEP


@pytest.mark.slow
def test_slider_moves_the_vertices_as_flame_does(browser, archive):
    browser.evaluate(
        "document.querySelectorAll('#heads button')[0].click(), document.getElementById('slider1').focus()"
    )
    before, drawn = positions(browser), browser.picture("#canvas")
    browser.press("End")
    assert browser.evaluate("deca.state().exp[0]") == 2
    after = positions(browser)
    assert np.abs(after - before).max() > 0.003  # a smile is millimetres
    assert np.abs(after - flame(archive, 0, {0: 2.0}, None, own=True)).max() < STEP
    assert np.abs(browser.picture("#canvas").astype(int) - drawn).max() > 40
    browser.press("ArrowLeft", times=3)
    assert browser.evaluate("document.querySelector('output').nextElementSibling && deca.state().exp[0]") == 1.97
    assert browser.errors == []


@pytest.mark.slow
def test_jaw_opens_as_flame_does(browser, archive):
    browser.evaluate("document.getElementById('neutral').click(), document.getElementById('slider0').focus()")
    assert np.abs(positions(browser) - flame(archive, 0, None, 0.0, own=False)).max() < STEP
    browser.press("End")
    jaw = browser.evaluate("deca.state().jaw")
    assert jaw >= 0.5
    opened = positions(browser)
    expected = flame(archive, 0, None, jaw, own=False)
    assert np.abs(opened - expected).max() < STEP
    browser.evaluate("deca.show({jaw: 0.3, exp: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0], rest: 0})")
    assert np.abs(positions(browser) - flame(archive, 0, {0: 1.0}, 0.3, own=False)).max() < STEP


@pytest.mark.slow
def test_the_head_is_seen_and_turns(browser):
    browser.evaluate("document.getElementById('own').click(), scrollTo(0, 0)")
    picture = browser.picture("#canvas").astype(int)
    head = (picture.min(axis=2) > 110).mean()
    assert 0.1 < head < 0.6  # clay before a dark ground
    box = browser.evaluate(
        "(() => { const b = canvas.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    middle = (box[0] + box[2] / 2, min(box[1] + box[3] / 2, 850))
    browser.drag(middle, (middle[0] + 60, middle[1]))
    turned = browser.picture("#canvas").astype(int)
    assert (np.abs(turned - picture).max(axis=2) > 30).mean() > 0.02


@pytest.mark.slow
def test_surfaces(browser):
    clay = browser.picture("#canvas").astype(int)
    browser.evaluate("document.getElementById('relief').click()")
    smooth = browser.picture("#canvas").astype(int)
    assert 0.005 < (np.abs(smooth - clay).max(axis=2) > 6).mean() < 0.5  # wrinkles, and nothing else
    browser.evaluate("document.querySelector('input[value=skin]').click()")
    browser.wait("document.querySelector('input[value=skin]').checked")
    skin = browser.picture("#canvas").astype(int)
    chroma = np.abs(skin[..., 0] - skin[..., 2])[skin.min(axis=2) > 60]
    assert chroma.mean() > 15  # skin is redder than clay
    browser.evaluate("document.querySelector('input[value=clay]').click(), document.getElementById('relief').click()")
    assert browser.errors == []


@pytest.mark.slow
def test_play_moves_and_stops(browser):
    browser.evaluate("document.getElementById('play').click()")
    browser.wait("deca.state().jaw > 0.05")
    browser.evaluate("document.getElementById('play').click()")
    assert browser.evaluate("document.getElementById('play').textContent") == "play"
    assert browser.evaluate("deca.state().rest") == 1


# --- what rows may hold -----------------------------------------------------------------------------------------------

PANELS = ["image", "68 landmarks", "overlay", "shape", "detail", "displacement"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Plan]:
    """The same faces, reconstructed with other outputs and layouts."""
    folder = tmp_path_factory.mktemp("kinds")
    changes = {"codes": {"outputs": ["codes"]}, "files": {"layout": "files"}, "pictures": {"outputs": ["preview"]}}
    return {name: load_plan(make_heads(folder, dest=str(folder / name), **own)) for name, own in changes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "titles"), [("codes", PANELS), ("files", PANELS), ("pictures", ["image", "68 landmarks", "detail"])]
)
def test_whatever_rows_hold_is_shown(kinds, kind, titles):
    plan = kinds[kind]
    written = write_report(plan, config_of(plan), 2)
    text = plan.store.read("_report/report.html").decode()
    assert re.findall(r"<th>([^<]+)</th>", text)[: len(titles)] == titles
    assert ('id="canvas"' in text) == (kind != "pictures")
    assert [note[:26] for note in written.notes] == (["The dataset holds no codes"] if kind == "pictures" else [])


@pytest.mark.slow
def test_maps_of_files_are_those_that_the_checkpoint_makes(kinds):
    maps = []
    for plan in (kinds["codes"], kinds["files"]):
        sculptor = Sculptor(plan, config_of(plan))
        [sample] = samples(plan, 1)
        maps.append(sculptor.displacement(sample.row, sculptor.codes(sample.row)))
    np.testing.assert_allclose(maps[0], maps[1], atol=2 * 0.01 / (2**16 - 1))
