"""The ablations from a world to their tables: what is trained from where, resuming, refusing, extending."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from deca_core.assets import procedural_head
from deca_core.checkpoint import WEIGHTS_FILE
from pipelines import cli
from pipelines.ablate import MODELS, ablate, changed_stages, plan_runs
from pipelines.synth import synth
from pipelines.train import train
from schemas.ablate import VARIANTS, AblateConfig, AblateSummary
from schemas.evaluate import EvaluateSummary
from schemas.parquet import fixed_array, fixed_field
from schemas.world import SynthConfig
from tasks.measure.ablation_report import FULL, MeasuredRows, ablation_table, compare
from tasks.measure.world_truth import EvaluateError
from tasks.store.storage import Store
from tasks.training.records import MODEL
from tasks.units.commits import committed_parts
from tasks.units.plan import PlanError
from tests.tasks.train_runs import small_config

TAKEN = ("detail_consistency", "identity", "eye_closure", "skin_mask")
STEPS = {
    "pretrain": {"steps": 1, "subjects": 2, "images": 1},
    "coarse": {"steps": 1, "subjects": 1, "images": 2},
    "detail": {"steps": 1, "subjects": 1, "images": 2},
}
PART_OF_RUN = {"source", "dest", "bundle", "existing", "seed", "version"}


def settings(source: Path, dest: Path, **changes: Any) -> AblateConfig:
    """Two subjects, a step per stage; the identity loss has weight 0."""
    training = small_config("unused", **STEPS).model_dump(mode="json", exclude=PART_OF_RUN)
    training["world"]["seed"] = 3
    values = {"source": str(source), "dest": str(dest), "faces": "world", "train": training, "variants": TAKEN}
    return AblateConfig.model_validate({**values, "evaluate": {"ray": {"workers": 0}}, **changes})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, two images of each; tests only read it."""
    dest: Path = tmp_path_factory.mktemp("world")
    world = {"identities": 2, "images_per_identity": 2, "size": 128, "seed": 8, "max_yaw": 20.0}
    synth(SynthConfig.model_validate({**world, "dest": str(dest), "ray": {"workers": 0}}))
    return dest


@pytest.fixture(scope="module")
def done(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AblateSummary]:
    """Finished ablations; tests only read them, or continue them."""
    dest: Path = tmp_path_factory.mktemp("ablations")
    return dest, ablate(settings(archive, dest))


def model_of(dest: Path, name: str) -> bytes:
    return (dest / MODELS / "seed-0" / name / MODEL / WEIGHTS_FILE).read_bytes()


def evaluated(summary: AblateSummary) -> dict[str, dict[str, float | None]]:
    """Return the mean of each figure over images, by method, from the evaluation's summary."""
    text = Path(summary.evaluation, "_report/summary.json").read_text()
    methods = EvaluateSummary.model_validate_json(text).methods
    return {one.method: {name: figure.mean for name, figure in one.metrics.items()} for one in methods}


@pytest.mark.slow
def test_tables_pages_and_numbers(done: tuple[Path, AblateSummary]) -> None:
    dest, summary = done
    assert (summary.outcome, summary.people, summary.pictures) == ("complete", 2, 4)
    assert list(summary.left_out) == ["without identity loss"]
    rows = [(row.variant, row.figure) for row in summary.comparisons]
    assert rows == [
        (VARIANTS[name].label, figure) for name in TAKEN if name != "identity" for figure in VARIANTS[name].figures
    ]
    assert {row.verdict for row in summary.comparisons} == {"too few subjects"}
    models = evaluated(summary)
    full, coarse, without = (
        models[name] for name in ("model", "coarse only, seed 0", f"{VARIANTS[TAKEN[0]].label}, seed 0")
    )
    assert "mean face" in models
    # The detail stage leaves the landmarks as the coarse stage's.
    assert coarse["nme"] == full["nme"] != models["pretrain only, seed 0"]["nme"]
    assert without["nme"] == full["nme"]
    assert without["transfer_mm"] != full["transfer_mm"]
    [eyes] = [row for row in summary.comparisons if row.figure == "lids"]
    assert (eyes.full, eyes.ablated) == ([full["lids"]], [models["without eye closure, seed 0"]["lids"]])
    stored = AblateSummary.model_validate_json((dest / "_report/ablations.json").read_text())
    assert stored == summary
    for suffix in ("md", "html"):
        text = (dest / f"_report/ablations.{suffix}").read_text()
        assert f"{eyes.ablated[0]:.4g}" in text
        assert "without identity loss, the full recipe has no such loss" in text
        assert "RANDOM weights: random-vgg19" in text
        assert "nan" not in text
    head, rule, *lines = (dest / "_report/ablations.md").read_text().split("\n\n")[1].splitlines()
    assert head.count("|") == rule.count("|") == lines[0].count("|")
    assert len(lines) == len(rows)


