"""Names and links that lead out of the folder: nothing outside it is read as data, written or deleted."""

from __future__ import annotations

import json
import sys

import pytest

from maskmend.cli import main
from maskmend.data.dataset import find_cases
from maskmend.errors import UserError


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "images/../../secret.png"])
def test_decathlon_list_that_points_outside(data, name):
    (data.parent / "secret.png").write_bytes((data / "images" / "c00.png").read_bytes())
    facts = {
        "labels": {"background": 0, "organ": 1},
        "training": [{"image": name, "label": "labels/c00.png"}],
    }
    (data / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="outside the data set"):
        find_cases(data)


@pytest.mark.parametrize("key", ["raters", "ignore_masks"])
@pytest.mark.parametrize("name", ["../secret", "/etc", "labels/../../secret"])
def test_side_file_that_points_outside(data, key, name):
    (data.parent / "secret").mkdir()
    (data / "maskmend.json").write_text(json.dumps({key: {"c00": name}}))
    with pytest.raises(UserError, match="outside the data set"):
        find_cases(data)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "a\\b", "..", "C:evil"])
def test_case_id_that_is_a_path(data, tmp_path, tree, run_folder, name):
    """Ids become names of results."""
    table = data / "table.csv"
    table.write_text(f"id,image,label\n{name},images/c00.png,labels/c00.png\n")
    before = tree(tmp_path)
    assert main(["check", str(table)]) == 3
    assert main(["predict", str(run_folder), str(table), "-o", str(tmp_path / "out" / "inner")]) == 3
    assert tree(tmp_path) == before


def test_text_behind_an_image_name_is_not_shown(data, capsys):
    secret = data.parent / "secret.txt"
    secret.write_text("the canary sings")
    (data / "images" / "c00.png").unlink()
    (data / "images" / "c00.png").symlink_to(secret)
    assert main(["check", str(data), "--json"]) == 3
    told = capsys.readouterr()
    assert "c00" in told.out
    assert "canary" not in told.out + told.err


def test_result_that_is_a_link_replaces_the_link(data, run_folder, tmp_path):
    out, precious = tmp_path / "out", tmp_path / "precious.png"
    precious.write_bytes(b"precious")
    out.mkdir()
    (out / "c00.png").symlink_to(precious)
    words = ["predict", str(run_folder), str(data), "-o", str(out)]
    assert main(words) == 2, "a file that no prediction made"
    assert main([*words, "--overwrite"]) == 0
    assert precious.read_bytes() == b"precious"
    assert not (out / "c00.png").is_symlink()


def test_overwriting_a_run_does_not_follow_links(data, run_folder, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"precious")
    (run_folder / "cache").symlink_to(precious)
    words = ["train", str(data), "-o", str(run_folder), "--overwrite", "train.steps=1", "device=cpu"]
    assert main([*words, "method.name=supervised", "train.patch=[16, 16]", "train.batch=2"]) == 0
    assert (precious / "file").read_bytes() == b"precious"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
