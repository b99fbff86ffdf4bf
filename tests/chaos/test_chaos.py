"""A few seeded faults (`make chaos` runs all of them), and a test that the check finds loss and doubling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.__main__ import seeded
from tests.chaos.inject import visible
from tests.chaos.jobs import contents, count_files
from tests.chaos.kinds import KINDS
from tests.chaos.suite import Fault, Result, Suite, Trial
from tests.conftest import S3Endpoint

JOBS = ("ingest", "extend")  # the shortest
HANDFUL = [
    Fault("kill -9 of the driver", "ingest", 1),
    Fault("power cut", "extend", 3),
    Fault("full disk", "extend", 1),
    Fault("kill after a write to the bucket", "extend", 2),
]
STEPS = 2  # of each job; make chaos ends at every one


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, s3: S3Endpoint) -> Iterator[Suite]:
    with Suite(tmp_path_factory.mktemp("chaos"), JOBS, s3.endpoint) as suite:
        yield suite


def struck(suite: Suite, fault: Fault) -> Result:
    result = suite.run(fault, KINDS[fault.kind].strike)
    if result.skipped:
        pytest.skip(result.skipped)
    assert result.ok, (fault, result.detail, result.wrong)
    return result


@pytest.mark.parametrize("fault", HANDFUL, ids=lambda fault: f"{fault.kind}, {fault.job}")
def test_a_fault_costs_no_row(suite: Suite, fault: Fault) -> None:
    struck(suite, fault)


@pytest.mark.parametrize("job", JOBS)
def test_an_end_at_a_step_of_writing(suite: Suite, job: str) -> None:
    steps = suite.baseline(job, False).steps
    named = [number for number, step in enumerate(steps) if visible(step)]
    for place in range(STEPS):
        number = named[(2 * place + 1) * len(named) // (2 * STEPS)]
        result = struck(suite, Fault("end at a step of writing", job, 0, number + place % 2))
        assert result.hit


def test_the_check_finds_loss_doubling_and_leftovers(suite: Suite, tmp_path: Path) -> None:
    fault = Fault("none", "ingest", 0)
    trial = Trial(suite, fault, tmp_path)
    trial.prepare()
    run = trial.start()
    code, dest = run.wait(), Path(trial.dest)

    def checked() -> Result:
        result = Result(fault)
        trial.check(code, result)
        return result

    whole = checked()
    assert whole.ok, whole.wrong

    temporary = dest / "annotations" / ".deca-elsewhere-1-a-part.tmp"
    temporary.write_bytes(b"")
    left = checked()
    assert left.wrong[0].startswith("left annotations/.deca-elsewhere")
    temporary.unlink()

    records = sorted((dest / "annotations" / "_commits").iterdir())
    text = records[1].read_text()
    records[1].unlink()
    lost = checked()
    assert lost.lost == 3
    assert not lost.equal
    # A record that claims the rows of another unit: every row of it exists twice.
    record = json.loads(text) | {key: json.loads(records[2].read_text())[key] for key in ("part", "bytes", "sha256")}
    records[1].write_text(json.dumps(record))
    doubled = checked()
    assert doubled.doubled == 3
    assert any("2 times" in problem for problem in doubled.wrong)
    records[1].write_text(text)
    assert contents(str(dest)) == trial.baseline.contents
    assert count_files(str(dest)) == trial.baseline.files


def test_faults_follow_from_the_seed() -> None:
    kinds = list(KINDS.values())
    faults = seeded(120, 7, kinds)
    assert len(faults) == 120
    assert faults == seeded(120, 7, kinds)
    assert faults != seeded(120, 8, kinds)
    assert {fault.kind for fault in faults} == {kind.name for kind in kinds if kind.share}
    assert all(fault.job in KINDS[fault.kind].jobs for fault in faults)
