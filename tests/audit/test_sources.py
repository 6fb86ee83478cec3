"""Foreign probabilities: what is taken, as it is, and what is refused, wherever in the array it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maskmend.audit import prob_files
from maskmend.audit.looks import read_mask
from maskmend.audit.sources import ProbsFolder
from maskmend.data.case import Case, Dataset
from maskmend.errors import DataError

SHAPE = (7, 11)
CASE = Case("a", ())


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are checked in several parts, the last one shorter."""
    monkeypatch.setattr(prob_files, "AT_ONCE", 10)


@pytest.fixture
def probs() -> np.ndarray:
    raw = np.random.default_rng(0).random((3, *SHAPE))
    return raw / raw.sum(axis=0)


def read(folder: Path, array: np.ndarray) -> np.ndarray:
    np.savez(folder / "a.npz", probabilities=array)
    dataset = Dataset(folder, "folders", (CASE,), labels={"background": 0, "one": 1, "two": 2})
    return ProbsFolder(folder, dataset)(CASE, np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize("dtype", ["f2", ">f2", "f4", ">f4", "f8"])
def test_every_number_is_taken_as_it_is(tmp_path: Path, probs: np.ndarray, dtype: str) -> None:
    given = probs.astype(dtype)
    found = read(tmp_path, given)
    assert found.dtype == np.float32
    assert np.array_equal(found, given.astype(np.float32))


def test_fortran_order_and_missing_background(tmp_path: Path, probs: np.ndarray) -> None:
    assert np.array_equal(read(tmp_path, np.asfortranarray(probs)), probs.astype(np.float32))
    assert np.allclose(read(tmp_path, probs[1:]), probs, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda p, at: p[0].__setitem__(at, np.nan), "NaN or infinite"),
        (lambda p, at: p[2].__setitem__(at, np.inf), "NaN or infinite"),
        (lambda p, at: p[2].__setitem__(at, -np.inf), "NaN or infinite"),
        (lambda p, at: p[1].__setitem__(at, -2.5), "values from -2.5 to"),
        (lambda p, at: p[1].__setitem__(at, 40.0), "to 40 are no probabilities"),
        (lambda p, at: [one.__setitem__(at, 0.0) for one in p], r"add up to 0 \.\.\. 1"),
        (lambda p, at: [one.__setitem__(at, 0.5) for one in p], r"add up to .* \.\.\. 1\.5"),
    ],
)
@pytest.mark.parametrize("at", [(0, 0), (3, 5), (6, 10)])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_one_bad_voxel_is_refused(
    tmp_path: Path, probs: np.ndarray, spoil: Callable[..., object], text: str, at: tuple[int, int], dtype: str
) -> None:  # fmt: skip
    spoil(probs, at)
    with pytest.raises(DataError, match=text):
        read(tmp_path, probs.astype(dtype))


# ---- how arrays lie ------------------------------------------------------------------------------------


def masks_and_probs(
    folder: Path, *, turned: bool, wrong: int, shape: tuple[int, ...], count: int = 12
) -> Dataset:
    """Cases with something in a corner; the masks of the first ones are in the opposite corner across the diagonal."""
    (folder / "labels").mkdir(parents=True)
    (folder / "probs").mkdir()
    cases = []
    for number in range(count):
        truth = np.zeros(shape, np.uint8)
        truth[(slice(2, 6), *(slice(9, 13),) * (len(shape) - 1))] = 1
        likely = 0.05 + 0.9 * truth.astype(np.float32)
        probs = np.stack([1 - likely, likely])
        mask = truth.T if number < wrong else truth
        path = folder / "labels" / f"{number:02d}.nii.gz"
        nib.save(nib.Nifti1Image(mask.T.copy(), np.eye(4)), path)
        array = probs.transpose(0, *range(len(shape), 0, -1)) if turned else probs
        np.save(folder / "probs" / f"{number:02d}.npy", array)
        cases.append(Case(f"{number:02d}", (), path))
    return Dataset(folder, "folders", tuple(cases), labels={"background": 0, "one": 1})


