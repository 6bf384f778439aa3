import json
import os
import threading

import pytest
from fsspec import filesystem
from fsspec.core import url_to_fs

from calibration.artifacts import Store
from calibration.errors import ArtifactError, ConfigurationError
from calibration.shared import Shared


@pytest.fixture
def here(tmp_path):
    return Store(tmp_path / "here")


@pytest.fixture
def there(tmp_path):
    return Store(tmp_path / "there")


def keep(store):
    with store.draft() as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "weights").write_bytes(bytes(range(256)) * 1000)
        (draft / "words").write_text("right")
        return store.keep("thing", draft)


def write(url, content):
    files, path = url_to_fs(url)
    files.pipe_file(path, content)


def place_of(artifact, url):
    return f"{url}/artifacts/{artifact.kind}/{artifact.sha256}"


def test_what_one_machine_puts_another_gets_byte_for_byte(place, here, there):
    artifact = keep(here)
    Shared(place).put(artifact, here)
    assert Shared(place).get(artifact, there) == artifact
    one, other = here.folder(artifact), there.folder(artifact)
    for name in ("words", "deep/weights"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_what_is_fetched_is_as_old_as_it_was_there(tmp_path, here, there):
    (tmp_path / "mounted").mkdir()
    shared = Shared(f"file://{tmp_path}/mounted")
    artifact = keep(here)
    shared.put(artifact, here)
    [manifest] = (tmp_path / "mounted").rglob("manifest.json")
    os.utime(manifest, (1e9, 1e9))
    assert there.made(shared.get(artifact, there)).timestamp() == 1e9


def test_what_was_altered_is_never_served_and_put_again_it_is_whole(place, here, there):
    artifact = keep(here)
    Shared(place).put(artifact, here)
    write(f"{place_of(artifact, place)}/words", b"wrong")
    with pytest.raises(ArtifactError, match="altered"):
        Shared(place).get(artifact, there)
    with pytest.raises(ArtifactError, match="missing"):
        Shared(place).get(artifact, there)
    Shared(place).put(artifact, here)
    assert (there.folder(Shared(place).get(artifact, there)) / "words").read_text() == "right"


def test_half_of_an_artifact_is_none(place, here, there):
    artifact = keep(here)
    Shared(place).put(artifact, here)
    files, path = url_to_fs(place_of(artifact, place))
    for manifest in (b'{"files": {"wo', b""):
        files.pipe_file(f"{path}/manifest.json", manifest)
        with pytest.raises(ArtifactError, match="altered"):
            Shared(place).get(artifact, there)
        assert not files.exists(f"{path}/manifest.json")


def test_a_manifest_cannot_name_a_file_outside_the_store(place, here, there, tmp_path):
    artifact = keep(here)
    Shared(place).put(artifact, here)
    for name in ("../../../planted", str(tmp_path / "planted")):
        write(f"{place_of(artifact, place)}/manifest.json", json.dumps({"files": {name: ""}}).encode())
        write(f"{place}/planted", b"planted")
        with pytest.raises(ArtifactError):
            Shared(place).get(artifact, there)
    assert not [path for path in tmp_path.rglob("planted") if "mounted" not in path.parts]


def test_of_two_writers_who_saw_the_same_the_second_is_refused(s3, tmp_path):
    shared = Shared(f"s3://bucket/{tmp_path.name}")
    assert shared.read("leases/x") is None
    seen = None
    for content in (b"1", b"2", b""):
        won = shared.replace("leases/x", seen, content)
        assert shared.replace("leases/x", seen, b"late") is None
        assert shared.read("leases/x") == (won, content)
        seen = won


def test_a_place_that_cannot_be_used_is_refused_with_what_to_do(s3, tmp_path, monkeypatch):
    Shared("s3://bucket/prefix").check()
    with pytest.raises(ConfigurationError, match="s3://bucket/prefix or file://"):
        Shared("gs://bucket/prefix")
    for url in ("s3://nobody/prefix", f"file://{tmp_path}/unmounted"):
        with pytest.raises(ConfigurationError, match=r"Make the bucket or the folder"):
            Shared(url).check()


def test_a_service_that_heeds_no_conditions_is_refused(s3, monkeypatch):
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    backend = DomainDispatcherApplication(create_backend_app)

    def careless(environ, respond):
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return backend(environ, respond)

    server = make_server("127.0.0.1", 0, careless, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    kept = filesystem("s3")
    type(kept).clear_instance_cache()
    try:
        with pytest.raises(ConfigurationError, match="If-None-Match"):
            Shared("s3://bucket/prefix").check()
    finally:
        type(kept).clear_instance_cache()
        server.shutdown()