@pytest.mark.slow
def test_the_full_recipe_is_one_training(done: tuple[Path, AblateSummary], tmp_path: Path) -> None:
    """Its stages, each a run from the model of the one before, give what one run of `deca train` gives."""
    world = settings(Path("unused"), tmp_path).training(0).world
    train(small_config(tmp_path, world=world.model_dump(), **STEPS))
    assert (tmp_path / MODEL / WEIGHTS_FILE).read_bytes() == model_of(done[0], "detail")


@pytest.mark.slow
def test_a_variant_parts_from_the_full_recipe_where_its_loss_begins(archive: Path, tmp_path: Path) -> None:
    config = settings(archive, tmp_path, seeds=[0, 4])
    runs = plan_runs(config)
    assert [run.seed for run in runs] == [0] * 6 + [4] * 6
    by_name = {run.name: run for run in runs}
    trunk = [by_name[f"{label}, seed 4"] for label in ("pretrain only", "coarse only", FULL)]
    detail, eyes, skin = (
        by_name[f"without {what}, seed 4"] for what in ("detail consistency", "eye closure", "skin mask")
    )
    assert [run.config.start for run in trunk] == [None, trunk[0].model, trunk[1].model]
    assert [run.config.start for run in (detail, eyes, skin)] == [trunk[1].model, None, trunk[0].model]
    assert [
        [name for name in STEPS if run.config.stage(name).steps]  # type: ignore[arg-type]
        for run in (detail, eyes, skin)
    ] == [["detail"], ["pretrain", "coarse"], ["coarse", "detail"]]
    assert {run.config.seed for run in trunk} == {4}
    # The settings' own weights stay.
    assert eyes.config.weights == {"pretrain": {"eye_closure": 0}, "coarse": {"identity": 0, "eye_closure": 0}}


def test_every_variant_takes_something_away() -> None:
    """From the default settings, and from the paper's."""
    for preset in ("small", "paper"):
        config = AblateConfig(source="world/", faces="world", dest="out", train={"preset": preset})
        for name, variant in VARIANTS.items():
            assert changed_stages(config.training(0), variant.without) == list(variant.without), name


@pytest.mark.slow
def test_a_repeated_run_trains_nothing_and_rewrites_the_report(
    done: tuple[Path, AblateSummary], archive: Path, prefect_harness: None
) -> None:
    """As a flow this time, which leaves its tables as artifacts."""
    from prefect.client.orchestration import get_client

    from pipelines import flows

    dest, summary = done
    shutil.rmtree(dest / "_report")
    state = flows.ablate(settings(archive, dest), return_state=True)
    assert state.is_completed()
    again = state.result()
    assert again.trained == {}
    assert again.comparisons == summary.comparisons
    assert (dest / "_report/ablations.html").is_file()
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact.data for artifact in client.read_latest_artifacts()}  # of other tests, too
    assert json.loads(artifacts["ablations"]) == ablation_table(summary)


@pytest.mark.slow
def test_a_lost_variant_is_trained_again_and_nothing_else(done: tuple[Path, AblateSummary], archive: Path) -> None:
    dest, summary = done
    figures = evaluated(summary)
    name = "without-skin-mask"
    lost = dest / MODELS / "seed-0" / name
    before = model_of(dest, name)
    for part in (MODEL, "checkpoints/detail"):
        shutil.rmtree(lost / part)
    (lost / "_stages/detail.json").unlink()
    again = ablate(settings(archive, dest))
    assert list(again.trained) == ["without skin mask, seed 0"]
    assert model_of(dest, name) == before
    assert again.comparisons == summary.comparisons
    assert evaluated(again) == figures


