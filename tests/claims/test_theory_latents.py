"""The claims of the experiments on latent reuse, at reduced size."""

import pytest

from experiments.__main__ import experiments, main


@pytest.mark.parametrize(
    ("number", "scale"),
    [("001.1", 1), ("001.2", 0.1), ("001.3", 0.2), ("001.4", 1), ("001.6", 1)],
)
def test_linear_spaces(number, scale):
    rows, facts = experiments()[number].run(scale)
    assert rows
    assert facts["holds"]


def test_the_law_in_angles_has_its_slopes():
    facts = experiments()["001.1"].run(1)[1]
    assert facts["holds"]
    assert facts["worst"] < 0.03
    assert facts["slopes"]["in sin(angle)"] == pytest.approx(2, abs=0.02)


def test_the_winner_changes_with_the_size_in_most_splits():
    facts = experiments()["001.4"].run(1)[1]
    assert facts["seeds_where_it_changes"] >= 3
    assert len(facts["winners"]) == 5


@pytest.mark.slow
def test_autoencoders_of_digits():
    assert experiments()["001.5"].run(0.15)[1]["holds"]


@pytest.mark.slow
def test_autoencoders_of_images(data_root):
    # that relearning beats reuse at low noise takes the full size
    assert experiments()["001.7"].run(0.1)[1]["bounded"]


def test_the_driver_lists_them(capsys):
    assert main(["--list"]) == 0
    assert "001.7" in capsys.readouterr().out
    assert main(["001.99"]) == 2
    assert "there is no experiment 001.99" in capsys.readouterr().err
