"""The backend against a stand-in for Modal's control plane, with the real client and real containers."""

import asyncio
import json
import os
import shutil
import time

import pytest

from calibration.artifacts import Store
from calibration.backends.ledger import Ledger
from calibration.backends.local import Local
from calibration.backends.modal import Modal
from calibration.backends.wire import OutOfReachError
from calibration.engines.hf import Hf
from calibration.engines.recorded import RecordedAnswers
from calibration.engines.vllm import Vllm
from calibration.errors import ConfigurationError, JobError
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.models.hub import Hub
from calibration.models.pocket import Pocket
from calibration.records import Generation, Question
from calibration.worlds.facts import Document

ON = Modal(poll_seconds=0.2)


@pytest.fixture
def store():
    return Store.from_environment()


def nothing(*_):
    pass


def run(job, store, key, on=ON):
    return asyncio.run(on.run(job, key, store, nothing))


def training(store, epochs):
    """A job that trains, on texts and settings of the smallest kind; 100 epochs take half a minute."""
    documents = [Document(user=f"who is {n}?", reply=f"{n} is number {n} of all") for n in range(40)]
    tiny = {"width": 16, "layers": 1, "heads": 2, "key_value_heads": 1, "feed_forward": 16}
    weights = Pocket(**tiny, tokens_per_step=64, epochs=epochs, checkpoint_steps=2)
    return Obtain(weights=weights, corpus=store.save_rows("corpus", documents, Document))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the local backend makes of a training."""
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    return asyncio.run(Local().run(training(store, epochs=10), "key", store, nothing))


def checkpoint(cloud, key):
    """Whether the container that runs has a checkpoint."""
    containers = [container for call in cloud.calls.values() for container in call.containers]
    return containers and sealed(containers[-1].folder / "volumes", key)


def sealed(volumes, key):
    """The checkpoints of a job that were written to their end."""
    return list(volumes.glob(f"*artifacts/scratch/{key}/pretraining/*/checkpoint-*/seal.json"))


# The way there and back


def test_a_model_of_the_hub_is_fetched_without_a_gpu_and_then_asked(cloud, store, hub, random_model):
    hub.models["acme/random"] = {path.name: path.read_bytes() for path in random_model.iterdir()}
    questions = store.save_rows("questions", [Question(id="q", text="why?", answers=("x",))], Question)
    with store.draft() as draft:
        (draft / "pointer.json").write_text(json.dumps({"repo": "acme/random", "revision": None}))
        model = store.keep("model", draft)
    job = Infer(questions=questions, engine=Hf(max_tokens=4), elicitation="plain", model=model)

    async def both_ways():
        stated = job.model_copy(update={"elicitation": "stated"})
        return await asyncio.gather(
            ON.run(job, "plain", store, nothing), ON.run(stated, "stated", store, nothing)
        )

    plain, _ = asyncio.run(both_ways())
    [alone] = store.load_rows(plain, Generation)
    expected = Hf(max_tokens=4).generate(
        store.load_rows(questions, Question), "plain", model=random_model, adapter=None, progress=nothing
    )
    assert [alone] == expected
    kinds = [
        (call.function.function_name, call.function.resources.gpu_config.gpu_type)
        for call in cloud.calls.values()
    ]
    assert sorted(kinds) == [("infer", "A100-40GB"), ("infer", "A100-40GB"), ("obtain", "")]
    assert (
        len([asked for asked in hub.asked if asked.startswith("GET") and asked.endswith("safetensors")]) == 1
    )


def test_vllm_is_asked_in_an_image_of_its_own_and_each_on_the_gpu_that_was_asked_for(
    cloud, store, random_model
):
    questions = store.save_rows("questions", [Question(id="q", text="why?", answers=("x",))], Question)
    with store.draft() as draft:
        shutil.copytree(random_model, draft, dirs_exist_ok=True)
        model = store.keep("model", draft)
    job = Infer(questions=questions, engine=Vllm(), elicitation="plain", model=model)
    # The containers here are of this environment, which has no vLLM.
    with pytest.raises(ConfigurationError, match="must run where vLLM is installed"):
        run(job, store, "vllm")
    hf_job = job.model_copy(update={"engine": Hf(max_tokens=1)})
    run(hf_job, store, "hf", ON.model_copy(update={"infer_gpu": "H100"}))
    vllm, hf = (call.function for call in cloud.calls.values())
    assert (vllm.function_name, hf.function_name) == ("infer_vllm", "infer")
    assert vllm.image_id != hf.image_id
    assert [one.resources.gpu_config.gpu_type for one in (vllm, hf)] == ["A100-40GB", "H100"]


def test_an_image_is_built_of_its_lock_and_takes_only_files_whose_hashes_are_in_it(cloud):
    installs = [line.split() for line in cloud.built if "--requirements" in line]
    assert sorted(words[-1].rpartition("/")[2] for words in installs) == ["train.txt", "vllm.txt"]
    assert all("--require-hashes" in words for words in installs)


def test_answers_that_are_there_already_need_no_container(cloud, store, tmp_path):
    (tmp_path / "answers.csv").write_text("id,question,response,tokens,logprobs\nq,why?,x,['x'],[-0.1]\n")
    questions = store.save_rows("questions", [Question(id="q", text="why?", answers=("x",))], Question)
    engine = RecordedAnswers(path=str(tmp_path / "answers.csv"), logprobs="logprobs", id="id")
    run(Infer(questions=questions, engine=engine, elicitation="plain"), store, "recorded")
    assert not cloud.calls


def test_files_of_any_size_go_there_and_come_back_as_they_were(cloud, store, tmp_path):
    contents = {"small": b"x", "deep/large": os.urandom(9 << 20), "empty": b""}
    with store.draft() as draft:
        for name, content in contents.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(content)
        artifact = store.keep("files", draft)
    other = Store(tmp_path / "other")

    async def there_and_back():
        await ON._remote().put(artifact, store)
        await ON._remote().get(artifact, other)

    asyncio.run(there_and_back())
    assert {name: (other.folder(artifact) / name).read_bytes() for name in contents} == contents


# What is paid for


def test_a_call_runs_on_what_was_asked_for_and_its_cost_is_booked(cloud, store, fetching):
    run(fetching("acme/booked"), store, "booked", ON.model_copy(update={"obtain_minutes": 7}))
    [call] = cloud.calls.values()
    assert call.function.timeout_secs == 420
    [cost] = Ledger(store).costs()
    assert (cost.kind, cost.outcome, cost.call) == ("obtain", "done", call.id)
    assert 0 < cost.seconds < 60
    assert cost.usd == pytest.approx(cost.seconds * 2 * 0.0000131, abs=1e-6)
    assert Ledger(store).open() == []


def test_finished_work_is_found_from_a_machine_that_knows_nothing_of_it(cloud, store, fetching, tmp_path):
    job = fetching("acme/found")
    artifact = run(job, store, "found")
    other = Store(tmp_path / "other")
    assert run(job, other, "found") == artifact
    assert other.is_whole(artifact)
    assert len(cloud.calls) == 1


@pytest.mark.parametrize("harm", [shutil.rmtree, lambda folder: (folder / "pointer.json").write_text("{}")])
def test_finished_work_whose_result_was_lost_or_altered_is_done_again(harm, cloud, store, fetching, tmp_path):
    job = fetching("acme/lost")
    artifact = run(job, store, "lost")
    [folder] = cloud.folder.glob(f"vo-*/artifacts/model/{artifact.sha256}")
    harm(folder)
    assert run(job, Store(tmp_path / "other"), "lost") == artifact
    assert len(cloud.calls) == 2


def test_forgotten_work_is_done_again_but_what_is_under_way_goes_on(cloud, store, hub, fetching, begun):
    job, call = begun("acme/forgotten", "forgotten")
    asyncio.run(ON.forget("forgotten", store))
    hub.open.set()
    run(job, store, "forgotten")
    assert list(cloud.calls.values()) == [call]
    for _ in range(2):  # the second time there is nothing to forget
        asyncio.run(ON.forget("forgotten", store))
    run(job, store, "forgotten")
    assert len(cloud.calls) == 2


def test_a_job_runs_once_although_its_orchestrator_is_killed(cloud, store, hub, begun):
    job, call = begun("acme/once", "once")
    hub.open.set()
    assert store.is_whole(run(job, store, "once"))
    assert list(cloud.calls) == [call.id]
    assert len(call.containers) == 1


def test_a_call_whose_id_never_reached_the_disk_is_found_by_what_it_left_on_the_volume(
    cloud, store, hub, begun, until
):
    job, call = begun("acme/nameless", "nameless")
    (store.root / "calls" / "nameless.json").unlink()

    async def scenario():
        running = asyncio.create_task(ON.run(job, "nameless", store, nothing))
        await asyncio.to_thread(until, lambda: Ledger(store).find("nameless"))
        hub.open.set()
        return await running

    assert store.is_whole(asyncio.run(scenario()))
    assert list(cloud.calls) == [call.id]
    assert [(cost.call, cost.outcome) for cost in Ledger(store).costs()] == [(call.id, "done")]


def test_of_two_calls_for_the_same_work_only_the_first_does_it(cloud, store, hub, begun, until):
    job, first = begun("acme/twice", "twice")
    (store.root / "calls" / "twice.json").unlink()
    [holder] = cloud.folder.glob("vo-*artifacts/scratch/twice/holder")
    # The moment before the first container has told anyone.
    hidden = holder.rename(holder.with_name("hidden"))
    cloud.room.clear()

    async def scenario():
        running = asyncio.create_task(ON.run(job, "twice", store, nothing))
        await asyncio.to_thread(until, lambda: len(cloud.calls) == 2)
        hidden.rename(holder)
        cloud.room.set()
        second = list(cloud.calls.values())[1]
        await asyncio.to_thread(until, second.over.is_set)
        hub.open.set()
        return second, await running

    second, artifact = asyncio.run(scenario())
    assert store.is_whole(artifact)
    assert len(cloud.calls) == 2
    costs = [(cost.call, cost.outcome, cost.usd > 0) for cost in Ledger(store).costs()]
    assert costs == [(second.id, "elsewhere", False), (first.id, "done", True)]


def test_a_result_that_expired_is_found_on_the_volume(cloud, store, hub, begun, until):
    job, call = begun("acme/expired", "expired")
    hub.open.set()
    until(call.over.is_set)
    call.expired = True
    assert store.is_whole(run(job, store, "expired"))
    assert len(cloud.calls) == 1
    assert [cost.outcome for cost in Ledger(store).costs()] == ["done"]


def test_what_ended_badly_while_nobody_was_there_is_begun_again(cloud, store, hub, begun, until):
    job, call = begun("acme/again", "again")
    call.containers[-1].process.kill()
    until(call.over.is_set)
    hub.open.set()
    assert store.is_whole(run(job, store, "again"))
    assert len(cloud.calls) == 2
    assert [cost.outcome for cost in Ledger(store).costs()] == ["failed", "done"]


# What happens in a day of cloud


@pytest.mark.parametrize("blow", ["preempt", pytest.param("time_out", marks=pytest.mark.slow)])
def test_thrown_out_a_job_goes_on_from_its_checkpoint_and_gives_what_it_gives_here(
    blow, cloud, store, undisturbed, until
):
    job, said = training(store, epochs=10), []

    async def scenario():
        running = asyncio.create_task(ON.run(job, blow, store, lambda *words: said.append(words)))
        await asyncio.to_thread(until, lambda: checkpoint(cloud, blow))
        [call] = cloud.calls.values()
        cloud.room.clear()
        getattr(cloud, blow)(call)
        # Nobody works now, so what is said is what the first container has left.
        await asyncio.to_thread(until, lambda: said and said[-1][0] > 0)
        left = said[-1]
        assert sealed(cloud.folder, blow), "its checkpoint is kept"
        cloud.room.set()
        return call, left, await running

    call, (fraction, note), artifact = asyncio.run(scenario())
    assert len(call.containers) == 2
    assert artifact == undisturbed
    assert said[0] == (0.0, "waiting for CPU")
    assert 0 < fraction < 1
    assert note.startswith("loss")
    assert store.is_whole(artifact)


def test_a_cancelled_run_stops_its_call_within_seconds_and_keeps_the_checkpoint(cloud, store, until):
    job = training(store, epochs=200)

    async def scenario():
        running = asyncio.create_task(ON.run(job, "cancelled", store, nothing))
        await asyncio.to_thread(until, lambda: checkpoint(cloud, "cancelled"))
        began = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        [call] = cloud.calls.values()
        await asyncio.to_thread(until, lambda: call.containers[0].process.returncode is not None)
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 10
    assert Ledger(store).open() == []
    assert [cost.outcome for cost in Ledger(store).costs()] == ["cancelled"]
    assert sealed(cloud.folder, "cancelled")


def test_a_run_that_is_cancelled_while_its_call_is_taken_leaves_no_call_behind(cloud, store, fetching, until):
    cloud.answers.clear()

    async def scenario():
        running = asyncio.create_task(ON.run(fetching("acme/late"), "late", store, nothing))
        await asyncio.to_thread(until, lambda: cloud.calls)
        running.cancel()
        await asyncio.sleep(0)
        cloud.answers.set()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(scenario())
    [call] = cloud.calls.values()
    assert "TERMINATED" in str(call.output)
    assert Ledger(store).open() == []


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_connection_that_is_lost_for_a_while_changes_nothing(seconds, cloud, store, hub, fetching, until):
    job = fetching("acme/away")
    hub.open.clear()

    async def scenario():
        running = asyncio.create_task(ON.run(job, "away", store, nothing))
        await asyncio.to_thread(until, lambda: hub.is_downloading("acme/away"))
        await asyncio.to_thread(cloud.vanish)
        hub.open.set()
        [call] = cloud.calls.values()
        await asyncio.to_thread(until, call.over.is_set)
        assert not (await asyncio.wait([running], timeout=seconds))[0], "it waits for the connection"
        await asyncio.to_thread(cloud.appear)
        return await running

    assert store.is_whole(asyncio.run(scenario()))
    assert len(cloud.calls) == 1


def test_a_connection_that_stays_lost_ends_the_run_and_not_the_job(cloud, store, hub, begun):
    job, _ = begun("acme/gone", "gone")
    cloud.vanish()
    try:
        with pytest.raises(OutOfReachError, match="must be within reach"):
            run(job, store, "gone", ON.model_copy(update={"patience_minutes": 0.0}))
    finally:
        cloud.appear()
    hub.open.set()
    assert store.is_whole(run(job, store, "gone"))
    assert len(cloud.calls) == 1


def test_a_job_that_refuses_its_input_is_not_tried_again_and_says_why(cloud, store, hub, fetching):
    job = fetching("acme/gated")
    hub.gated.add("acme/gated")
    cloud.secrets["st-huggingface"] = {"HF_TOKEN": "hf_of_somebody_else"}
    with pytest.raises(ConfigurationError, match="acme/gated is gated"):
        run(job, store, "gated")
    [call] = cloud.calls.values()
    assert len(call.containers) == 1
    assert [cost.outcome for cost in Ledger(store).costs()] == ["refused"]


def test_a_job_that_breaks_is_tried_as_often_as_deployed_and_then_says_how(cloud, store, hub, fetching):
    job = fetching("acme/broken")
    hub.models["acme/broken"] = None
    with pytest.raises(JobError, match=r"obtain on CPU broke: .*modal app logs slm-calibration"):
        run(job, store, "broken")
    [call] = cloud.calls.values()
    assert len(call.containers) == 3
    assert [cost.outcome for cost in Ledger(store).costs()] == ["failed"]


def test_a_call_that_costs_more_than_there_is_is_stopped_and_goes_on_when_there_is(
    cloud, store, hub, fetching
):
    job = fetching("acme/dear")
    hub.open.clear()
    scratch = cloud.volumes["vo-slm-calibration-artifacts"] / "scratch" / "dear"
    scratch.mkdir(parents=True)
    # Attempts before this one have worked for an hour, and a minute was paid for.
    (scratch / "sign.json").write_text('{"seconds": 3600}')
    dear = ON.model_copy(update={"obtain_minutes": 1, "max_usd": 0.01})
    with pytest.raises(ConfigurationError, match=r"max_usd must leave room .* worked 60 minutes"):
        run(job, store, "dear", dear)
    [call] = cloud.calls.values()
    assert "TERMINATED" in str(call.output)
    assert [cost.outcome for cost in Ledger(store).costs()] == ["cancelled"]
    hub.open.set()
    assert store.is_whole(run(job, store, "dear"))


# What is found before a cent is spent


def no_app(cloud):
    cloud.tags = None


def old_code(cloud):
    cloud.tags = cloud.tags | {"code": "0" * 32}


def other_versions(cloud):
    cloud.tags = cloud.tags | {"transformers": "5.19.0"}


WRONG = {
    "no app": (no_app, {}, "must be deployed; it is not. Run: modal deploy"),
    "an old deployment": (old_code, {}, "deployed is 00000000. Run: modal deploy"),
    "other versions than here": (
        other_versions,
        {},
        "transformers must be 5.19.0 here .* got 5.* Run: pip install transformers==5.19.0",
    ),
    "an environment without the app": (
        no_app,
        {"environment": "dev"},
        "modal deploy --env dev -m deployments.modal_app",
    ),
    "a budget that is too small": (
        nothing,
        {"max_usd": 0.01},
        "max_usd must leave room for 60 minutes of obtain",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_is_begun_when_something_is_wrong(case, cloud, store, fetching):
    spoil, settings, words = WRONG[case]
    job = fetching("acme/wrong")
    spoil(cloud)
    with pytest.raises(ConfigurationError, match=words) as caught:
        run(job, store, "wrong", ON.model_copy(update=settings))
    assert "\n" not in str(caught.value)
    assert not cloud.calls
    assert Ledger(store).open() == []


def test_a_model_in_a_folder_is_refused(cloud, store, random_model):
    with pytest.raises(ConfigurationError, match="must be on the hub to be used on Modal"):
        run(Obtain(weights=Hub(repo=str(random_model))), store, "folder")
    assert not cloud.calls


@pytest.mark.parametrize("secrets", [{}, {"st-huggingface": {"OTHER": "x"}}])
def test_a_missing_token_is_found_by_the_check(cloud, store, secrets):
    asyncio.run(ON.check(store))
    cloud.secrets = secrets
    with pytest.raises(
        ConfigurationError, match=r"secret huggingface must hold HF_TOKEN.*modal secret create"
    ):
        asyncio.run(ON.check(store))


def test_an_unknown_gpu_is_refused_unless_its_price_is_given():
    with pytest.raises(ValueError, match=r"infer_gpu must be one of T4, .*; got 'H900'.*usd_per_hour\.H900"):
        Modal(infer_gpu="H900")
    assert Modal(infer_gpu="H900", usd_per_hour={"H900": 9.0}).price("H900") == 9.0