@pytest.mark.slow
def test_another_variant_uses_what_is_there_and_is_evaluated_with_the_rest(
    done: tuple[Path, AblateSummary], archive: Path
) -> None:
    dest, summary = done
    nme = evaluated(summary)["model"]["nme"]
    other = ablate(settings(archive, dest, variants=["symmetry"]))
    assert list(other.trained) == ["without symmetry, seed 0"]
    assert [row.figure for row in other.comparisons] == ["hidden_mm"]
    methods = set(pq.read_table(committed_parts(other.evaluation))["method"].to_pylist())
    assert methods > {"model", "pretrain only, seed 0", "coarse only, seed 0", "without symmetry, seed 0"}
    assert "without skin mask, seed 0" not in methods
    assert evaluated(other)["model"]["nme"] == nme
    resumed = ablate(settings(archive, dest, existing="resume", seeds=[7], variants=TAKEN))
    assert (resumed.trained, resumed.seeds, resumed.comparisons) == ({}, [0], other.comparisons)


@pytest.mark.slow
def test_new_starts_over(archive: Path, tmp_path: Path) -> None:
    """With the pretrain stage alone, which then is the full recipe, and nothing taken away."""
    off = {name: {**STEPS[name], "steps": 0} for name in ("coarse", "detail")}
    first = settings(archive, tmp_path, variants=[])
    first = first.model_copy(update={"train": {**first.train, **off}})
    assert list(ablate(first).trained) == [f"{FULL}, seed 0"]
    before = model_of(tmp_path, "pretrain")
    other = first.model_copy(update={"train": {**first.train, "pretrain": {**STEPS["pretrain"], "lr": 0.01}}})
    with pytest.raises(PlanError, match=r"pretrain\.lr 0\.0001 -> 0\.01"):
        ablate(other)
    again = ablate(other.model_copy(update={"existing": "new"}))
    assert list(again.trained) == [f"{FULL}, seed 0"]
    assert model_of(tmp_path, "pretrain") != before
    assert "model" in evaluated(again)
    assert again.comparisons == []


@pytest.mark.slow
def test_other_training_is_refused_and_named(done: tuple[Path, AblateSummary], archive: Path) -> None:
    other = settings(archive, done[0])
    other = other.model_copy(update={"train": {**other.train, "mrf_size": 64, "weights": {}}})
    with pytest.raises(PlanError, match=r"mrf_size 32 -> 64; weights\.coarse\.identity 0\.0 -> 0\.2.*--resume.*--new"):
        ablate(other)
    with pytest.raises(PlanError, match="no ablations to resume"):
        ablate(settings(archive, done[0] / "nothing", existing="resume"))


@pytest.mark.slow
def test_subjects_of_the_training_set_are_refused(archive: Path, tmp_path: Path) -> None:
    config = settings(archive, tmp_path)
    same = {**config.train, "world": {**config.train["world"], "seed": 8}}
    with pytest.raises(EvaluateError, match=r"has 2 subjects of the training set.*train\.world\.seed=9"):
        plan_runs(config.model_copy(update={"train": same}))
    with pytest.raises(EvaluateError, match="deca synth"):
        plan_runs(config.model_copy(update={"source": str(tmp_path)}))
    assert not Store(str(tmp_path)).list("")


