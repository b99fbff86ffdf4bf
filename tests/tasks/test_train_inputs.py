"""Which network judges identity, by the settings."""

from __future__ import annotations

import pytest

from deca_core.dlib_recognition import DlibRecognition, load_dlib
from deca_core.recognition import RecognitionError
from schemas.train import NetworksConfig
from tasks.train_inputs import TrainConfigError, identity_network


def test_dlibs_network_judges_where_no_weights_are_given(caplog):
    network = identity_network(NetworksConfig())
    assert isinstance(network, DlibRecognition)
    assert network.name == load_dlib().name
    assert identity_network(NetworksConfig(identity="dlib")).name == network.name
    assert not caplog.messages


def test_weights_of_ones_own(tmp_path):
    path = tmp_path / "other.dat"
    path.write_bytes(b"")
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
