"""Files and folders that no model is loaded from or saved to."""

import pytest
from refused import TWICE
from states import unchanged

from scgmvae import SCGMVAE, DualVAE


@pytest.fixture(scope="module")
def folder(conditioned, tmp_path_factory):
    """The folder of a saved model."""
    path = tmp_path_factory.mktemp("saved") / "model"
    conditioned.save(path)
    return path


def test_a_folder_that_does_not_exist_holds_no_model():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="must hold a saved"):
                SCGMVAE.load("/nowhere")


def test_a_folder_that_does_not_exist_holds_no_registry():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="saved"):
                SCGMVAE.load_registry("/nowhere")


def test_a_model_is_loaded_under_the_prefix_that_it_was_saved_with(folder):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="no b_model.json"):
                SCGMVAE.load(folder, False, prefix="b_")


def test_a_model_is_loaded_by_its_own_class(folder):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="must be a DualVAE, but it is a SCGMVAE"):
                DualVAE.load(folder, False)


def test_data_of_a_loaded_model_are_no_file_name(folder):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="AnnData or a MuData, None or False.*str"):
                SCGMVAE.load(folder, "x.h5ad")


def test_loading_takes_no_unknown_argument(folder):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(TypeError, match="pickle"):
                SCGMVAE.load(folder, False, pickle=True)


def test_a_prefix_of_files_names_no_folder(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="beginning of a file name.*'a/b'"):
                roughly_trained.save("/nowhere", prefix="a/b")


def test_a_folder_is_not_written_over(roughly_trained, tmp_path):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="must not exist.*overwrite"):
                roughly_trained.save(tmp_path)