def test_config_keys_that_the_ablations_set_are_refused() -> None:
    places = {"source": "world/", "faces": "people/", "dest": "out/"}
    for wrong, said in (
        ({"train": {"seed": 3}}, r"train\.seed: set by the ablations"),
        ({"evaluate": {"compare": {}}}, r"evaluate\.compare: set by the ablations"),
        ({"train": {"coarse": {"stepz": 1}}}, "stepz"),
        ({"seeds": [1, 1]}, "an entry is repeated"),
        ({"variants": ["everything"]}, "variants"),
    ):
        with pytest.raises(ValidationError, match=said):
            AblateConfig.model_validate({**places, **wrong})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ablations"], "faces: Field required"),
        (["--ablations", "--faces", "world", "--checkpoint", "ckpt"], "no --checkpoint"),
        (["--faces", "world"], "goes with --ablations"),
        (["--ablations", "--faces", "world"], "no archive of the embedded world"),
    ],
)
def test_the_command(words: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("sys.argv", ["deca", "evaluate", str(tmp_path), str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.FAILED
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_deployment_runs_the_flow() -> None:
    import yaml

    from pipelines import flows

    deployments = yaml.safe_load(Path(flows.__file__).parents[1].joinpath("prefect.yaml").read_text())["deployments"]
    [mine] = [entry for entry in deployments if entry["name"] == "ablations"]
    function = getattr(flows, mine["entrypoint"].partition(":")[2])
    assert (function.name, function.fn.__annotations__["config"]) == ("evaluate", "AblateConfig")


# --- verdicts, on emulated rows ---


def emulated(subjects: int, differences: dict[str, float], noise: float = 0.05) -> MeasuredRows:
    """Two images of each subject; `lids` is the subject's own error, the method's difference, and a little noise."""
    rng = np.random.default_rng(5)
    names = [f"{person:03d}" for person in range(subjects) for _ in range(2)]
    own = np.repeat(rng.uniform(0, 10, subjects), 2)
    basis = procedural_head().shape_basis[:50]
    parts = []
    for method, difference in differences.items():
        lids = own + difference + noise * rng.normal(size=len(own))
        scan = [[value, value + 1, value + 2] for value in lids]
        columns = {"method": [method] * len(own), "identity_id": names, "lids": pa.array(lids, pa.float32())}
        shape = np.repeat(rng.normal(size=(subjects, 100)), 2, axis=0) + difference * rng.normal(size=(len(own), 100))
        field = fixed_field("shape", (100,))
        table = pa.table({**columns, "scan_mm": pa.array(scan, pa.list_(pa.float32()))})
        parts.append(table.append_column(field, fixed_array(field, shape.astype(np.float32))))
    return MeasuredRows(pa.concat_tables(parts), basis)


@pytest.mark.parametrize(("difference", "verdict"), [(0.2, "worse"), (0.0, "no difference"), (-0.2, "better")])
def test_a_verdict_needs_an_interval_without_zero(difference: float, verdict: str) -> None:
    rows = emulated(40, {"full": 1.0, "less": 1.0 + difference})
    found = compare(rows, "without", "lids", [("full", "less")])
    assert found.verdict == verdict
    assert found.low is not None
    assert found.high is not None
    assert found.low < difference < found.high
    assert found.high - found.low < 0.1  # paired: the spread of subjects, ten, is in none of it
    pooled = [value for row in rows["full"]["scan_mm"].to_pylist() for value in row]
    assert compare(rows, "without", "scan_median", [("full", "less")]).full[0] == np.quantile(
        pooled, 0.5, method="lower"
    )


def test_images_without_a_figure_count_for_no_method() -> None:
    rows = emulated(12, {"full": 1.0, "less": 2.0}, noise=0.0)
    table = rows._rows
    values = table["lids"].to_pylist()
    values[0], values[24 + 5] = None, None  # one of the full recipe's, another of the variant's
    rows._rows = table.set_column(table.schema.get_field_index("lids"), "lids", pa.array(values, pa.float32()))
    found = compare(rows, "without", "lids", [("full", "less")])
    kept = [values[row] for row in range(24) if row not in (0, 5)]
    assert found.full == pytest.approx([np.mean(kept)])
    assert found.ablated[0] - found.full[0] == pytest.approx(1.0, abs=1e-5)


def test_shapes_that_differ_more_within_a_subject_are_worse() -> None:
    rows = emulated(30, {"full": 0.3, "less": 0.6})
    found = compare(rows, "without", "shape_ratio", [("full", "less")])
    assert found.verdict == "worse"
    assert found.full[0] < found.ablated[0] < 1


def test_seeds_are_one_row_and_too_few_subjects_no_verdict() -> None:
    rows = emulated(30, {"full a": 1.0, "full b": 1.1, "less a": 1.5, "less b": 0.9})
    found = compare(rows, "without", "lids", [("full a", "less a"), ("full b", "less b")])
    assert (len(found.full), len(found.ablated)) == (2, 2)
    assert found.verdict == "no difference"  # one seed says worse, the other better
    few = compare(emulated(9, {"full": 1.0, "less": 5.0}), "without", "lids", [("full", "less")])
    assert (few.verdict, few.low, few.high) == ("too few subjects", None, None)
