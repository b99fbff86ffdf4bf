"""Which network judges identity, and which weights encoders start from, by the settings."""

from __future__ import annotations

import pytest
import torch

from deca_core.dlib_recognition import DlibRecognition, load_dlib
from deca_core.recognition import RecognitionError
from schemas.train import NetworksConfig
from tasks.training.inputs import (
    TrainConfigError,
    identity_network,
    input_hashes,
    training_samples,
    validation_samples,
)
from tasks.training.stage import StageRun
from tests.tasks.train_runs import job_of, small_config


def test_dlibs_network_is_the_default_identity_loss(caplog):
    network = identity_network(NetworksConfig())
    assert isinstance(network, DlibRecognition)
    assert network.name == load_dlib().name
    assert identity_network(NetworksConfig(identity="dlib")).name == network.name
    assert not caplog.messages


def test_weights_of_ones_own(tmp_path):
    path = tmp_path / "other.dat"
    path.write_bytes(bytes(100))
    with pytest.raises(RecognitionError, match=r"other\.dat: not dlib's"):
        identity_network(NetworksConfig(identity="dlib", identity_weights=str(path)))
    with pytest.raises(RecognitionError, match=r"Expected resnet50_ft_weight\.pkl"):  # auto, given weights
        identity_network(NetworksConfig(identity_weights=str(path)))


@pytest.mark.parametrize("kind", ["vggface2", "arcface"])
def test_others_need_weights(kind):
    with pytest.raises(TrainConfigError, match=rf"networks.identity is {kind}, which needs networks.identity_weights"):
        identity_network(NetworksConfig(identity=kind))


def test_the_random_network_is_asked_for(caplog):
    assert identity_network(NetworksConfig(identity="random")).name.startswith("random-")
    assert "RANDOM" in caplog.text


def test_dlib_backbone_starts_from_its_weights_and_the_first_images(tmp_path):
    config = small_config(tmp_path, backbone="dlib")
    run, again = StageRun(job_of(config)), StageRun(job_of(config))
    trained = load_dlib().resnet
    for encoder in (run.model.E_flame, run.model.E_detail):
        torch.testing.assert_close(encoder.encoder.resnet.first.weight, trained.first.weight)
        torch.testing.assert_close(encoder.encoder.resnet.blocks[9].conv2.weight, trained.blocks[9].conv2.weight)
    for first, second in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(first, second)
    assert input_hashes(config)["start"] == load_dlib().name
    features = run.model.E_flame.encoder(next(iter(run.data)).images)
    assert 0.3 < features.std() < 3


def test_fits_are_made_where_a_loss_asks_for_them(tmp_path):
    with_fits = small_config(tmp_path, weights={"coarse": {"identity": 0.0, "fit": 0.1}})
    assert next(iter(training_samples(with_fits, "coarse"))).fits is not None
    assert next(iter(training_samples(with_fits, "pretrain"))).fits is None
    assert next(iter(validation_samples(with_fits, "coarse"))).fits is not None
    assert next(iter(training_samples(small_config(tmp_path), "coarse"))).fits is None


def test_crops_are_as_wide_as_the_settings_say(tmp_path):
    """The face fills the crop of side `scale` by 1 / scale."""
    config = small_config(tmp_path, data={"threads": 1, "crop_scale": (1.25, 1.25)})
    points = next(iter(training_samples(config, "coarse"))).landmarks[..., :2]
    sides = (points.amax(1) - points.amin(1)).mean(1)
    torch.testing.assert_close(sides, torch.full_like(sides, 2 / 1.25), rtol=0.01, atol=0)


@pytest.mark.parametrize("scale", [(0.5, 1.5), (1.6, 1.4), (1.5, 2.0)])
def test_crops_beyond_the_stored_ones_are_refused(tmp_path, scale):
    with pytest.raises(ValueError, match=r"expected 1 <= low <= high <= 1\.8"):
        small_config(tmp_path, data={"crop_scale": scale})