def agreeing(probs: ProbsFolder, dataset: Dataset) -> list[bool]:
    """Whether the probabilities of each case lie as the true mask does, whatever the given one."""
    found = []
    for case in dataset.cases:
        given = probs(case, read_mask(case, dataset)[2])[1]
        corner = (slice(2, 6), *(slice(9, 13),) * (given.ndim - 1))
        found.append(bool((given[corner] > 0.9).all()))
    return found


@pytest.mark.parametrize("shape", [(16, 16, 16), (16, 14, 16)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("wrong", [0, 3, 5])
def test_all_arrays_lie_as_most_do(tmp_path: Path, turned: bool, wrong: int, shape: tuple[int, ...]) -> None:
    """A wrong mask may agree better with what is turned: that must not excuse it."""
    dataset = masks_and_probs(tmp_path, turned=turned, wrong=wrong, shape=shape)
    probs = ProbsFolder(tmp_path, dataset)
    assert agreeing(probs, dataset) == [number >= wrong for number in range(12)]  # each by its own mask
    probs.check(dataset.cases)
    assert probs.turned is turned
    assert all(agreeing(probs, dataset))


def test_wrong_masks_that_come_in_a_row_do_not_decide(tmp_path: Path) -> None:
    dataset = masks_and_probs(tmp_path, turned=False, wrong=15, shape=(16, 16, 16), count=60)
    probs = ProbsFolder(tmp_path, dataset)
    probs.check(dataset.cases)
    assert probs.turned is False


@pytest.mark.parametrize("turned", [False, True])
def test_what_the_setting_or_an_earlier_audit_says_counts(tmp_path: Path, turned: bool) -> None:
    dataset = masks_and_probs(tmp_path, turned=turned, wrong=12, shape=(16, 16, 16))
    for probs in (
        ProbsFolder(tmp_path, dataset, "xyz" if turned else "zyx"),
        ProbsFolder(tmp_path, dataset, turned=turned),
    ):
        probs.check(dataset.cases)
        assert all(agreeing(probs, dataset))


@pytest.mark.parametrize("turned", [False, True])
def test_one_shape_that_fits_one_way_tells_of_all(tmp_path: Path, turned: bool) -> None:
    dataset = masks_and_probs(tmp_path, turned=turned, wrong=12, shape=(16, 16, 16))
    mask, likely = np.zeros((3, 4, 5), np.uint8), np.full((2, 3, 4, 5), 0.5, np.float32)
    nib.save(nib.Nifti1Image(mask.T.copy(), np.eye(4)), tmp_path / "labels" / "00.nii.gz")
    np.save(tmp_path / "probs" / "00.npy", likely.transpose(0, 3, 2, 1) if turned else likely)
    probs = ProbsFolder(tmp_path, dataset)
    probs.check(dataset.cases)
    assert probs.turned is turned


def test_few_cases_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = masks_and_probs(tmp_path, turned=False, wrong=0, shape=(16, 16, 16))
    probs, asked = ProbsFolder(tmp_path, dataset), list[str]()
    read = ProbsFolder._read
    monkeypatch.setattr(
        ProbsFolder, "_read", lambda self, case, label: asked.append(case.id) or read(self, case, label)
    )
    probs.check(dataset.cases * 50)
    assert len(asked) == 9  # each says nine tenths of a mask


# ---- how many channels there are, and in which order ------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".nii.gz"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (8, 9)])
def test_too_many_classes_are_counted(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    """And not taken for a grid that is too fine."""
    probs = np.full((3, *shape), 1 / 3, np.float32)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, probabilities=probs)
    elif suffix == ".npy":
        np.save(path, probs)
    else:
        array = probs.T if len(shape) == 3 else probs.T[:, :, None]
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    folder = ProbsFolder(tmp_path, Dataset(tmp_path, "folders", (CASE,), labels={"background": 0, "one": 1}))
    with pytest.raises(DataError, match=r"3 classes in an array of shape .*, the data set has 2"):
        folder(CASE, np.zeros(shape, np.uint8))


def _rows(
    folder: Path, classes: int, *, order: Sequence[int], model: str = "good", wrong: int = 0
) -> ProbsFolder:
    """Cases with a band of each class, and probabilities whose channel k is of the class order[k]."""
    for name in ("labels", "probs"):
        (folder / name).mkdir(parents=True)
    cases, rng = [], np.random.default_rng(0)
    for number in range(12):
        truth = np.repeat(np.arange(classes), 6)[:, None].repeat(14, 1)
        truth = np.roll(truth, int(rng.integers(0, 3)), 0)
        sure = {"good": 0.9, "blind": 0.0}[model]
        probs = sure * (truth == np.arange(classes)[:, None, None]) + (1 - sure) / classes
        mask = np.where(truth == 1, 2, np.where(truth == 2, 1, truth)) if number < wrong else truth
        path = folder / "labels" / f"{number:02d}.nii.gz"
        nib.save(nib.Nifti1Image(mask.T.astype(np.uint8), np.eye(4)), path)
        np.save(folder / "probs" / f"{number:02d}.npy", probs[list(order)].astype(np.float32))
        cases.append(Case(f"{number:02d}", (), path))
    labels = {
        name: value for value, name in enumerate(["background", "one", "two", "three", "four"][:classes])
    }
    dataset = Dataset(folder, "folders", tuple(cases), labels=labels)
    found = ProbsFolder(folder / "probs", dataset)
    found.check(dataset.cases)
    return found


@pytest.mark.parametrize(
    ("order", "likely"),
    [
        ([1, 0], "one, background"),
        ([1, 2, 0], "one, two, background"),
        ([0, 2, 1], "background, two, one"),
        ([4, 0, 1, 2, 3], "four, background, one, two, three"),
    ],
)
def test_channels_in_another_order_are_refused(tmp_path: Path, order: list[int], likely: str) -> None:
    with pytest.raises(DataError, match=f"seem to be in the order {likely}: so"):
        _rows(tmp_path, len(order), order=order)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("model", ["good", "blind"])
@pytest.mark.parametrize("wrong", [0, 7])
def test_bad_models_and_swapped_masks_are_no_other_order(
    tmp_path: Path, classes: int, model: str, wrong: int
) -> None:
    _rows(tmp_path, classes, order=range(classes), model=model, wrong=wrong if classes > 2 else 0)


# ---- in which direction they lie -----------------------------------------------------------------------------


LPS = np.array([[-1.0, 0, 0, 40], [0, -2, 0, 50], [0, 0, 3, 7], [0, 0, 0, 1]])


def _ball(number: int) -> np.ndarray:
    """A mask (x, y, z) whose middle is nowhere near that of the volume."""
    at = np.stack(np.meshgrid(*(np.arange(size) for size in (18, 16, 12)), indexing="ij"), -1)
    ball: np.ndarray = ((at - [5 + number % 2, 5, 4]) ** 2).sum(-1) < 9
    return ball


def _volumes(folder: Path, affines: Sequence[np.ndarray], write: Callable[..., object]) -> ProbsFolder:
    """Cases on these grids; `write` makes the file of (K, x, y, z) for a case."""
    for name in ("labels", "probs"):
        (folder / name).mkdir(parents=True)
    cases = []
    for number, affine in enumerate(affines):
        truth = _ball(number)
        path = folder / "labels" / f"{number:02d}.nii.gz"
        nib.save(nib.Nifti1Image(truth.astype(np.uint8), affine), path)
        likely = (0.05 + 0.9 * truth).astype(np.float32)
        write(folder / "probs" / f"{number:02d}", np.stack([1 - likely, likely]), affine)
        cases.append(Case(f"{number:02d}", (), path))
    return ProbsFolder(folder, Dataset(folder, "folders", tuple(cases), labels={"background": 0, "one": 1}))


def _right(probs: ProbsFolder) -> list[bool]:
    found = []
    for case in probs.dataset.cases:
        label = read_mask(case, probs.dataset)[2]
        found.append(bool(((probs(case, label)[1] > 0.5) == (label > 0)).all()))
    return found


def _turned_volume(path: Path, probs: np.ndarray, affine: np.ndarray) -> None:
    """As MONAI writes what it has turned: with a header that says so."""
    image = nib.as_closest_canonical(nib.Nifti1Image(np.moveaxis(probs, 0, -1), affine))
    nib.save(image, f"{path}.nii.gz")


@pytest.mark.parametrize("affine", [LPS, LPS[:, [1, 2, 0, 3]], np.diag([-1.0, -1, 1, 1])])
def test_volumes_lie_as_their_header_says(tmp_path: Path, affine: np.ndarray) -> None:
    """Turned or with the axes in another order, as long as it is the same grid. They had been taken by index."""
    probs = _volumes(tmp_path, [affine] * 3, _turned_volume)
    probs.check(probs.dataset.cases)
    assert all(_right(probs))


@pytest.mark.parametrize("affine", [LPS, np.diag([-1.0, -1, 1, 1])])
def test_a_header_that_says_nothing_is_not_believed(tmp_path: Path, affine: np.ndarray) -> None:
    def write(path: Path, probs: np.ndarray, _: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(np.moveaxis(probs, 0, -1), np.eye(4)), f"{path}.nii.gz")

    probs = _volumes(tmp_path, [affine] * 3, write)
    probs.check(probs.dataset.cases)
    assert all(_right(probs))


def test_a_volume_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    def write(path: Path, probs: np.ndarray, affine: np.ndarray) -> None:
        moved = affine.copy()
        moved[0, 3] += 5
        nib.save(nib.Nifti1Image(np.moveaxis(probs, 0, -1), moved), f"{path}.nii.gz")

    with pytest.raises(DataError, match="lies 5 mm from the mask"):
        _volumes(tmp_path, [LPS] * 3, write).check(
            _volumes(tmp_path / "again", [LPS] * 3, write).dataset.cases
        )


def _as_ras(path: Path, probs: np.ndarray, affine: np.ndarray) -> None:
    """As nnU-Net's NibabelIOWithReorient."""
    image = nib.as_closest_canonical(nib.Nifti1Image(np.moveaxis(probs, 0, -1), affine))
    np.savez(path, probabilities=np.asarray(image.dataobj).transpose(3, 2, 1, 0))


@pytest.mark.parametrize("share", [6, 3])
def test_arrays_that_run_ras_are_refused_and_read(tmp_path: Path, share: int) -> None:
    """Also where only some of the volumes do not run RAS themselves."""
    affines = [LPS if number % 6 < share else np.diag([1.0, 2, 3, 1]) for number in range(12)]
    probs = _volumes(tmp_path, affines, _as_ras)
    with pytest.raises(DataError, match="turned to run RAS") as refused:
        probs.check(probs.dataset.cases)
    assert "audit.axes=ras" in str(refused.value)
    so = ProbsFolder(tmp_path, probs.dataset, "ras")
    so.check(so.dataset.cases)
    assert all(_right(so))


@pytest.mark.parametrize("order", [[2, 1, 0, 3], [1, 2, 0, 3]])
def test_arrays_that_run_ras_have_another_shape(tmp_path: Path, order: list[int]) -> None:
    """And are not taken for axes that come in reverse order."""
    probs = _volumes(tmp_path, [LPS[:, order]] * 6, _as_ras)
    with pytest.raises(DataError, match="turned to run RAS"):
        probs.check(probs.dataset.cases)
    so = ProbsFolder(tmp_path, probs.dataset, "ras")
    so.check(so.dataset.cases)
    assert all(_right(so))


def test_one_array_that_fits_only_so_gets_the_hint(tmp_path: Path) -> None:
    """Fewer than five tell nothing by how they agree."""
    probs = _volumes(tmp_path, [LPS[:, [1, 2, 0, 3]]], _as_ras)
    probs.check(probs.dataset.cases)
    case = probs.dataset.cases[0]
    with pytest.raises(DataError, match=r"turned to run RAS, as by .* audit\.axes=ras"):
        probs(case, read_mask(case, probs.dataset)[2])


def test_arrays_that_nnunet_1_has_cropped_are_told_as_such(tmp_path: Path, probs: np.ndarray) -> None:
    (tmp_path / "a.pkl").touch()
    with pytest.raises(DataError, match="nnU-Net 1 keeps them cropped"):
        read(tmp_path, probs[:, 1:])


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_mirrored_arrays_are_refused(tmp_path: Path, axes: tuple[int, ...]) -> None:
    def write(path: Path, probs: np.ndarray, _: np.ndarray) -> None:
        np.save(f"{path}.npy", np.flip(probs.transpose(0, 3, 2, 1), [1 + axis for axis in axes]))

    probs = _volumes(tmp_path, [np.diag([1.0, 2, 3, 1])] * 8, write)
    named = " and ".join(map(str, axes))
    with pytest.raises(DataError, match=f"mirrored along axis {named} "):
        probs.check(probs.dataset.cases)
    ProbsFolder(tmp_path, probs.dataset, "zyx").check(probs.dataset.cases)  # who says so is believed


@pytest.mark.parametrize("mirrored", [1, 4])
def test_mirrored_masks_are_no_mirrored_arrays(tmp_path: Path, mirrored: int) -> None:
    """They are what the audit is to find."""

    def write(path: Path, probs: np.ndarray, _: np.ndarray) -> None:
        probs = probs[:, ::-1] if int(path.name) < mirrored else probs
        np.save(f"{path}.npy", probs.transpose(0, 3, 2, 1))

    probs = _volumes(tmp_path, [np.diag([1.0, 2, 3, 1])] * 8, write)
    probs.check(probs.dataset.cases)


# ---- how MONAI names and fills files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a/a_trans", "a_trans", "a/a", "a_0000_trans", "a_0000/a_0000_trans", "a_0000"]
)
def test_names_of_monai(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.full((2, *SHAPE), 0.5, np.float32))
    case = Case("a", (tmp_path / "a_0000.png",))
    dataset = Dataset(tmp_path, "folders", (case,), labels={"background": 0, "one": 1})
    assert ProbsFolder(tmp_path, dataset).files_of("a") == [path]


def test_pickles_are_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    dataset = Dataset(tmp_path, "folders", (CASE,), labels={"background": 0, "one": 1})
    with pytest.raises(DataError, match=r"pickles .* are never loaded"):
        ProbsFolder(tmp_path, dataset).check([CASE])


def _nifti(folder: Path, array: np.ndarray) -> np.ndarray:
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), folder / "a.nii.gz")
    dataset = Dataset(folder, "folders", (CASE,), labels={"background": 0, "one": 1, "two": 2})
    return ProbsFolder(folder, dataset)(CASE, np.zeros((4, 5, 6), np.uint8))


def test_a_volume_may_leave_out_the_background(tmp_path: Path) -> None:
    """As arrays may."""
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (6, 5, 4))
    assert np.allclose(_nifti(tmp_path, probs[..., 1:]), probs.transpose(3, 2, 1, 0), atol=1e-6)


def test_a_volume_with_its_classes_first_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="classes on the first of the axes 3 x 6 x 5 x 4"):
        _nifti(tmp_path, np.full((3, 6, 5, 4), 1 / 3))


def test_regions_and_sigmoids_without_a_background_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 channels without a background that add up to 2: regions"):
        _nifti(tmp_path, np.ones((6, 5, 4, 2)))


def test_a_batch_of_one(tmp_path: Path, probs: np.ndarray) -> None:
    assert np.array_equal(read(tmp_path, probs[None]), probs.astype(np.float32))
