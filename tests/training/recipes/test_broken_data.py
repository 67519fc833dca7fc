"""The corpus of broken folders: a recipe names all that is wrong before it loads a model."""

from __future__ import annotations

import pytest
from PIL import Image

from langevin.core.records import Problems, read_folder
from langevin.training.recipes.text_to_image import LoraSettings, train_lora
from langevin.training.settings import parse
from tests.training.data.test_doctor import corrupt, empty, extra_rows, huge, missing_column, put, unreadable

BROKEN = {
    missing_column: ["no column 'text'"],
    empty: ["holds no picture"],
    extra_rows: ["line 8: another number", "line 5: gone.png does not exist", "line 7: '../up.png'", "such as 2.png"],
    corrupt: ["half.jpg cannot be read", "nothing.png cannot be read", "text.png cannot be read", "Save it anew"],
    huge: ["bomb.png cannot be read as a picture (Image size"],
    unreadable: ["link.png leads to no file", "the text of latin.png", "1 examples have no 'text', such as latin.png"],
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_recipe_names_all_that_is_wrong_before_a_model_is_loaded(broken, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_400_000)
    broken(tmp_path)
    flags = ["--pretrained_model_name_or_path=no/model", f"--train_data_dir={tmp_path}", "--resolution=16"]
    with pytest.raises(Problems) as told:
        train_lora(parse(LoraSettings, flags, name="train"))
    assert all(words in str(told.value) for words in BROKEN[broken]), str(told.value)


def test_a_picture_that_breaks_later_is_seen(tmp_path) -> None:
    whole = put(tmp_path / "a.jpg", 1, size=(300, 300))
    assert len(read_folder(tmp_path).checked("image")) == 1
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(Problems, match=r"a\.jpg cannot be read"):
        read_folder(tmp_path).checked("image")
