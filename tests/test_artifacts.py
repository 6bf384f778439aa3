import errno
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydantic import ValidationError

from calibration.artifacts import MANIFEST, Artifact, Store, explaining_full_disk, inside
from calibration.errors import ArtifactError, ConfigurationError, DiskFullError


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def keep(store, **files):
    with store.draft() as draft:
        for name, text in files.items():
            (draft / name).write_text(text)
        return store.keep("thing", draft)


def test_equal_content_is_one_artifact_whatever_its_folder_was_called(store):
    assert keep(store, a="1", b="2") == keep(store, b="2", a="1")
    assert keep(store, a="1", b="2") != keep(store, a="2", b="1")
    assert len(list((store.root / "artifacts" / "thing").iterdir())) == 2


def test_a_changed_byte_is_never_served(store):
    artifact = keep(store, a="right")
    (store.folder(artifact) / "a").write_text("wrong")
    with pytest.raises(ArtifactError, match="altered"):
        store.folder(artifact)


@pytest.mark.parametrize("manifest", ["whole", "{"], ids=["whole", "garbled"])
def test_damage_names_the_artifact_and_its_files(store, manifest):
    artifact = keep(store, a="right", b="right")
    assert store.damage(artifact) == ""
    folder = store.folder(artifact)
    (folder / "a").write_text("wrong")
    if manifest == "{":
        (folder / MANIFEST).write_text(manifest)
    assert store.damage(artifact).startswith(
        f"thing {artifact.sha256[:12]} was altered after it was stored (a"
    )


def test_a_full_disk_is_told_from_other_errors(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, RuntimeError("safetensors: No space left on device (os error 28)")):
        with (
            pytest.raises(DiskFullError, match=rf"{tmp_path} must have room"),
            explaining_full_disk(tmp_path),
        ):
            raise error
    with pytest.raises(DiskFullError), explaining_full_disk(tmp_path):
        raise RuntimeError("unexpected position") from full
    with pytest.raises(OSError, match="other"), explaining_full_disk(tmp_path):
        raise OSError(errno.EIO, "other")


def test_an_added_file_is_never_served(store):
    artifact = keep(store, a="right")
    (store.folder(artifact) / "extra").write_text("planted")
    with pytest.raises(ArtifactError, match="altered"):
        store.folder(artifact)


def test_a_folder_without_its_manifest_is_not_there(store):
    artifact = keep(store, a="right")
    (store.folder(artifact) / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        store.folder(artifact)


def test_storing_again_heals_an_altered_artifact(store):
    artifact = keep(store, a="right")
    (store.folder(artifact) / "a").write_text("wrong")
    assert keep(store, a="right") == artifact
    assert (store.folder(artifact) / "a").read_text() == "right"


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another disk, into which no folder can be moved in one step."""
    memory = Path("/dev/shm")  # noqa: S108 - nothing is left there
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk")
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_what_cannot_be_moved_into_place_is_not_said_to_be_missing(store, other_disk):
    store.root.mkdir()
    (store.root / "artifacts").symlink_to(other_disk)
    with pytest.raises(OSError, match=r"drafts/.* -> .*/artifacts/thing/") as caught:
        keep(store, a="right")
    assert caught.value.errno == errno.EXDEV


def test_a_draft_that_fails_leaves_nothing(store):
    def write_half():
        with store.draft() as draft:
            (draft / "half").write_text("written")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert list((store.root / "drafts").iterdir()) == []


def test_a_process_killed_while_storing_leaves_no_artifact(store, tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from calibration.artifacts import Store\n"
        "with Store(Path(sys.argv[1])).draft() as draft:\n"
        "    (draft / 'half').write_text('written')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(store.root)], cwd=Path.cwd(), check=False)
    assert died.returncode == -9
    assert not (store.root / "artifacts").exists()


def test_an_artifact_means_the_same_after_the_store_has_moved(store, tmp_path):
    artifact = keep(store, a="right")
    store.root.rename(tmp_path / "elsewhere")
    assert (Store(tmp_path / "elsewhere").folder(artifact) / "a").read_text() == "right"


def test_an_unknown_artifact_is_refused_with_what_to_do(store):
    with pytest.raises(ArtifactError, match="Run the experiment again"):
        store.folder(Artifact(kind="thing", sha256="0" * 64))


def test_a_store_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--store"):
        Store(tmp_path / "file" / "store").check_writable()


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SLM_CALIBRATION_STORE", str(tmp_path / "here"))
    assert Store.from_environment().root == tmp_path / "here"
    assert Store(Path("relative")).root.is_absolute()


@pytest.mark.parametrize("kind", ["..", "../model", "/etc", "a/b", "Model", "", "a.b"])
def test_a_reference_cannot_name_a_folder_outside_the_store(kind):
    with pytest.raises(ValidationError, match="kind"):
        Artifact(kind=kind, sha256="0" * 64)


@pytest.mark.parametrize("digest", ["..", "0" * 63, "0" * 63 + "/", "../" + "0" * 61, "A" * 64])
def test_a_reference_is_a_digest_and_no_path(digest):
    with pytest.raises(ValidationError, match="sha256"):
        Artifact(kind="model", sha256=digest)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "a/../../outside", ".."])
def test_a_manifest_cannot_name_a_file_outside_its_folder(name, tmp_path):
    with pytest.raises(ArtifactError, match="must lie in its folder"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b.json") == tmp_path / "a" / "b.json"


def test_a_new_store_is_for_nobody_else(tmp_path):
    Store(tmp_path / "store").check_writable()
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
